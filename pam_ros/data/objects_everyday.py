"""Everyday things as procedural shapes: book, laptop, lamp, clock, basket, drawer unit, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.data.parts import Builder, Joint, Piece, Shape, between, chance
from pam_ros.data.shapes import (
    Mesh,
    arc,
    box,
    circle,
    curve,
    cylinder,
    ellipsoid,
    extrude,
    lathe,
    loft,
    merge,
    rounded_box,
    rounded_rectangle,
    smooth,
    sweep,
    vessel,
)

Rng = np.random.Generator


def book(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.13, 0.17), between(rng, 0.19, 0.24), between(rng, 0.022, 0.04)
    pages = box(w - 0.008, d - 0.01, h - 0.007).moved(x=0.002, z=0.0035)
    front = box(w, d, 0.0035).moved(z=h - 0.0035)
    rest = merge(box(w, d, 0.0035), box(0.0035, d, h).moved(x=-w / 2 + 0.00175))
    return Shape((Piece(front, "print"), Piece(rest, "body"), Piece(pages, "paper")), rests=((0, 0, 0), (90, 0, 0), (90, 0, 0)))


def carton_box(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.16, 0.26), between(rng, 0.13, 0.2), between(rng, 0.1, 0.17)
    body = vessel([(1, 0), (1, 1)], 0.03, 4).turned(z=45).scaled(w * 0.7071, d * 0.7071, h)
    pieces = [Piece(body, "cardboard")]
    if chance(rng, 0.5):
        pieces.append(Piece(box(w, d, 0.004).moved(z=h - 0.002), "cardboard"))
        pieces.append(Piece(box(w * 1.003, 0.045, 0.002).moved(z=h + 0.0022), "tape"))
        pieces.append(Piece(box(w * 1.006, 0.045, h * 0.3).moved(z=h * 0.7), "tape"))
    else:
        for side in (1, -1):
            flap = box(w * 0.98, d * 0.45, 0.003).moved(y=d * 0.225).turned(x=between(rng, -50, -10)).moved(y=d / 2, z=h)
            pieces.append(Piece(flap if side > 0 else flap.turned(z=180), "cardboard"))
    return Shape(tuple(pieces))


def laptop(rng: Rng) -> Shape:
    w, d = between(rng, 0.3, 0.34), between(rng, 0.2, 0.23)
    base = rounded_box(w, d, 0.014, 0.012)
    keys = merge(*[box(w * 0.058, d * 0.085, 0.0022).moved(x=w * (0.064 * column - 0.416), y=d * (0.36 - 0.115 * row), z=0.0135) for row in range(4) for column in range(14)])
    pad = box(w * 0.3, d * 0.26, 0.001).moved(y=-d * 0.31, z=0.0138)
    tilt = between(rng, 8, 28)
    lid = extrude(rounded_rectangle(w, d, 0.012), 0.007).moved(y=d / 2)
    screen = box(w * 0.93, d * 0.88, 0.001).moved(y=d / 2, z=0.0072)
    lid, screen = (mesh.turned(x=90 - tilt).moved(y=d / 2 - 0.004, z=0.013) for mesh in (lid, screen))
    pieces = (Piece(base), Piece(keys, "black"), Piece(pad, "grey"), Piece(lid, "body", "lid", 0), Piece(screen, "print", "lid", 0))
    hinge = Joint("lid", False, (1, 0, 0), (0, d / 2 - 0.004, 0.014), float(np.radians(88 - tilt)))
    return Shape(pieces, (hinge,), faces_camera=True)


def lamp(rng: Rng) -> Shape:
    base, h = between(rng, 0.06, 0.08), between(rng, 0.2, 0.26)
    if chance(rng, 0.5):  # shade on a stand
        r = between(rng, 0.085, 0.11)
        foot = lathe([(0, 0), (base, 0), (base, 0.012), (0.02, 0.022), (0.011, 0.05), (0.009, h), (0, h)])
        shade = lathe([(r, h * 0.78), (r * 0.62, h * 1.28), (r * 0.6, h * 1.28), (r * 0.98, h * 0.785)], 30)
        bulb = ellipsoid(0.026, 0.026, 0.034).moved(z=h * 0.98)
        return Shape((Piece(foot, "accent"), Piece(shade, "body"), Piece(bulb, "lamp")))
    foot = cylinder(base, 0.016)
    elbow, top = (-0.075, 0.0, h * 0.62), (0.03, 0.0, h * 1.25)
    arm = sweep(np.array([(0, 0, 0.01), np.multiply(elbow, 0.5) + [0, 0, 0.005], elbow, (np.asarray(elbow) + top) / 2, top]), 0.0065)
    head = lathe([(0.016, 0.02), (0.026, 0.0), (0.058, -0.065), (0.055, -0.065), (0.02, -0.01)], 24).turned(y=-30).moved(x=0.045, z=h * 1.25)
    bulb = ellipsoid(0.024, 0.024, 0.026, 14).moved(z=-0.045).turned(y=-30).moved(x=0.045, z=h * 1.25)
    return Shape((Piece(foot), Piece(arm, "steel"), Piece(head), Piece(bulb, "lamp")))


def alarm_clock(rng: Rng) -> Shape:
    r, deep = between(rng, 0.045, 0.058), between(rng, 0.035, 0.045)
    z = r + 0.016
    case = merge(lathe([(0, 0), (r, 0), (r, deep), (r * 0.92, deep), (r * 0.92, deep - 0.004)], 30)).turned(x=90).moved(y=deep / 2, z=z)
    face = cylinder(r * 0.92, 0.001, segments=30).turned(x=90).moved(y=-deep / 2 + 0.005, z=z)
    marks = merge(*[box(0.003, 0.0012, r * 0.14).moved(z=r * 0.72).turned(y=30.0 * hour).moved(y=-deep / 2 + 0.0035, z=z) for hour in range(12)])
    hands = merge(*[box(width, 0.0014, r * reach).turned(y=float(rng.uniform(0, 360))).moved(y=-deep / 2 + 0.003, z=z) for width, reach in ((0.004, 0.45), (0.003, 0.68))])
    pieces = [Piece(case), Piece(face, "white"), Piece(merge(marks, hands), "black")]
    feet = merge(*[sweep(np.array([(side * r * 0.5, 0, z - r * 0.8), (side * r * 0.8, 0, 0.004)]), 0.005, segments=8) for side in (1, -1)])
    pieces.append(Piece(feet, "steel"))
    if chance(rng, 0.75):
        bells = merge(*[ellipsoid(0.024, 0.024, 0.015).turned(y=side * 35).moved(x=side * r * 0.55, z=z + r * 0.93) for side in (1, -1)])
        bail = sweep(arc((0, z + r * 0.98), r * 0.5, 10, 170, 12, squash=0.9), 0.003, segments=8)
        pieces += [Piece(bells, "steel"), Piece(bail, "steel", "handle")]
    return Shape(tuple(pieces), faces_camera=True)


def ball(rng: Rng) -> Shape:
    r = between(rng, 0.045, 0.07)
    sphere = ellipsoid(r, r, r, 28).turned(x=between(rng, 0, 180), y=between(rng, 0, 180)).moved(z=r)
    return Shape((Piece(sphere, "print"),))


def candle(rng: Rng) -> Shape:
    r, h = between(rng, 0.022, 0.032), between(rng, 0.08, 0.14)
    wax = lathe([(0, 0.008), (r, 0.008), (r, h), (r * 0.86, h + 0.002), (r * 0.6, h - 0.004), (0, h - 0.005)], 24)
    wick = sweep(smooth([(0, 0, h - 0.006), (0.001, 0, h + 0.006), (0.003, 0, h + 0.012)], 4), 0.0013, segments=6)
    pieces = [Piece(wax), Piece(wick, "black")]
    if chance(rng, 0.7):
        flame = lathe([(0, h + 0.008), (0.006, h + 0.017), (0.0045, h + 0.026), (0, h + 0.04)], 10).moved(x=0.003)
        pieces.append(Piece(flame, "flame"))
    if chance(rng, 0.7):
        dish = vessel([(r * 1.5, 0), (r * 1.75, 0.006), (r * 1.9, 0.016)], 0.003)
        pieces.append(Piece(dish, "accent"))
    else:
        pieces = [Piece(piece.mesh.moved(z=-0.008), piece.slot) for piece in pieces]
    return Shape(tuple(pieces))


def plant(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.07), between(rng, 0.085, 0.115)
    pot = vessel([(r * 0.7, 0), (r * 0.72, 0.004), (r * 0.95, h * 0.8), (r * 1.05, h * 0.8), (r * 1.08, h)], 0.006)
    pieces = [Piece(pot), Piece(cylinder(r * 0.93, 0.004).moved(z=h * 0.86), "soil")]
    leaves = []
    style = int(rng.integers(3))
    for index in range(int(rng.integers(13, 20))):
        angle, lean = index * 137.5, between(rng, 15, 75)
        reach = between(rng, 0.08, 0.15)
        if style == 0:  # broad leaves on stalks
            leaf = ellipsoid(reach * 0.42, 0.026, 0.002, 12).moved(x=reach * 0.9)
            stalk = sweep(np.array([(0, 0, 0), (reach * 0.3, 0, 0), (reach * 0.6, 0, 0)]), 0.0018, segments=6)
            one = merge(leaf, stalk)
        elif style == 1:  # grass blades
            one = ellipsoid(reach * 0.75, 0.0075, 0.003, 10).moved(x=reach * 0.7)
        else:  # round foliage
            one = ellipsoid(0.03, 0.03, 0.022, 10).moved(x=reach * 0.8)
        leaves.append(one.turned(y=-(90 - lean if style != 2 else between(rng, 20, 90)), z=angle).moved(z=h * 0.9))
    return Shape((*pieces, Piece(merge(*leaves), "leaf", "leaf")))


def scissors(rng: Rng) -> Shape:
    blade, grip = between(rng, 0.09, 0.115), between(rng, 0.07, 0.085)
    opening = between(rng, 7, 18)
    pieces = []
    for side, z in ((1, 0.005), (-1, 0.0085)):
        outline = np.array([(-0.012, -0.006), (0.02, -0.009), (blade, -0.0005), (0.02, 0.006), (-0.012, 0.006)]) * [1, side]
        knife_part = extrude(outline, 0.003).turned(z=-opening / 2 * side).moved(z=z)
        angles = np.linspace(0, 2 * np.pi, 22)
        ring = np.stack([-grip * 0.62 + 0.024 * np.cos(angles), side * 0.022 + 0.017 * np.sin(angles), np.full(22, z + 0.001)], 1)
        neck = smooth([(-0.008, 0.0, z + 0.001), (-grip * 0.3, 0.012 * side, z + 0.001)], 5)
        loop = merge(sweep(ring, 0.0048, segments=8), sweep(neck, 0.0058, segments=8))
        pieces += [Piece(knife_part, "steel", "blade"), Piece(loop.turned(z=opening / 2 * side), "body", "handle")]
    pieces.append(Piece(cylinder(0.0045, 0.009, segments=14).moved(z=0.004), "steel"))
    return Shape(tuple(pieces))


def basket(rng: Rng) -> Shape:
    rx, ry, h = between(rng, 0.12, 0.15), between(rng, 0.09, 0.11), between(rng, 0.09, 0.12)
    rows = 7
    pieces: list[Mesh] = []
    for row in range(rows + 1):
        grow = 0.82 + 0.18 * row / rows
        angles = np.linspace(0, 2 * np.pi, 33)
        wave = 0.0022 * np.cos(angles * 16 + np.pi * (row % 2))
        ring = np.stack([(rx * grow + wave) * np.cos(angles), (ry * grow + wave) * np.sin(angles), np.full(33, 0.008 + (h - 0.01) * row / rows)], 1)
        pieces.append(sweep(ring, 0.0078 if row < rows else 0.009, segments=6))
    floor = extrude(circle(rx * 0.82, ry * 0.82, 28), 0.005)
    grip = sweep(arc((0, h * 0.95), rx, 0, 180, 20, squash=between(rng, 0.9, 1.15)), 0.007, flat=1.6)
    return Shape((Piece(merge(*pieces, floor)), Piece(grip, "body", "handle")))


def pencil(rng: Rng) -> Shape:
    length, r = between(rng, 0.15, 0.18), 0.0058
    body = extrude(circle(r, count=6), length).turned(y=90).moved(z=r)
    cone = lathe([(r * 0.95, 0), (0.0018, 0.017)], 12).turned(y=90).moved(x=length, z=r)
    lead = lathe([(0.0019, 0), (0, 0.006)], 8).turned(y=90).moved(x=length + 0.0165, z=r)
    ferrule = cylinder(r * 1.03, 0.011, segments=12).turned(y=-90).moved(z=r)
    rubber = cylinder(r * 0.98, 0.011, segments=12).turned(y=-90).moved(x=-0.011, z=r)
    return Shape((Piece(body), Piece(cone, "wood"), Piece(lead, "black"), Piece(ferrule, "steel"), Piece(rubber, "pink")))


def light_bulb(rng: Rng) -> Shape:
    r = between(rng, 0.028, 0.034)
    glass = lathe([*curve((0.0125, 0.028), (0.016, 0.04), (r, 0.028 + r * 1.35), (r * 0.7, 0.028 + r * 2.1), (0, 0.028 + r * 2.35), count=14)], 24)
    thread = lathe([(0, 0), (0.006, 0), (0.0125, 0.006), *[(0.0135 if step % 2 else 0.0118, 0.008 + step * 0.0025) for step in range(9)], (0.0125, 0.03)], 18)
    lying = (0.0, 105.0, 0.0)
    return Shape((Piece(glass, "bulb"), Piece(thread, "steel")), rests=(lying,))


def drawer_unit(rng: Rng) -> Shape:
    w, d = between(rng, 0.22, 0.28), between(rng, 0.2, 0.24)
    count = int(rng.integers(2, 4))
    each = between(rng, 0.085, 0.105)
    h, t = count * each + 0.016, 0.011
    shell = merge(box(w, d, t), box(w, d, t).moved(z=h - t), box(t, d, h).moved(x=-w / 2 + t / 2), box(t, d, h).moved(x=w / 2 - t / 2), box(w, t, h).moved(y=d / 2 - t / 2))
    pieces, joints = [Piece(shell)], []
    front_slot = "body" if chance(rng, 0.4) else "accent"
    bar = chance(rng, 0.5)
    for index in range(count):
        low = 0.008 + index * each
        inner_w, inner_d, inner_h = w - 2 * t - 0.004, d - t - 0.01, each - 0.016
        tray = merge(
            box(inner_w, inner_d, 0.005), box(0.005, inner_d, inner_h).moved(x=-inner_w / 2), box(0.005, inner_d, inner_h).moved(x=inner_w / 2), box(inner_w, 0.005, inner_h).moved(y=inner_d / 2)
        ).moved(z=low + 0.006)
        front = box(w - 0.008, 0.014, each - 0.006).moved(y=-d / 2 - 0.007, z=low + 0.003)
        centre = low + each / 2
        grip = (
            sweep(np.array([(-0.04, -d / 2 - 0.012, centre), (-0.038, -d / 2 - 0.032, centre), (0.038, -d / 2 - 0.032, centre), (0.04, -d / 2 - 0.012, centre)]), 0.005, segments=8)
            if bar else merge(cylinder(0.006, 0.012, segments=12), ellipsoid(0.014, 0.014, 0.008, 14).moved(z=0.016)).turned(x=90).moved(y=-d / 2 - 0.014, z=centre)
        )
        pieces += [Piece(merge(tray), "wood", "drawer", index), Piece(front, front_slot, "drawer", index), Piece(grip, "steel" if bar else "black", "handle" if bar else "knob", index)]
        joints.append(Joint("drawer", True, (0, -1, 0), (0, 0, 0), d * 0.62))
    return Shape(tuple(pieces), tuple(joints), faces_camera=True)


def watering_can(rng: Rng) -> Shape:
    r, h = between(rng, 0.065, 0.08), between(rng, 0.12, 0.15)
    body = lathe([(0, 0), (r, 0), (r, h), (r * 0.55, h + 0.012), (r * 0.5, h + 0.012), (0, h * 0.9)])
    spout = sweep(np.array([(r * 0.85, 0, h * 0.2), (r * 1.5, 0, h * 0.6), (r * 2.1, 0, h * 1.05)]), [0.014, 0.011, 0.009])
    rose = lathe([(0.009, 0), (0.028, 0.022), (0, 0.024)], 18).turned(y=52).moved(x=r * 2.08, z=h * 1.03)
    grip = sweep(smooth([(r * 0.35, 0, h), (0, 0, h * 1.38), (-r * 1.1, 0, h * 1.15), (-r * 1.3, 0, h * 0.6), (-r * 0.95, 0, h * 0.25)], 18), 0.0065)
    return Shape((Piece(body), Piece(merge(spout, rose), "body", "spout"), Piece(grip, "body", "handle")))


def remote_control(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.045, 0.052), between(rng, 0.15, 0.19), between(rng, 0.018, 0.022)
    rows = int(rng.integers(5, 8))
    keys = merge(*[cylinder(0.0045, 0.003, segments=10).moved((column - 1) * w * 0.27, d * (0.12 - 0.075 * row), h) for row in range(rows) for column in range(3)])
    ring = lathe([(0.014, h), (0.018, h + 0.003), (0.009, h + 0.003)], 20).moved(y=d * 0.27)
    power = cylinder(0.005, 0.003, segments=12).moved(x=-w * 0.27, y=d * 0.42, z=h)
    return Shape((Piece(rounded_box(w, d, h, 0.012)), Piece(merge(keys, ring), "grey"), Piece(power, "red")))


def computer_mouse(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.058, 0.066), between(rng, 0.1, 0.12), between(rng, 0.034, 0.04)
    base = rounded_rectangle(w, d, w * 0.48, 7)
    hull = loft([(base * 0.96, 0), (base, h * 0.25), (base * 0.96, h * 0.55), (base * 0.8, h * 0.85), (base * 0.5, h)])
    wheel = cylinder(0.009, 0.006, segments=16).turned(y=90).moved(x=-0.003, y=d * 0.27, z=h * 0.83)
    line = box(0.0015, d * 0.36, 0.002).moved(y=d * 0.2, z=h * 0.86).turned(x=0)
    cord = sweep(smooth([(0, d * 0.48, 0.008), (0.01, d * 0.8, 0.003), (0.05, d * 1.05, 0.003), (0.03, d * 1.4, 0.003)], 14), 0.002, segments=6)
    pieces = [Piece(hull), Piece(merge(wheel, line), "black")]
    if chance(rng, 0.6):
        pieces.append(Piece(cord, "black"))
    return Shape(tuple(pieces))


def headphones(rng: Rng) -> Shape:
    r = between(rng, 0.07, 0.08)
    z = 0.042
    band = sweep(arc((0, 0), r, 0, 180, 20, squash=1.15).dot(np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])) + [0, 0, z], 0.007, flat=1.8)
    cups = merge(*[lathe([(0, 0), (0.034, 0), (0.038, 0.008), (0.034, 0.022), (0, 0.024)], 24).turned(y=90 * side).moved(x=side * (r - 0.012), z=z) for side in (1, -1)])
    pads = merge(*[lathe([(0.018, 0), (0.036, 0.002), (0.038, 0.012), (0.03, 0.02)], 24).turned(y=-90 * side).moved(x=side * (r - 0.011), z=z) for side in (1, -1)])
    return Shape((Piece(band), Piece(cups), Piece(pads, "black")))


def vase(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.065), between(rng, 0.17, 0.23)
    profile = curve((r * 0.6, 0), (r, h * between(rng, 0.3, 0.4)), (r * 0.45, h * 0.78), (r * 0.42, h * 0.88), (r * 0.7, h), count=14)
    pieces = [Piece(vessel(profile, 0.004))]
    if chance(rng, 0.6):
        stems, heads = [], []
        for index in range(int(rng.integers(3, 6))):
            a, lean = index * 137.5, between(rng, 0.02, 0.06)
            top = h + between(rng, 0.07, 0.12)
            stems.append(sweep(smooth([(0, 0, h * 0.4), (lean * 0.4, 0, h), (lean, 0, top)], 5), 0.0022, segments=6).turned(z=a))
            petals = [ellipsoid(0.013, 0.008, 0.004, 8).turned(y=-25).moved(x=0.014).turned(z=60.0 * k) for k in range(6)]
            heads.append(merge(*petals).moved(x=lean, z=top).turned(z=a))
        pieces += [Piece(merge(*stems), "leaf"), Piece(merge(*heads), "accent")]
    return Shape(tuple(pieces))


BUILDERS: dict[str, Builder] = {
    "book": book, "cardboard_box": carton_box, "laptop": laptop, "lamp": lamp, "alarm_clock": alarm_clock, "ball": ball, "candle": candle,
    "plant": plant, "scissors": scissors, "basket": basket, "pencil": pencil, "light_bulb": light_bulb, "drawer_unit": drawer_unit,
    "watering_can": watering_can, "remote_control": remote_control, "computer_mouse": computer_mouse, "headphones": headphones, "vase": vase,
}
