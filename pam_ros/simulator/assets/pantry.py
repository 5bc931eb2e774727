"""Food, packets and cleaning supplies as procedural shapes: can, apple, bread, sponge, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    arc, box, curve, cylinder, ellipsoid, extrude, lathe, loft, merge, polygon, rounded_box,
    rounded_rectangle, smooth, sweep,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Piece, Shape, between, chance

Rng = np.random.Generator
LYING_X = (0.0, 90.0, 0.0)


def can(rng: Rng) -> Shape:
    if chance(rng, 0.5):
        r, h = between(rng, 0.031, 0.035), between(rng, 0.105, 0.13)
    else:
        r, h = between(rng, 0.036, 0.048), between(rng, 0.085, 0.12)
    neck = between(rng, 0.82, 0.98)
    body = lathe([(r, h * 0.04), (r, h * 0.93)])
    ends = merge(
        lathe([(0, 0.002), (r * 0.85, 0.002), (r * 0.88, 0), (r, h * 0.04)]),
        lathe(
            [
                (r, h * 0.93),
                (r * neck, h * 0.985),
                (r * neck, h),
                (r * neck * 0.93, h),
                (r * neck * 0.93, h * 0.97),
                (0, h * 0.97),
            ]
        ),
    )
    tab = box(0.022, 0.012, 0.0015).moved(x=0.004, z=h * 0.975)
    return Shape(
        (Piece(body, "print"), Piece(ends, "steel"), Piece(tab, "steel")), rests=((0, 0, 0), LYING_X)
    )


def carton(rng: Rng) -> Shape:
    w, h = between(rng, 0.062, 0.075), between(rng, 0.15, 0.19)
    body = box(w, w, h)
    ridge = h * between(rng, 0.2, 0.25)
    roof = (
        extrude([(-w / 2, h), (w / 2, h), (0.002, h + ridge), (-0.002, h + ridge)], w)
        .turned(x=90)
        .moved(y=w / 2)
    )
    fin = box(0.004, w, 0.016).moved(z=h + ridge - 0.002)
    pieces = [Piece(body, "print"), Piece(roof, "body"), Piece(fin, "white")]
    if chance(rng, 0.7):
        cap = cylinder(0.014, 0.012).turned(y=40).moved(x=w * 0.24, z=h + ridge * 0.55)
        pieces.append(Piece(cap, "accent", "cap"))
    return Shape(tuple(pieces), rests=((0, 0, 0),))


def cereal_box(rng: Rng) -> Shape:
    return Shape(
        (Piece(box(between(rng, 0.17, 0.2), between(rng, 0.055, 0.07), between(rng, 0.25, 0.3)), "print"),),
        faces_camera=True,
    )


def apple(rng: Rng) -> Shape:
    r = between(rng, 0.036, 0.043)
    profile = curve(
        (0, 0.16 * r),
        (r * 0.4, 0.02 * r),
        (r * 0.86, r * 0.6),
        (r, r * 1.2),
        (r * 0.72, r * 1.75),
        (r * 0.28, r * 1.78),
        (0, r * 1.5),
        count=18,
    )
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
    profile = curve(
        (0, -half),
        (r * 0.22, -half * 0.9),
        (r * 0.6, -half * 0.65),
        (r, 0),
        (r * 0.6, half * 0.65),
        (r * 0.2, half * 0.92),
        (0, half),
        count=18,
    )
    return Shape((Piece(lathe(profile).turned(y=90).moved(z=r)),))


def carrot(rng: Rng) -> Shape:
    length, r = between(rng, 0.14, 0.19), between(rng, 0.015, 0.02)
    path = np.stack([np.linspace(0, length, 10), np.zeros(10), np.full(10, r)], 1)
    body = sweep(path, r * np.array([0.75, 1, 0.98, 0.9, 0.8, 0.68, 0.55, 0.42, 0.28, 0.08]))
    pieces = [Piece(body)]
    for angle in np.linspace(-35, 35, 5):
        a = np.radians(angle)
        reach = between(rng, 0.06, 0.085)
        leaf = sweep(
            smooth(
                [
                    (0.004, 0, r),
                    (-reach * 0.5 * np.cos(a), reach * 0.5 * np.sin(a), r + 0.012),
                    (-reach * np.cos(a), reach * np.sin(a), r),
                ],
                6,
            ),
            [0.002, 0.003, 0.006, 0.009, 0.008, 0.002],
            segments=6,
        )
        pieces.append(Piece(leaf, "leaf"))
    return Shape(tuple(pieces))


def bread(rng: Rng) -> Shape:
    length, wide, high = between(rng, 0.17, 0.22), between(rng, 0.085, 0.1), between(rng, 0.07, 0.09)
    outline = smooth(
        [
            (-wide * 0.42, 0),
            (-wide * 0.44, high * 0.55),
            (-wide * 0.55, high * 0.78),
            (-wide * 0.3, high),
            (wide * 0.3, high),
            (wide * 0.55, high * 0.78),
            (wide * 0.44, high * 0.55),
            (wide * 0.42, 0),
        ],
        22,
    )
    small = outline * 0.9 + np.array([0, high * 0.04])
    loaf = loft(
        [
            (polygon(small), 0.0),
            (polygon(outline), 0.012),
            (polygon(outline), length - 0.012),
            (polygon(small), length),
        ]
    )
    loaf = loaf.turned(x=90).moved(y=length / 2)
    cut = extrude(outline * 0.93 + np.array([0, high * 0.03]), 0.002).turned(x=90).moved(y=-length / 2 + 0.0)
    pieces = [Piece(loaf, "body"), Piece(cut, "crumb")]
    if chance(rng, 0.5):
        for spot in (-0.25, 0.0, 0.25):
            pieces.append(
                Piece(
                    ellipsoid(wide * 0.33, 0.008, 0.004, 12)
                    .turned(z=18)
                    .moved(y=length * spot, z=high * 0.99),
                    "crumb",
                )
            )
    return Shape(tuple(pieces))


def sponge(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.1, 0.12), between(rng, 0.065, 0.075), between(rng, 0.03, 0.038)
    return Shape(
        (
            Piece(rounded_box(w, d, h * 0.72, 0.012)),
            Piece(rounded_box(w, d, h * 0.3, 0.012).moved(z=h * 0.7), "scourer"),
        )
    )


def spray_bottle(rng: Rng) -> Shape:
    r, h = between(rng, 0.036, 0.044), between(rng, 0.15, 0.18)
    body = lathe(
        [
            (0, 0),
            (r * 0.95, 0),
            (r, 0.008),
            (r, h * 0.55),
            *curve((r, h * 0.55), (r * 0.75, h * 0.8), (0.014, h * 0.95), count=7),
            (0.014, h),
        ]
    ).scaled(y=0.75)
    collar = cylinder(0.017, 0.022).moved(z=h)
    head = merge(
        box(0.075, 0.022, 0.028).moved(x=0.012, z=h + 0.034),
        box(0.03, 0.02, 0.02).moved(x=-0.008, z=h + 0.018),
    )
    nozzle = cylinder(0.008, 0.014).turned(y=90).moved(x=0.049, z=h + 0.05)
    trigger = sweep(
        smooth([(0.026, 0, h + 0.034), (0.036, 0, h + 0.012), (0.032, 0, h - 0.014)], 7), 0.005, flat=1.5
    )
    pieces = (
        Piece(body),
        Piece(collar, "accent"),
        Piece(head, "accent"),
        Piece(nozzle, "white", "spout"),
        Piece(trigger, "white", "handle"),
        Piece(lathe([(r * 1.01, h * 0.12), (r * 1.01, h * 0.5)]).scaled(y=0.76), "print"),
    )
    return Shape(pieces)


def paper_roll(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.065), between(rng, 0.2, 0.24)
    hole = r * 0.35
    roll = lathe([(hole, 0), (r, 0), (r, h), (hole, h), (hole, 0)], 28)
    core = lathe([(hole, h * 0.999), (hole * 0.9, h * 1.001), (hole * 0.9, 0.0)], 20)
    return Shape((Piece(roll, "print"), Piece(core, "cardboard")), rests=((0, 0, 0), LYING_X))


def egg_carton(rng: Rng) -> Shape:
    rows, columns, pitch = 2, int(rng.integers(3, 6)), 0.047
    w, d = columns * pitch + 0.01, rows * pitch + 0.01
    tray = loft([(rounded_rectangle(w * 0.94, d * 0.92, 0.01), 0.0), (rounded_rectangle(w, d, 0.012), 0.036)])
    pieces = [Piece(tray)]
    for row in range(rows):
        for column in range(columns):
            if not chance(rng, 0.12):
                egg = ellipsoid(0.0205, 0.0205, 0.026, 14).moved(
                    (column + 0.5) * pitch - w / 2 + 0.005, (row + 0.5) * pitch - d / 2 + 0.005, 0.038
                )
                pieces.append(Piece(egg, "eggshell"))
    lid = loft([(rounded_rectangle(w, d, 0.012), 0.0), (rounded_rectangle(w * 0.92, d * 0.88, 0.014), 0.03)])
    pieces.append(Piece(lid.turned(x=-75).moved(y=d * 0.55 + 0.008, z=0.03 + d * 0.5), "body", "lid"))
    return Shape(tuple(pieces))
