"""Kitchen things as procedural shapes: mug, kettle, pan, bottle, toaster, microwave, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.data.parts import Builder, Joint, Piece, Shape, between, chance
from pam_ros.data.shapes import (
    arc,
    box,

    curve,
    cylinder,
    ellipsoid,
    extrude,
    lathe,
    loft,
    merge,
    polygon,
    rounded_box,
    rounded_rectangle,
    smooth,
    sweep,
    vessel,
)

Rng = np.random.Generator
LYING_X = (0.0, 90.0, 0.0)


def mug(rng: Rng) -> Shape:
    r, h = between(rng, 0.036, 0.046), between(rng, 0.085, 0.11)
    taper = between(rng, 0.82, 1.0)
    body = vessel([(r * taper * 0.92, 0), (r * taper, 0.006), (r * 0.5 * (1 + taper), h * 0.5), (r, h)], 0.0045)
    reach = between(rng, 0.026, 0.034)
    loop = arc((r * 0.93, h * 0.52), reach, -100, 100, squash=h * 0.33 / reach)
    handle = sweep(loop, 0.0062, flat=between(rng, 0.9, 1.5))
    return Shape((Piece(body), Piece(handle, "body", "handle")))


def bowl(rng: Rng) -> Shape:
    r, h = between(rng, 0.065, 0.095), between(rng, 0.05, 0.075)
    bulge = between(rng, 0.68, 0.85)
    profile = [(r * 0.45, 0), (r * 0.45, 0.006), *curve((r * 0.5, 0.008), (r * bulge, h * 0.38), (r * 0.95, h * 0.75), (r, h), count=9)]
    return Shape((Piece(vessel(profile, 0.005)),))


def plate(rng: Rng) -> Shape:
    r, h = between(rng, 0.1, 0.135), between(rng, 0.014, 0.022)
    well = between(rng, 0.58, 0.7)
    profile = [(r * well * 0.9, 0), (r * well, 0.004), (r * (well + 0.05), h * 0.7), (r, h)]
    pieces = [Piece(vessel(profile, 0.005, 36))]
    if chance(rng, 0.5):
        pieces.append(Piece(lathe([(r * 0.9, h * 0.9 + 0.0015), (r * 0.985, h + 0.0015), (r * 0.9, h * 0.9 + 0.001)], 36), "accent"))
    return Shape(tuple(pieces))


def bottle(rng: Rng) -> Shape:
    r, h = between(rng, 0.03, 0.042), between(rng, 0.23, 0.31)
    neck, shoulder = between(rng, 0.011, 0.0145), between(rng, 0.52, 0.66)
    profile = [(0, 0), (r * 0.93, 0), (r, 0.008), (r, h * shoulder), *curve((r, h * shoulder), (r * 0.8, h * (shoulder + 0.07)), (neck * 1.1, h * (shoulder + 0.17)), (neck, h * 0.9), count=9), (neck, h * 0.95)]
    pieces = [Piece(lathe(profile)), Piece(cylinder(neck * 1.25, h * 0.065).moved(z=h * 0.94), "accent", "cap")]
    if chance(rng, 0.75):
        pieces.append(Piece(lathe([(r * 1.015, h * 0.14), (r * 1.015, h * (shoulder - 0.1))]), "print"))
    return Shape(tuple(pieces), rests=((0, 0, 0), LYING_X))


def wine_glass(rng: Rng) -> Shape:
    r, h = between(rng, 0.034, 0.044), between(rng, 0.18, 0.23)
    stem = between(rng, 0.38, 0.48) * h
    foot = [(0, 0), (r * 0.95, 0), (r * 0.95, 0.003), (r * 0.3, 0.007), (0.0045, 0.014), (0.004, stem)]
    cup = curve((0.004, stem), (r * 0.75, stem + (h - stem) * 0.16), (r * 1.05, stem + (h - stem) * 0.45), (r * between(rng, 0.75, 0.95), h), count=9)
    rim = [(radius - 0.002, z) for radius, z in reversed(cup) if z > stem + 0.01]
    return Shape((Piece(lathe([*foot, *cup, *rim, (0, stem + 0.006)])),))


def kettle(rng: Rng) -> Shape:
    r, h = between(rng, 0.075, 0.095), between(rng, 0.1, 0.14)
    top = between(rng, 0.42, 0.6)
    body = lathe([(0, 0), (r * 0.96, 0), (r, 0.008), *curve((r, 0.02), (r * between(rng, 0.9, 1.0), h * 0.5), (r * top * 1.15, h * 0.93), (r * top, h), count=10), (0, h)])
    lid = merge(lathe([(r * top * 0.95, h), (r * top * 0.9, h + 0.006), (r * 0.12, h + 0.016), (0, h + 0.017)]))
    knob = ellipsoid(0.011, 0.011, 0.012).moved(z=h + 0.026)
    reach = r * between(rng, 0.85, 1.0)
    grip = sweep(arc((0, h * 0.82), reach, 12, 168, 18, squash=between(rng, 1.0, 1.25)), 0.0075, flat=1.25)
    mouth = between(rng, 0.85, 1.0) * h
    spout = sweep(smooth([(r * 0.8, 0, h * 0.4), (r * 1.2, 0, h * 0.55), (r * 1.5, 0, mouth)], 9), np.linspace(0.021, 0.010, 9))
    return Shape((Piece(body), Piece(lid, "body", "lid"), Piece(knob, "black", "lid"), Piece(grip, "black", "handle"), Piece(spout, "body", "spout")))


def teapot(rng: Rng) -> Shape:
    r = between(rng, 0.06, 0.075)
    h = r * between(rng, 1.35, 1.6)
    body = lathe([(0, 0), (r * 0.55, 0), (r * 0.58, 0.006), *curve((r * 0.62, 0.008), (r, h * 0.42), (r * 0.85, h * 0.75), (r * 0.42, h), count=11), (0, h)])
    lid = lathe([(r * 0.44, h), (r * 0.4, h + 0.007), (r * 0.12, h + 0.014), (0, h + 0.015)])
    knob = ellipsoid(0.010, 0.010, 0.011).moved(z=h + 0.024)
    loop = arc((-r * 0.86, h * 0.52), r * 0.62, 75, 285, 16)
    handle = sweep(loop, 0.0065)
    spout = sweep(smooth([(r * 0.75, 0, h * 0.3), (r * 1.25, 0, h * 0.42), (r * 1.5, 0, h * 0.75), (r * 1.75, 0, h * 0.93)], 11), np.linspace(0.02, 0.008, 11))
    return Shape((Piece(body), Piece(lid, "body", "lid"), Piece(knob, "body", "lid"), Piece(handle, "body", "handle"), Piece(spout, "body", "spout")))


def frying_pan(rng: Rng) -> Shape:
    r, h = between(rng, 0.1, 0.13), between(rng, 0.035, 0.048)
    body = vessel([(r * 0.78, 0), (r * 0.82, 0.003), (r * 0.94, h * 0.5), (r, h)], 0.004, 36)
    length = between(rng, 0.15, 0.19)
    handle = sweep(smooth([(r * 0.94, 0, h * 0.8), (r + 0.04, 0, h + 0.012), (r + length, 0, h + 0.025)], 8), np.array([0.006, 0.008, 0.01, 0.011, 0.012, 0.012, 0.012, 0.008]), flat=1.4)
    return Shape((Piece(body), Piece(handle, "wood" if chance(rng, 0.4) else "black", "handle")))


def pot(rng: Rng) -> Shape:
    r, h = between(rng, 0.085, 0.115), between(rng, 0.1, 0.14)
    body = vessel([(r * 0.97, 0), (r, 0.006), (r, h)], 0.004, 32)
    pieces = [Piece(body)]
    for side in (0.0, 180.0):
        ear = sweep(np.stack([np.full(10, r) + 0.03 * np.sin(np.linspace(0, np.pi, 10)), np.linspace(-0.03, 0.03, 10), np.full(10, h * 0.8)], 1), 0.006)
        pieces.append(Piece(ear.turned(z=side), "black", "handle"))
    lid = lathe([(0, h - 0.004), (r * 0.99, h - 0.004), (r * 1.02, h), (r * 1.02, h + 0.004), *curve((r * 0.95, h + 0.008), (r * 0.6, h + 0.022), (0.008, h + 0.028), count=6), (0, h + 0.028)], 32)
    knob = merge(cylinder(0.006, 0.014).moved(z=h + 0.026), ellipsoid(0.016, 0.016, 0.009).moved(z=h + 0.045))
    pieces += [Piece(lid, "steel" if chance(rng, 0.4) else "body", "lid", 0), Piece(knob, "black", "lid", 0)]
    hinge = Joint("lid", False, (0, 1, 0), (-r * 1.02, 0, h), -1.5)
    return Shape(tuple(pieces), (hinge,))


def knife(rng: Rng) -> Shape:
    blade_length, width = between(rng, 0.15, 0.21), between(rng, 0.028, 0.042)
    edge = smooth([(0, 0), (blade_length * 0.55, 0.002), (blade_length * 0.85, width * 0.3), (blade_length, width * 0.9)], 10)
    blade = extrude(np.concatenate([edge, [(blade_length * 0.97, width), (0, width)]]), 0.003).moved(z=0.008)
    grip_length = between(rng, 0.1, 0.125)
    grip = rounded_box(grip_length, 0.024, 0.02, 0.008).moved(x=-grip_length / 2, y=width - 0.014)
    pieces = [Piece(blade, "steel", "blade"), Piece(grip, "body", "handle")]
    for spot in (0.25, 0.5, 0.75):
        pieces.append(Piece(cylinder(0.003, 0.0015, segments=10).moved(x=-grip_length * spot, y=width - 0.014, z=0.0195), "steel", "handle"))
    return Shape(tuple(pieces))


def _cutlery_handle(rng: Rng, length: float) -> Piece:
    widths = smooth([(0, 0.0045), (length * 0.4, 0.004), (length * 0.85, 0.0095), (length, 0.004)], 12)
    outline = np.concatenate([np.c_[-widths[:, 0], widths[:, 1]], np.c_[-widths[::-1, 0], -widths[::-1, 1]]])
    return Piece(extrude(outline, 0.0035).moved(z=0.004), "body", "handle")


def fork(rng: Rng) -> Shape:
    length, wide, deep = between(rng, 0.12, 0.15), between(rng, 0.027, 0.033), between(rng, 0.05, 0.062)
    tines = 4 if chance(rng, 0.7) else 3
    base = extrude([(-0.004, -0.0045), (0.014, -wide / 2), (0.028, -wide / 2), (0.028, wide / 2), (0.014, wide / 2), (-0.004, 0.0045)], 0.0035).moved(z=0.004)
    pieces = [_cutlery_handle(rng, length), Piece(base, "body")]
    for y in np.linspace(-wide / 2 + 0.0026, wide / 2 - 0.0026, tines):
        tine = sweep(smooth([(0.026, y, 0.006), (0.026 + deep * 0.5, y, 0.004), (0.026 + deep, y, 0.01)], 6), [0.003, 0.003, 0.0028, 0.0025, 0.002, 0.001], segments=6)
        pieces.append(Piece(tine, "body"))
    return Shape(tuple(pieces))


def spoon(rng: Rng) -> Shape:
    length = between(rng, 0.12, 0.15)
    rx, ry = between(rng, 0.03, 0.036), between(rng, 0.021, 0.026)
    bowl_part = vessel([(0.25, 0.0), (0.62, 0.16), (0.86, 0.5), (1.0, 1.0)], 0.06, 20).scaled(rx, ry, 0.012).moved(x=rx * 0.95, z=0.0005)
    return Shape((_cutlery_handle(rng, length), Piece(bowl_part, "body")))


def spatula(rng: Rng) -> Shape:
    wide, deep = between(rng, 0.07, 0.09), between(rng, 0.09, 0.11)
    pieces = []
    bars = 4 if chance(rng, 0.7) else 1
    strip = wide / bars
    for index in range(bars):
        pieces.append(Piece(box(deep * 0.72, strip * (0.62 if bars > 1 else 1), 0.003).moved(x=deep * 0.5, y=-wide / 2 + strip * (index + 0.5), z=0.001)))
    if bars > 1:
        pieces.append(Piece(box(deep * 0.16, wide, 0.003).moved(x=deep * 0.93, z=0.001)))
    pieces.append(Piece(extrude([(-0.01, -0.008), (deep * 0.18, -wide / 2), (deep * 0.18, wide / 2), (-0.01, 0.008)], 0.003).moved(z=0.001)))
    length = between(rng, 0.19, 0.23)
    neck = sweep(smooth([(0, 0, 0.004), (-0.04, 0, 0.02), (-length, 0, 0.028)], 9), [0.004, 0.004, 0.004, 0.005, 0.008, 0.009, 0.009, 0.009, 0.007], flat=1.5)
    pieces.append(Piece(neck, "wood" if chance(rng, 0.4) else "body", "handle"))
    return Shape(tuple(pieces))


def whisk(rng: Rng) -> Shape:
    length, wide = between(rng, 0.13, 0.16), between(rng, 0.03, 0.038)
    pieces = []
    for angle in (0, 36, 72, 108, 144):
        t = np.linspace(-1, 1, 19)
        bulge = np.sign(t) * wide * np.sin(np.pi * np.abs(t) ** 0.75) ** 0.8
        loop = np.stack([length * (1 - np.abs(t) ** 1.0), bulge, np.zeros_like(t)], 1)
        pieces.append(Piece(sweep(loop, 0.0017, segments=6).turned(x=angle).moved(z=wide), "steel"))
    grip = sweep(np.stack([np.linspace(0.01, -0.12, 8), np.zeros(8), np.full(8, wide)], 1), [0.007, 0.009, 0.009, 0.01, 0.011, 0.012, 0.011, 0.007])
    pieces.append(Piece(grip, "body", "handle"))
    return Shape(tuple(pieces))


def cutting_board(rng: Rng) -> Shape:
    wide, deep, thick = between(rng, 0.26, 0.34), between(rng, 0.18, 0.22), between(rng, 0.014, 0.022)
    if chance(rng, 0.5):
        outline = rounded_rectangle(wide, deep, 0.03)
        return Shape((Piece(extrude(outline, thick), "print"),))
    outline = np.array([(-wide / 2, -deep / 2), (wide * 0.4, -deep / 2), (wide * 0.5, -deep * 0.15), (wide * 0.8, -deep * 0.12), (wide * 0.85, 0), (wide * 0.8, deep * 0.12), (wide * 0.5, deep * 0.15), (wide * 0.4, deep / 2), (-wide / 2, deep / 2)])
    hole = cylinder(0.009, 0.001, segments=14).moved(x=wide * 0.77, z=thick)
    return Shape((Piece(extrude(outline, thick), "print"), Piece(hole, "black", "handle")))


def can(rng: Rng) -> Shape:
    if chance(rng, 0.5):
        r, h = between(rng, 0.031, 0.035), between(rng, 0.105, 0.13)
    else:
        r, h = between(rng, 0.036, 0.048), between(rng, 0.085, 0.12)
    neck = between(rng, 0.82, 0.98)
    body = lathe([(r, h * 0.04), (r, h * 0.93)])
    ends = merge(lathe([(0, 0.002), (r * 0.85, 0.002), (r * 0.88, 0), (r, h * 0.04)]), lathe([(r, h * 0.93), (r * neck, h * 0.985), (r * neck, h), (r * neck * 0.93, h), (r * neck * 0.93, h * 0.97), (0, h * 0.97)]))
    tab = box(0.022, 0.012, 0.0015).moved(x=0.004, z=h * 0.975)
    return Shape((Piece(body, "print"), Piece(ends, "steel"), Piece(tab, "steel")), rests=((0, 0, 0), LYING_X))


def carton(rng: Rng) -> Shape:
    w, h = between(rng, 0.062, 0.075), between(rng, 0.15, 0.19)
    body = box(w, w, h)
    ridge = h * between(rng, 0.2, 0.25)
    roof = extrude([(-w / 2, h), (w / 2, h), (0.002, h + ridge), (-0.002, h + ridge)], w).turned(x=90).moved(y=w / 2)
    fin = box(0.004, w, 0.016).moved(z=h + ridge - 0.002)
    pieces = [Piece(body, "print"), Piece(roof, "body"), Piece(fin, "white")]
    if chance(rng, 0.7):
        cap = cylinder(0.014, 0.012).turned(y=40).moved(x=w * 0.24, z=h + ridge * 0.55)
        pieces.append(Piece(cap, "accent", "cap"))
    return Shape(tuple(pieces), rests=((0, 0, 0),))


def cereal_box(rng: Rng) -> Shape:
    return Shape((Piece(box(between(rng, 0.17, 0.2), between(rng, 0.055, 0.07), between(rng, 0.25, 0.3)), "print"),), faces_camera=True)


def jar(rng: Rng) -> Shape:
    r, h = between(rng, 0.037, 0.05), between(rng, 0.09, 0.13)
    fill = lathe([(0, 0), (r * 0.97, 0), (r, 0.008), (r, h * 0.72), (r * 0.84, h * 0.82), (r * 0.84, h * 0.86), (0, h * 0.86)])
    lid = cylinder(r * 0.92, h * 0.16).moved(z=h * 0.84)
    pieces = [Piece(fill, "body"), Piece(lid, "accent", "lid")]
    if chance(rng, 0.7):
        pieces.append(Piece(lathe([(r * 1.012, h * 0.2), (r * 1.012, h * 0.6)]), "print"))
    return Shape(tuple(pieces))


def apple(rng: Rng) -> Shape:
    r = between(rng, 0.036, 0.043)
    profile = curve((0, 0.16 * r), (r * 0.4, 0.02 * r), (r * 0.86, r * 0.6), (r, r * 1.2), (r * 0.72, r * 1.75), (r * 0.28, r * 1.78), (0, r * 1.5), count=18)
    stem = sweep(smooth([(0, 0, r * 1.5), (0.002, 0, r * 1.85), (0.006, 0, r * 2.1)], 5), 0.0018, segments=6)
    leaf = ellipsoid(0.013, 0.006, 0.0012, 10).turned(y=-25).moved(x=0.014, z=r * 2.0)
    pieces = [Piece(lathe(profile)), Piece(stem, "bark")]
    if chance(rng, 0.5):
        pieces.append(Piece(leaf, "leaf"))
    return Shape(tuple(pieces))


def banana(rng: Rng) -> Shape:
    length, thick = between(rng, 0.17, 0.21), between(rng, 0.016, 0.019)
    bend = between(rng, 90, 120)
    radius = length / np.radians(bend)
    line = arc((0, 0), float(radius), 90 - bend / 2, 90 + bend / 2, 16)
    line = np.c_[line[:, 0], line[:, 2] - line[:, 2].mean(), np.full(16, thick)]
    sizes = thick * np.array([0.3, 0.42, 0.7, 0.88, 0.97, 1, 1, 1, 1, 1, 0.98, 0.92, 0.8, 0.6, 0.34, 0.26])
    tip = sweep(np.array([line[-1], line[-1] + (line[-1] - line[-2]) * 0.9]), 0.0062, segments=7)
    end = sweep(np.array([line[0] - (line[1] - line[0]) * 0.25, line[0]]), 0.0055, segments=7)
    return Shape((Piece(sweep(line, sizes, segments=7)), Piece(tip, "bark"), Piece(end, "bark")))


def lemon(rng: Rng) -> Shape:
    r, half = between(rng, 0.026, 0.031), between(rng, 0.038, 0.044)
    profile = curve((0, -half), (r * 0.22, -half * 0.9), (r * 0.6, -half * 0.65), (r, 0), (r * 0.6, half * 0.65), (r * 0.2, half * 0.92), (0, half), count=18)
    return Shape((Piece(lathe(profile).turned(y=90).moved(z=r)),))


def carrot(rng: Rng) -> Shape:
    length, r = between(rng, 0.14, 0.19), between(rng, 0.015, 0.02)
    path = np.stack([np.linspace(0, length, 10), np.zeros(10), np.full(10, r)], 1)
    body = sweep(path, r * np.array([0.75, 1, 0.98, 0.9, 0.8, 0.68, 0.55, 0.42, 0.28, 0.08]))
    pieces = [Piece(body)]
    for angle in np.linspace(-35, 35, 5):
        a = np.radians(angle)
        reach = between(rng, 0.06, 0.085)
        leaf = sweep(smooth([(0.004, 0, r), (-reach * 0.5 * np.cos(a), reach * 0.5 * np.sin(a), r + 0.012), (-reach * np.cos(a), reach * np.sin(a), r)], 6), [0.002, 0.003, 0.006, 0.009, 0.008, 0.002], segments=6)
        pieces.append(Piece(leaf, "leaf"))
    return Shape(tuple(pieces))


def bread(rng: Rng) -> Shape:
    length, wide, high = between(rng, 0.17, 0.22), between(rng, 0.085, 0.1), between(rng, 0.07, 0.09)
    outline = smooth([(-wide * 0.42, 0), (-wide * 0.44, high * 0.55), (-wide * 0.55, high * 0.78), (-wide * 0.3, high), (wide * 0.3, high), (wide * 0.55, high * 0.78), (wide * 0.44, high * 0.55), (wide * 0.42, 0)], 22)
    small = outline * 0.9 + np.array([0, high * 0.04])
    loaf = loft([(polygon(small), 0.0), (polygon(outline), 0.012), (polygon(outline), length - 0.012), (polygon(small), length)])
    loaf = loaf.turned(x=90).moved(y=length / 2)
    cut = extrude(outline * 0.93 + np.array([0, high * 0.03]), 0.002).turned(x=90).moved(y=-length / 2 + 0.0)
    pieces = [Piece(loaf, "body"), Piece(cut, "crumb")]
    if chance(rng, 0.5):
        for spot in (-0.25, 0.0, 0.25):
            pieces.append(Piece(ellipsoid(wide * 0.33, 0.008, 0.004, 12).turned(z=18).moved(y=length * spot, z=high * 0.99), "crumb"))
    return Shape(tuple(pieces))


def rolling_pin(rng: Rng) -> Shape:
    r, half = between(rng, 0.022, 0.03), between(rng, 0.11, 0.14)
    body = cylinder(r, 2 * half, segments=24).turned(y=90).moved(x=-half, z=r)
    pieces = [Piece(body, "body")]
    for side in (1, -1):
        grip = lathe([(0, 0), (0.007, 0), (0.007, 0.012), *curve((0.009, 0.014), (0.013, 0.045), (0.011, 0.075), (0.004, 0.088), count=8), (0, 0.088)], 16)
        pieces.append(Piece(grip.turned(y=90 * side).moved(x=half * side, z=r), "body" if chance(rng, 0.5) else "accent", "handle"))
    return Shape(tuple(pieces))


def funnel(rng: Rng) -> Shape:
    r, h = between(rng, 0.055, 0.07), between(rng, 0.1, 0.13)
    split = between(rng, 0.42, 0.5)
    outside = [(r, 0.0), (r, 0.008), (0.012, h * (1 - split)), (0.008, h)]
    inside = [(0.006, h), (0.010, h * (1 - split)), (r - 0.003, 0.0)]
    return Shape((Piece(lathe([*outside, *inside])),), rests=((0, 0, 0), (0, 118, 0)))


def toaster(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.24, 0.28), between(rng, 0.14, 0.17), between(rng, 0.15, 0.18)
    side = rounded_rectangle(d, h, between(rng, 0.03, 0.055), 6)
    body = loft([(side * 0.95, 0.0), (side, 0.01), (side, w - 0.01), (side * 0.95, w)]).turned(x=90, z=90).moved(x=-w / 2, z=h / 2)
    pieces = [Piece(body)]
    for y in (-d * 0.17, d * 0.17):
        pieces.append(Piece(box(w * 0.66, d * 0.13, 0.003).moved(y=y, z=h - 0.0015), "black"))
        if chance(rng, 0.4):
            slice_outline = rounded_rectangle(w * 0.42, 0.09, 0.02)
            pieces.append(Piece(extrude(slice_outline, 0.014).turned(x=90).moved(y=y + 0.007, z=h - 0.005), "crumb"))
    lever = merge(box(0.012, 0.018, 0.014).moved(x=w / 2 + 0.008, z=h * 0.62))
    pieces += [Piece(lever, "black", "handle"), Piece(box(0.002, 0.008, h * 0.5).moved(x=w / 2, z=h * 0.22), "black"), Piece(cylinder(0.012, 0.01).turned(y=90).moved(x=w / 2, y=-d * 0.28, z=h * 0.3), "steel", "knob")]
    return Shape(tuple(pieces))


def microwave(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.38, 0.44), between(rng, 0.26, 0.31), between(rng, 0.22, 0.26)
    panel = w * between(rng, 0.22, 0.27)
    left, door_w = -w / 2, w - panel
    shell = 0.012
    body = merge(
        box(w, d, shell), box(w, d, shell).moved(z=h - shell), box(shell, d, h).moved(x=-w / 2 + shell / 2),
        box(panel, d, h).moved(x=w / 2 - panel / 2), box(w, shell, h).moved(y=d / 2 - shell / 2),
    )
    cavity = merge(box(door_w - shell, 0.002, h - 2 * shell).moved(x=left + door_w / 2, y=d / 2 - shell - 0.002, z=shell))
    front = -d / 2 - 0.009
    door = box(door_w - 0.004, 0.018, h - 0.006).moved(x=left + door_w / 2, y=front, z=0.003)
    window = box(door_w * 0.72, 0.002, h * 0.62).moved(x=left + door_w * 0.46, y=front - 0.0095, z=h * 0.19)
    grip = sweep(np.array([(left + door_w * 0.93, front - 0.004, h * 0.2), (left + door_w * 0.93, front - 0.03, h * 0.24), (left + door_w * 0.93, front - 0.03, h * 0.76), (left + door_w * 0.93, front - 0.004, h * 0.8)]), 0.0055)
    display = box(panel * 0.7, 0.002, h * 0.13).moved(x=w / 2 - panel / 2, y=-d / 2 - 0.001, z=h * 0.78)
    dial = cylinder(panel * 0.2, 0.014).turned(x=90).moved(x=w / 2 - panel / 2, y=-d / 2, z=h * 0.25)
    buttons = merge(*[box(panel * 0.17, 0.003, h * 0.05).moved(x=w / 2 - panel * (0.28 + 0.22 * column), y=-d / 2 - 0.001, z=h * (0.45 + 0.09 * row)) for row in range(3) for column in range(3)])
    pieces = (
        Piece(body), Piece(cavity, "white"), Piece(door, "body", "door", 0), Piece(window, "darkglass", "door", 0), Piece(grip, "steel", "handle", 0),
        Piece(display, "display"), Piece(dial, "steel", "knob"), Piece(buttons, "grey"),
    )
    return Shape(pieces, (Joint("door", False, (0, 0, -1), (left, -d / 2, 0), 1.7),), faces_camera=True)


def sponge(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.1, 0.12), between(rng, 0.065, 0.075), between(rng, 0.03, 0.038)
    return Shape((Piece(rounded_box(w, d, h * 0.72, 0.012)), Piece(rounded_box(w, d, h * 0.3, 0.012).moved(z=h * 0.7), "scourer")))


def spray_bottle(rng: Rng) -> Shape:
    r, h = between(rng, 0.036, 0.044), between(rng, 0.15, 0.18)
    body = lathe([(0, 0), (r * 0.95, 0), (r, 0.008), (r, h * 0.55), *curve((r, h * 0.55), (r * 0.75, h * 0.8), (0.014, h * 0.95), count=7), (0.014, h)]).scaled(y=0.75)
    collar = cylinder(0.017, 0.022).moved(z=h)
    head = merge(box(0.075, 0.022, 0.028).moved(x=0.012, z=h + 0.034), box(0.03, 0.02, 0.02).moved(x=-0.008, z=h + 0.018))
    nozzle = cylinder(0.008, 0.014).turned(y=90).moved(x=0.049, z=h + 0.05)
    trigger = sweep(smooth([(0.026, 0, h + 0.034), (0.036, 0, h + 0.012), (0.032, 0, h - 0.014)], 7), 0.005, flat=1.5)
    pieces = (Piece(body), Piece(collar, "accent"), Piece(head, "accent"), Piece(nozzle, "white", "spout"), Piece(trigger, "white", "handle"), Piece(lathe([(r * 1.01, h * 0.12), (r * 1.01, h * 0.5)]).scaled(y=0.76), "print"))
    return Shape(pieces)


def paper_roll(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.065), between(rng, 0.2, 0.24)
    hole = r * 0.35
    roll = lathe([(hole, 0), (r, 0), (r, h), (hole, h), (hole, 0)], 28)
    core = lathe([(hole, h * 0.999), (hole * 0.9, h * 1.001), (hole * 0.9, 0.0)], 20)
    return Shape((Piece(roll, "print"), Piece(core, "cardboard")), rests=((0, 0, 0), LYING_X))


def coffee_machine(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.17, 0.2), between(rng, 0.2, 0.23), between(rng, 0.29, 0.33)
    base = rounded_box(w, d, h * 0.09, 0.02)
    column = rounded_box(w, d * 0.42, h, 0.02).moved(y=d * 0.29)
    head = rounded_box(w, d * 0.95, h * 0.24, 0.02).moved(z=h * 0.76)
    jug = vessel([(w * 0.26, 0), (w * 0.34, 0.01), (w * 0.36, h * 0.2), (w * 0.28, h * 0.36), (w * 0.3, h * 0.4)], 0.003).moved(y=-d * 0.14, z=h * 0.1)
    coffee = lathe([(0, 0.001), (w * 0.25, 0.001), (w * 0.345, 0.012), (w * 0.358, h * 0.2), (0, h * 0.2)]).moved(y=-d * 0.14, z=h * 0.1)
    grip = sweep(arc((0, 0), h * 0.12, -90, 90, squash=1.1), 0.007).turned(z=-90).moved(y=-d * 0.14 - w * 0.33, z=h * 0.29)
    filter_part = lathe([(0.012, 0), (w * 0.3, h * 0.14), (0, h * 0.14)]).moved(y=-d * 0.14, z=h * 0.62)
    light = box(w * 0.3, 0.002, h * 0.05).moved(y=-d * 0.475 - 0.001, z=h * 0.86)
    return Shape((Piece(base), Piece(column), Piece(head), Piece(jug, "glass"), Piece(coffee, "coffee"), Piece(grip, "black", "handle"), Piece(filter_part, "black"), Piece(light, "display")), faces_camera=True)


def egg_carton(rng: Rng) -> Shape:
    rows, columns, pitch = 2, int(rng.integers(3, 6)), 0.047
    w, d = columns * pitch + 0.01, rows * pitch + 0.01
    tray = loft([(rounded_rectangle(w * 0.94, d * 0.92, 0.01), 0.0), (rounded_rectangle(w, d, 0.012), 0.036)])
    pieces = [Piece(tray)]
    for row in range(rows):
        for column in range(columns):
            if not chance(rng, 0.12):
                egg = ellipsoid(0.0205, 0.0205, 0.026, 14).moved((column + 0.5) * pitch - w / 2 + 0.005, (row + 0.5) * pitch - d / 2 + 0.005, 0.038)
                pieces.append(Piece(egg, "eggshell"))
    lid = loft([(rounded_rectangle(w, d, 0.012), 0.0), (rounded_rectangle(w * 0.92, d * 0.88, 0.014), 0.03)])
    pieces.append(Piece(lid.turned(x=-75).moved(y=d * 0.55 + 0.008, z=0.03 + d * 0.5), "body", "lid"))
    return Shape(tuple(pieces))


BUILDERS: dict[str, Builder] = {
    "mug": mug, "bowl": bowl, "plate": plate, "bottle": bottle, "wine_glass": wine_glass, "kettle": kettle, "teapot": teapot,
    "frying_pan": frying_pan, "pot": pot, "knife": knife, "fork": fork, "spoon": spoon, "spatula": spatula, "whisk": whisk,
    "cutting_board": cutting_board, "can": can, "carton": carton, "cereal_box": cereal_box, "jar": jar, "apple": apple,
    "banana": banana, "lemon": lemon, "carrot": carrot, "bread": bread, "rolling_pin": rolling_pin, "funnel": funnel,
    "toaster": toaster, "microwave": microwave, "sponge": sponge, "spray_bottle": spray_bottle, "paper_roll": paper_roll,
    "coffee_machine": coffee_machine, "egg_carton": egg_carton,
}
