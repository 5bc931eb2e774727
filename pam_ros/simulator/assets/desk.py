"""Objects on a desk as procedural shapes: book, laptop, lamp, clock, scissors, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    arc, box, circle, curve, cylinder, ellipsoid, extrude, lathe, loft, merge, rounded_box,
    rounded_rectangle, smooth, sweep,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Joint, Piece, Shape, between, chance

Rng = np.random.Generator


def book(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.13, 0.17), between(rng, 0.19, 0.24), between(rng, 0.022, 0.04)
    pages = box(w - 0.008, d - 0.01, h - 0.007).moved(x=0.002, z=0.0035)
    front = box(w, d, 0.0035).moved(z=h - 0.0035)
    rest = merge(box(w, d, 0.0035), box(0.0035, d, h).moved(x=-w / 2 + 0.00175))
    return Shape(
        (Piece(front, "print"), Piece(rest, "body"), Piece(pages, "paper")),
        rests=((0, 0, 0), (90, 0, 0), (90, 0, 0)),
    )


def laptop(rng: Rng) -> Shape:
    w, d = between(rng, 0.3, 0.34), between(rng, 0.2, 0.23)
    base = rounded_box(w, d, 0.014, 0.012)
    keys = merge(
        *[
            box(w * 0.058, d * 0.085, 0.0022).moved(
                x=w * (0.064 * column - 0.416), y=d * (0.36 - 0.115 * row), z=0.0135
            )
            for row in range(4)
            for column in range(14)
        ]
    )
    pad = box(w * 0.3, d * 0.26, 0.001).moved(y=-d * 0.31, z=0.0138)
    tilt = between(rng, 8, 28)
    lid = extrude(rounded_rectangle(w, d, 0.012), 0.007).moved(y=d / 2)
    screen = box(w * 0.93, d * 0.88, 0.001).moved(y=d / 2, z=0.0072)
    lid, screen = (mesh.turned(x=90 - tilt).moved(y=d / 2 - 0.004, z=0.013) for mesh in (lid, screen))
    pieces = (
        Piece(base),
        Piece(keys, "black"),
        Piece(pad, "grey"),
        Piece(lid, "body", "lid", 0),
        Piece(screen, "print", "lid", 0),
    )
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
    arm = sweep(
        np.array(
            [(0, 0, 0.01), np.multiply(elbow, 0.5) + [0, 0, 0.005], elbow, (np.asarray(elbow) + top) / 2, top]
        ),
        0.0065,
    )
    head = (
        lathe([(0.016, 0.02), (0.026, 0.0), (0.058, -0.065), (0.055, -0.065), (0.02, -0.01)], 24)
        .turned(y=-30)
        .moved(x=0.045, z=h * 1.25)
    )
    bulb = ellipsoid(0.024, 0.024, 0.026, 14).moved(z=-0.045).turned(y=-30).moved(x=0.045, z=h * 1.25)
    return Shape((Piece(foot), Piece(arm, "steel"), Piece(head), Piece(bulb, "lamp")))


def alarm_clock(rng: Rng) -> Shape:
    r, deep = between(rng, 0.045, 0.058), between(rng, 0.035, 0.045)
    z = r + 0.016
    case = (
        merge(lathe([(0, 0), (r, 0), (r, deep), (r * 0.92, deep), (r * 0.92, deep - 0.004)], 30))
        .turned(x=90)
        .moved(y=deep / 2, z=z)
    )
    face = cylinder(r * 0.92, 0.001, segments=30).turned(x=90).moved(y=-deep / 2 + 0.005, z=z)
    marks = merge(
        *[
            box(0.003, 0.0012, r * 0.14)
            .moved(z=r * 0.72)
            .turned(y=30.0 * hour)
            .moved(y=-deep / 2 + 0.0035, z=z)
            for hour in range(12)
        ]
    )
    hands = merge(
        *[
            box(width, 0.0014, r * reach).turned(y=float(rng.uniform(0, 360))).moved(y=-deep / 2 + 0.003, z=z)
            for width, reach in ((0.004, 0.45), (0.003, 0.68))
        ]
    )
    pieces = [Piece(case), Piece(face, "white"), Piece(merge(marks, hands), "black")]
    feet = merge(
        *[
            sweep(np.array([(side * r * 0.5, 0, z - r * 0.8), (side * r * 0.8, 0, 0.004)]), 0.005, segments=8)
            for side in (1, -1)
        ]
    )
    pieces.append(Piece(feet, "steel"))
    if chance(rng, 0.75):
        bells = merge(
            *[
                ellipsoid(0.024, 0.024, 0.015).turned(y=side * 35).moved(x=side * r * 0.55, z=z + r * 0.93)
                for side in (1, -1)
            ]
        )
        bail = sweep(arc((0, z + r * 0.98), r * 0.5, 10, 170, 12, squash=0.9), 0.003, segments=8)
        pieces += [Piece(bells, "steel"), Piece(bail, "steel", "handle")]
    return Shape(tuple(pieces), faces_camera=True)


def scissors(rng: Rng) -> Shape:
    blade, grip = between(rng, 0.09, 0.115), between(rng, 0.07, 0.085)
    opening = between(rng, 7, 18)
    pieces = []
    for side, z in ((1, 0.005), (-1, 0.0085)):
        outline = np.array(
            [(-0.012, -0.006), (0.02, -0.009), (blade, -0.0005), (0.02, 0.006), (-0.012, 0.006)]
        ) * [1, side]
        knife_part = extrude(outline, 0.003).turned(z=-opening / 2 * side).moved(z=z)
        angles = np.linspace(0, 2 * np.pi, 22)
        ring = np.stack(
            [
                -grip * 0.62 + 0.024 * np.cos(angles),
                side * 0.022 + 0.017 * np.sin(angles),
                np.full(22, z + 0.001),
            ],
            1,
        )
        neck = smooth([(-0.008, 0.0, z + 0.001), (-grip * 0.3, 0.012 * side, z + 0.001)], 5)
        loop = merge(sweep(ring, 0.0048, segments=8), sweep(neck, 0.0058, segments=8))
        pieces += [
            Piece(knife_part, "steel", "blade"),
            Piece(loop.turned(z=opening / 2 * side), "body", "handle"),
        ]
    pieces.append(Piece(cylinder(0.0045, 0.009, segments=14).moved(z=0.004), "steel"))
    return Shape(tuple(pieces))


def pencil(rng: Rng) -> Shape:
    length, r = between(rng, 0.15, 0.18), 0.0058
    body = extrude(circle(r, count=6), length).turned(y=90).moved(z=r)
    cone = lathe([(r * 0.95, 0), (0.0018, 0.017)], 12).turned(y=90).moved(x=length, z=r)
    lead = lathe([(0.0019, 0), (0, 0.006)], 8).turned(y=90).moved(x=length + 0.0165, z=r)
    ferrule = cylinder(r * 1.03, 0.011, segments=12).turned(y=-90).moved(z=r)
    rubber = cylinder(r * 0.98, 0.011, segments=12).turned(y=-90).moved(x=-0.011, z=r)
    return Shape(
        (
            Piece(body),
            Piece(cone, "wood"),
            Piece(lead, "black"),
            Piece(ferrule, "steel"),
            Piece(rubber, "pink"),
        )
    )


def light_bulb(rng: Rng) -> Shape:
    r = between(rng, 0.028, 0.034)
    glass = lathe(
        [
            *curve(
                (0.0125, 0.028),
                (0.016, 0.04),
                (r, 0.028 + r * 1.35),
                (r * 0.7, 0.028 + r * 2.1),
                (0, 0.028 + r * 2.35),
                count=14,
            )
        ],
        24,
    )
    thread = lathe(
        [
            (0, 0),
            (0.006, 0),
            (0.0125, 0.006),
            *[(0.0135 if step % 2 else 0.0118, 0.008 + step * 0.0025) for step in range(9)],
            (0.0125, 0.03),
        ],
        18,
    )
    lying = (0.0, 105.0, 0.0)
    return Shape((Piece(glass, "bulb"), Piece(thread, "steel")), rests=(lying,))


def remote_control(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.045, 0.052), between(rng, 0.15, 0.19), between(rng, 0.018, 0.022)
    rows = int(rng.integers(5, 8))
    keys = merge(
        *[
            cylinder(0.0045, 0.003, segments=10).moved((column - 1) * w * 0.27, d * (0.12 - 0.075 * row), h)
            for row in range(rows)
            for column in range(3)
        ]
    )
    ring = lathe([(0.014, h), (0.018, h + 0.003), (0.009, h + 0.003)], 20).moved(y=d * 0.27)
    power = cylinder(0.005, 0.003, segments=12).moved(x=-w * 0.27, y=d * 0.42, z=h)
    return Shape((Piece(rounded_box(w, d, h, 0.012)), Piece(merge(keys, ring), "grey"), Piece(power, "red")))


def computer_mouse(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.058, 0.066), between(rng, 0.1, 0.12), between(rng, 0.034, 0.04)
    base = rounded_rectangle(w, d, w * 0.48, 7)
    hull = loft(
        [(base * 0.96, 0), (base, h * 0.25), (base * 0.96, h * 0.55), (base * 0.8, h * 0.85), (base * 0.5, h)]
    )
    wheel = cylinder(0.009, 0.006, segments=16).turned(y=90).moved(x=-0.003, y=d * 0.27, z=h * 0.83)
    line = box(0.0015, d * 0.36, 0.002).moved(y=d * 0.2, z=h * 0.86).turned(x=0)
    cord = sweep(
        smooth(
            [(0, d * 0.48, 0.008), (0.01, d * 0.8, 0.003), (0.05, d * 1.05, 0.003), (0.03, d * 1.4, 0.003)],
            14,
        ),
        0.002,
        segments=6,
    )
    pieces = [Piece(hull), Piece(merge(wheel, line), "black")]
    if chance(rng, 0.6):
        pieces.append(Piece(cord, "black"))
    return Shape(tuple(pieces))


def headphones(rng: Rng) -> Shape:
    r = between(rng, 0.07, 0.08)
    z = 0.042
    band = sweep(
        arc((0, 0), r, 0, 180, 20, squash=1.15).dot(np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])) + [0, 0, z],
        0.007,
        flat=1.8,
    )
    cups = merge(
        *[
            lathe([(0, 0), (0.034, 0), (0.038, 0.008), (0.034, 0.022), (0, 0.024)], 24)
            .turned(y=90 * side)
            .moved(x=side * (r - 0.012), z=z)
            for side in (1, -1)
        ]
    )
    pads = merge(
        *[
            lathe([(0.018, 0), (0.036, 0.002), (0.038, 0.012), (0.03, 0.02)], 24)
            .turned(y=-90 * side)
            .moved(x=side * (r - 0.011), z=z)
            for side in (1, -1)
        ]
    )
    return Shape((Piece(band), Piece(cups), Piece(pads, "black")))
