"""Cookware as procedural shapes: kettle, pan, whisk, toaster, microwave, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    arc, box, curve, cylinder, ellipsoid, extrude, lathe, loft, merge, rounded_box, rounded_rectangle,
    smooth, sweep, vessel,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Joint, Piece, Shape, between, chance

Rng = np.random.Generator
LYING_X = (0.0, 90.0, 0.0)


def kettle(rng: Rng) -> Shape:
    r, h = between(rng, 0.075, 0.095), between(rng, 0.1, 0.14)
    top = between(rng, 0.42, 0.6)
    body = lathe(
        [
            (0, 0),
            (r * 0.96, 0),
            (r, 0.008),
            *curve(
                (r, 0.02),
                (r * between(rng, 0.9, 1.0), h * 0.5),
                (r * top * 1.15, h * 0.93),
                (r * top, h),
                count=10,
            ),
            (0, h),
        ]
    )
    lid = merge(
        lathe([(r * top * 0.95, h), (r * top * 0.9, h + 0.006), (r * 0.12, h + 0.016), (0, h + 0.017)])
    )
    knob = ellipsoid(0.011, 0.011, 0.012).moved(z=h + 0.026)
    reach = r * between(rng, 0.85, 1.0)
    grip = sweep(arc((0, h * 0.82), reach, 12, 168, 18, squash=between(rng, 1.0, 1.25)), 0.0075, flat=1.25)
    mouth = between(rng, 0.85, 1.0) * h
    spout = sweep(
        smooth([(r * 0.8, 0, h * 0.4), (r * 1.2, 0, h * 0.55), (r * 1.5, 0, mouth)], 9),
        np.linspace(0.021, 0.010, 9),
    )
    return Shape(
        (
            Piece(body),
            Piece(lid, "body", "lid"),
            Piece(knob, "black", "lid"),
            Piece(grip, "black", "handle"),
            Piece(spout, "body", "spout"),
        )
    )


def frying_pan(rng: Rng) -> Shape:
    r, h = between(rng, 0.1, 0.13), between(rng, 0.035, 0.048)
    body = vessel([(r * 0.78, 0), (r * 0.82, 0.003), (r * 0.94, h * 0.5), (r, h)], 0.004, 36)
    length = between(rng, 0.15, 0.19)
    handle = sweep(
        smooth([(r * 0.94, 0, h * 0.8), (r + 0.04, 0, h + 0.012), (r + length, 0, h + 0.025)], 8),
        np.array([0.006, 0.008, 0.01, 0.011, 0.012, 0.012, 0.012, 0.008]),
        flat=1.4,
    )
    return Shape((Piece(body), Piece(handle, "wood" if chance(rng, 0.4) else "black", "handle")))


def pot(rng: Rng) -> Shape:
    r, h = between(rng, 0.085, 0.115), between(rng, 0.1, 0.14)
    body = vessel([(r * 0.97, 0), (r, 0.006), (r, h)], 0.004, 32)
    pieces = [Piece(body)]
    for side in (0.0, 180.0):
        ear = sweep(
            np.stack(
                [
                    np.full(10, r) + 0.03 * np.sin(np.linspace(0, np.pi, 10)),
                    np.linspace(-0.03, 0.03, 10),
                    np.full(10, h * 0.8),
                ],
                1,
            ),
            0.006,
        )
        pieces.append(Piece(ear.turned(z=side), "black", "handle"))
    lid = lathe(
        [
            (0, h - 0.004),
            (r * 0.99, h - 0.004),
            (r * 1.02, h),
            (r * 1.02, h + 0.004),
            *curve((r * 0.95, h + 0.008), (r * 0.6, h + 0.022), (0.008, h + 0.028), count=6),
            (0, h + 0.028),
        ],
        32,
    )
    knob = merge(cylinder(0.006, 0.014).moved(z=h + 0.026), ellipsoid(0.016, 0.016, 0.009).moved(z=h + 0.045))
    pieces += [Piece(lid, "steel" if chance(rng, 0.4) else "body", "lid", 0), Piece(knob, "black", "lid", 0)]
    hinge = Joint("lid", False, (0, 1, 0), (-r * 1.02, 0, h), -1.5)
    return Shape(tuple(pieces), (hinge,))


def spatula(rng: Rng) -> Shape:
    wide, deep = between(rng, 0.07, 0.09), between(rng, 0.09, 0.11)
    pieces = []
    bars = 4 if chance(rng, 0.7) else 1
    strip = wide / bars
    for index in range(bars):
        pieces.append(
            Piece(
                box(deep * 0.72, strip * (0.62 if bars > 1 else 1), 0.003).moved(
                    x=deep * 0.5, y=-wide / 2 + strip * (index + 0.5), z=0.001
                )
            )
        )
    if bars > 1:
        pieces.append(Piece(box(deep * 0.16, wide, 0.003).moved(x=deep * 0.93, z=0.001)))
    pieces.append(
        Piece(
            extrude(
                [(-0.01, -0.008), (deep * 0.18, -wide / 2), (deep * 0.18, wide / 2), (-0.01, 0.008)], 0.003
            ).moved(z=0.001)
        )
    )
    length = between(rng, 0.19, 0.23)
    neck = sweep(
        smooth([(0, 0, 0.004), (-0.04, 0, 0.02), (-length, 0, 0.028)], 9),
        [0.004, 0.004, 0.004, 0.005, 0.008, 0.009, 0.009, 0.009, 0.007],
        flat=1.5,
    )
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
    grip = sweep(
        np.stack([np.linspace(0.01, -0.12, 8), np.zeros(8), np.full(8, wide)], 1),
        [0.007, 0.009, 0.009, 0.01, 0.011, 0.012, 0.011, 0.007],
    )
    pieces.append(Piece(grip, "body", "handle"))
    return Shape(tuple(pieces))


def rolling_pin(rng: Rng) -> Shape:
    r, half = between(rng, 0.022, 0.03), between(rng, 0.11, 0.14)
    body = cylinder(r, 2 * half, segments=24).turned(y=90).moved(x=-half, z=r)
    pieces = [Piece(body, "body")]
    for side in (1, -1):
        grip = lathe(
            [
                (0, 0),
                (0.007, 0),
                (0.007, 0.012),
                *curve((0.009, 0.014), (0.013, 0.045), (0.011, 0.075), (0.004, 0.088), count=8),
                (0, 0.088),
            ],
            16,
        )
        pieces.append(
            Piece(
                grip.turned(y=90 * side).moved(x=half * side, z=r),
                "body" if chance(rng, 0.5) else "accent",
                "handle",
            )
        )
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
    body = (
        loft([(side * 0.95, 0.0), (side, 0.01), (side, w - 0.01), (side * 0.95, w)])
        .turned(x=90, z=90)
        .moved(x=-w / 2, z=h / 2)
    )
    pieces = [Piece(body)]
    for y in (-d * 0.17, d * 0.17):
        pieces.append(Piece(box(w * 0.66, d * 0.13, 0.003).moved(y=y, z=h - 0.0015), "black"))
        if chance(rng, 0.4):
            slice_outline = rounded_rectangle(w * 0.42, 0.09, 0.02)
            pieces.append(
                Piece(extrude(slice_outline, 0.014).turned(x=90).moved(y=y + 0.007, z=h - 0.005), "crumb")
            )
    lever = merge(box(0.012, 0.018, 0.014).moved(x=w / 2 + 0.008, z=h * 0.62))
    pieces += [
        Piece(lever, "black", "handle"),
        Piece(box(0.002, 0.008, h * 0.5).moved(x=w / 2, z=h * 0.22), "black"),
        Piece(cylinder(0.012, 0.01).turned(y=90).moved(x=w / 2, y=-d * 0.28, z=h * 0.3), "steel", "knob"),
    ]
    return Shape(tuple(pieces))


def microwave(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.38, 0.44), between(rng, 0.26, 0.31), between(rng, 0.22, 0.26)
    panel = w * between(rng, 0.22, 0.27)
    left, door_w = -w / 2, w - panel
    shell = 0.012
    body = merge(
        box(w, d, shell),
        box(w, d, shell).moved(z=h - shell),
        box(shell, d, h).moved(x=-w / 2 + shell / 2),
        box(panel, d, h).moved(x=w / 2 - panel / 2),
        box(w, shell, h).moved(y=d / 2 - shell / 2),
    )
    cavity = merge(
        box(door_w - shell, 0.002, h - 2 * shell).moved(x=left + door_w / 2, y=d / 2 - shell - 0.002, z=shell)
    )
    front = -d / 2 - 0.009
    door = box(door_w - 0.004, 0.018, h - 0.006).moved(x=left + door_w / 2, y=front, z=0.003)
    window = box(door_w * 0.72, 0.002, h * 0.62).moved(x=left + door_w * 0.46, y=front - 0.0095, z=h * 0.19)
    grip = sweep(
        np.array(
            [
                (left + door_w * 0.93, front - 0.004, h * 0.2),
                (left + door_w * 0.93, front - 0.03, h * 0.24),
                (left + door_w * 0.93, front - 0.03, h * 0.76),
                (left + door_w * 0.93, front - 0.004, h * 0.8),
            ]
        ),
        0.0055,
    )
    display = box(panel * 0.7, 0.002, h * 0.13).moved(x=w / 2 - panel / 2, y=-d / 2 - 0.001, z=h * 0.78)
    dial = cylinder(panel * 0.2, 0.014).turned(x=90).moved(x=w / 2 - panel / 2, y=-d / 2, z=h * 0.25)
    buttons = merge(
        *[
            box(panel * 0.17, 0.003, h * 0.05).moved(
                x=w / 2 - panel * (0.28 + 0.22 * column), y=-d / 2 - 0.001, z=h * (0.45 + 0.09 * row)
            )
            for row in range(3)
            for column in range(3)
        ]
    )
    pieces = (
        Piece(body),
        Piece(cavity, "white"),
        Piece(door, "body", "door", 0),
        Piece(window, "darkglass", "door", 0),
        Piece(grip, "steel", "handle", 0),
        Piece(display, "display"),
        Piece(dial, "steel", "knob"),
        Piece(buttons, "grey"),
    )
    return Shape(pieces, (Joint("door", False, (0, 0, -1), (left, -d / 2, 0), 1.7),), faces_camera=True)


def coffee_machine(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.17, 0.2), between(rng, 0.2, 0.23), between(rng, 0.29, 0.33)
    base = rounded_box(w, d, h * 0.09, 0.02)
    column = rounded_box(w, d * 0.42, h, 0.02).moved(y=d * 0.29)
    head = rounded_box(w, d * 0.95, h * 0.24, 0.02).moved(z=h * 0.76)
    jug = vessel(
        [(w * 0.26, 0), (w * 0.34, 0.01), (w * 0.36, h * 0.2), (w * 0.28, h * 0.36), (w * 0.3, h * 0.4)],
        0.003,
    ).moved(y=-d * 0.14, z=h * 0.1)
    coffee = lathe(
        [(0, 0.001), (w * 0.25, 0.001), (w * 0.345, 0.012), (w * 0.358, h * 0.2), (0, h * 0.2)]
    ).moved(y=-d * 0.14, z=h * 0.1)
    grip = (
        sweep(arc((0, 0), h * 0.12, -90, 90, squash=1.1), 0.007)
        .turned(z=-90)
        .moved(y=-d * 0.14 - w * 0.33, z=h * 0.29)
    )
    filter_part = lathe([(0.012, 0), (w * 0.3, h * 0.14), (0, h * 0.14)]).moved(y=-d * 0.14, z=h * 0.62)
    light = box(w * 0.3, 0.002, h * 0.05).moved(y=-d * 0.475 - 0.001, z=h * 0.86)
    return Shape(
        (
            Piece(base),
            Piece(column),
            Piece(head),
            Piece(jug, "glass"),
            Piece(coffee, "coffee"),
            Piece(grip, "black", "handle"),
            Piece(filter_part, "black"),
            Piece(light, "display"),
        ),
        faces_camera=True,
    )
