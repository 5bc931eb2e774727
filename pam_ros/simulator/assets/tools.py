"""Tools as procedural shapes, lying flat: hammer, pliers, drill, saw, ..."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.meshes import (  # isort: skip
    box, circle, cylinder, ellipsoid, extrude, lathe, loft, merge, rounded_box, rounded_rectangle, smooth,
    sweep,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Piece, Shape, between, chance

Rng = np.random.Generator


def hammer(rng: Rng) -> Shape:
    length, wide = between(rng, 0.24, 0.3), between(rng, 0.1, 0.125)
    z = 0.018
    path = np.stack([np.linspace(-length, 0.012, 10), np.zeros(10), np.full(10, z)], 1)
    grip = sweep(path, [0.011, 0.0145, 0.015, 0.0145, 0.013, 0.011, 0.010, 0.010, 0.010, 0.010], flat=0.75)
    face = merge(
        cylinder(0.0165, 0.022).turned(x=90).moved(y=wide * 0.5, z=z),
        cylinder(0.012, 0.02, segments=16).turned(x=90).moved(y=wide * 0.5 - 0.02, z=z),
        rounded_box(0.03, 0.042, 0.03, 0.006).moved(y=wide * 0.12, z=z - 0.015),
    )
    if chance(rng, 0.65):  # claw
        prong = smooth([(0, 0), (0.006, -wide * 0.22), (-0.012, -wide * 0.48)], 8)
        outline = np.concatenate([prong + [0.013, 0], (prong * [1, 1.02] - [0.008, 0])[::-1]])
        back = merge(extrude(outline, 0.009).moved(z=z + 0.003), extrude(outline, 0.009).moved(z=z - 0.012))
    else:  # flat peen
        back = (
            loft(
                [
                    (rounded_rectangle(0.026, 0.026, 0.004), 0.0),
                    (rounded_rectangle(0.026, 0.004, 0.001), wide * 0.42),
                ]
            )
            .turned(x=90)
            .moved(y=0.0, z=z)
        )
    return Shape(
        (Piece(grip, "wood" if chance(rng, 0.6) else "body", "handle"), Piece(merge(face, back), "steel"))
    )


def screwdriver(rng: Rng) -> Shape:
    grip, shaft = between(rng, 0.09, 0.11), between(rng, 0.1, 0.14)
    r = between(rng, 0.0135, 0.0165)
    angles = np.arange(24) * 2 * np.pi / 24
    ridge = 1 + 0.07 * np.cos(angles * 6)
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) * ridge[:, None]
    sections = [
        (outline * r * size, grip * place)
        for place, size in (
            (0, 0.55),
            (0.06, 0.95),
            (0.5, 1),
            (0.72, 0.9),
            (0.8, 0.66),
            (0.9, 0.72),
            (1, 0.5),
        )
    ]
    handle = loft(sections).turned(y=90).moved(z=r)
    rod = cylinder(0.0036, shaft, segments=12).turned(y=90).moved(x=grip - 0.002, z=r)
    tip = (
        loft(
            [(rounded_rectangle(0.007, 0.007, 0.002), 0.0), (rounded_rectangle(0.0022, 0.009, 0.0005), 0.012)]
        )
        .turned(y=90)
        .moved(x=grip + shaft - 0.004, z=r)
    )
    pieces = [Piece(handle, "body", "handle"), Piece(merge(rod, tip), "steel")]
    if chance(rng, 0.6):
        pieces.append(
            Piece(cylinder(r * 1.0, grip * 0.12).turned(y=90).moved(x=grip * 0.1, z=r), "black", "handle")
        )
    return Shape(tuple(pieces))


def wrench(rng: Rng) -> Shape:
    length, head = between(rng, 0.17, 0.22), between(rng, 0.021, 0.027)
    thick = 0.009
    jaw = head * 0.52
    turn = np.radians(15)

    def open_end() -> NDArray[np.float64]:
        angles = np.linspace(np.pi * 0.86, -np.pi * 0.86, 22) + np.pi
        around = head * np.stack([np.cos(angles), np.sin(angles)], 1)
        points = np.concatenate(
            [
                around,
                [
                    (head * 0.9, jaw * 0.9),
                    (-head * 0.15, jaw * 0.9),
                    (-head * 0.35, 0),
                    (-head * 0.15, -jaw * 0.9),
                    (head * 0.9, -jaw * 0.9),
                ],
            ]
        )
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return np.asarray(points @ spin.T)

    first = extrude(open_end(), thick).moved(x=length / 2)
    bar = rounded_box(length - head, 0.0145, thick * 0.75, 0.004).moved(z=thick * 0.12)
    if chance(rng, 0.5):
        second = extrude(open_end() * 0.9, thick).turned(z=180).moved(x=-length / 2)
    else:
        ring = [
            (head * 0.55, 0),
            (head * 0.88, 0),
            (head * 0.88, thick),
            (head * 0.55, thick),
            (head * 0.55, 0),
        ]
        second = lathe(ring, 24).moved(x=-length / 2)
    return Shape((Piece(merge(first, bar, second), "body"),))


def pliers(rng: Rng) -> Shape:
    length, spread = between(rng, 0.11, 0.14), between(rng, 0.03, 0.042)
    pieces = []
    for side in (1, -1):
        path = smooth(
            [
                (-0.012, 0.004 * side, 0.011),
                (-0.03, 0.013 * side, 0.011),
                (-length * 0.6, spread * side, 0.011),
                (-length, spread * 0.85 * side, 0.011),
            ],
            12,
        )
        pieces.append(
            Piece(
                sweep(
                    path,
                    [
                        0.006,
                        0.007,
                        0.0085,
                        0.009,
                        0.0092,
                        0.0092,
                        0.0092,
                        0.0092,
                        0.0092,
                        0.0092,
                        0.009,
                        0.006,
                    ],
                    flat=1.1,
                ),
                "body",
                "handle",
            )
        )
        nose = smooth([(-0.018, 0.013), (0.0, 0.019), (0.02, 0.014), (0.062, 0.006), (0.066, 0.001)], 12)
        outline = np.concatenate(
            [nose, [(0.02, 0.001), (0.016, 0.004), (0.006, 0.004), (-0.006, -0.008)]]
        ) * [1, side]
        pieces.append(Piece(extrude(outline, 0.011).moved(z=0.0055), "steel"))
    pieces.append(Piece(cylinder(0.0085, 0.015, segments=18).moved(z=0.004), "steel"))
    return Shape(tuple(pieces))


def saw(rng: Rng) -> Shape:
    length, high, low = between(rng, 0.28, 0.34), between(rng, 0.085, 0.105), between(rng, 0.04, 0.05)
    teeth = int(length / 0.009)
    xs = np.linspace(0, length, 2 * teeth + 1)
    edge = np.stack([xs, np.where(np.arange(len(xs)) % 2, 0.0055, 0.0)], 1)
    blade = extrude(np.concatenate([edge, [(length, low), (0, high)]]), 0.0025).moved(z=0.009)
    outer = smooth(
        [
            (0.02, high * 1.05),
            (-0.05, high * 1.12),
            (-0.105, high * 0.98),
            (-0.085, high * 0.5),
            (-0.105, -0.005),
            (-0.05, -0.012),
            (0.018, 0.005),
            (0.03, high * 0.5),
            (0.02, high * 1.05),
        ],
        36,
    )[:-1]
    ring = []
    for side in (0.0, 0.02):
        ring.append(np.c_[outer, np.full(len(outer), side)])
    hole = circle(0.019, high * 0.3, 36) + [-0.048, high * 0.52]
    start = int(np.argmin(np.linalg.norm(hole - outer[0], axis=1)))
    hole = np.roll(hole, -start, axis=0)
    keyhole = np.concatenate([outer, outer[:1] + [0.0, 1e-4], (hole[:1] + [0.0, 1e-4]), hole[::-1]])
    grip = extrude(keyhole, 0.02)
    screws = merge(*[cylinder(0.0055, 0.0215, segments=12).moved(x=0.012, y=high * at) for at in (0.3, 0.7)])
    return Shape(
        (
            Piece(blade, "steel", "blade"),
            Piece(grip, "wood" if chance(rng, 0.6) else "body", "handle"),
            Piece(screws, "steel", "handle"),
        )
    )


def drill(rng: Rng) -> Shape:
    r, length = between(rng, 0.03, 0.036), between(rng, 0.13, 0.16)
    z = 0.17
    barrel = (
        lathe([(0, 0), (r * 0.75, 0), (r, 0.015), (r, length * 0.7), (r * 0.8, length), (0, length)])
        .turned(y=90)
        .moved(x=-length * 0.5, z=z)
    )
    chuck = (
        lathe([(0, 0), (0.02, 0), (0.021, 0.02), (0.01, 0.042), (0, 0.042)], 16)
        .turned(y=90)
        .moved(x=length * 0.5, z=z)
    )
    bit = cylinder(0.0035, 0.075, segments=10).turned(y=90).moved(x=length * 0.5 + 0.04, z=z)
    grip = sweep(
        smooth(
            [(-length * 0.22, 0, z - r * 0.5), (-length * 0.26, 0, z * 0.6), (-length * 0.3, 0, 0.035)], 8
        ),
        [0.023, 0.02, 0.0185, 0.018, 0.018, 0.0185, 0.02, 0.022],
        flat=0.8,
    )
    trigger = box(0.014, 0.014, 0.03).moved(x=-length * 0.22 + 0.027, z=z * 0.62)
    battery = rounded_box(0.11, 0.065, 0.045, 0.012).moved(x=-length * 0.22)
    band = lathe([(r * 1.02, 0), (r * 1.02, 0.016)]).turned(y=90).moved(x=length * 0.05, z=z)
    pieces = (
        Piece(barrel),
        Piece(chuck, "black"),
        Piece(bit, "steel"),
        Piece(grip, "body", "handle"),
        Piece(trigger, "black"),
        Piece(battery, "black"),
        Piece(band, "black"),
    )
    return Shape(pieces, rests=((0, 0, 0), (90, 0, 0)))


def paintbrush(rng: Rng) -> Shape:
    wide, hair = between(rng, 0.04, 0.06), between(rng, 0.045, 0.06)
    bristle = (
        loft(
            [
                (rounded_rectangle(wide, 0.016, 0.005), 0.0),
                (rounded_rectangle(wide * 1.04, 0.017, 0.005), hair * 0.6),
                (rounded_rectangle(wide * 0.97, 0.008, 0.003), hair),
            ]
        )
        .turned(y=90)
        .turned(x=90)
        .moved(x=0.018, z=0.01)
    )
    band = rounded_box(0.036, wide * 1.02, 0.019, 0.004).moved(z=0.0005)
    half = smooth(
        [
            (-0.018, wide * 0.46),
            (-0.045, wide * 0.3),
            (-0.06, 0.0095),
            (-0.1, 0.012),
            (-0.14, 0.0125),
            (-0.155, 0.004),
        ],
        14,
    )
    grip = extrude(np.concatenate([half, half[::-1] * [1, -1]]), 0.013).moved(z=0.0035)
    return Shape((Piece(bristle, "bristle"), Piece(band, "steel"), Piece(grip, "body", "handle")))


def flashlight(rng: Rng) -> Shape:
    r, length = between(rng, 0.0135, 0.017), between(rng, 0.12, 0.16)
    head = between(rng, 1.55, 1.9)
    profile = [
        (0, 0),
        (r * 0.9, 0),
        (r, 0.004),
        (r, length * 0.62),
        (r * head, length * 0.8),
        (r * head, length),
        (r * head * 0.85, length),
        (r * head * 0.6, length - 0.008),
    ]
    body = lathe(profile, 22).turned(y=90).moved(z=r * head)
    lens = lathe([(r * head * 0.86, length - 0.001), (0, length + 0.002)], 22).turned(y=90).moved(z=r * head)
    bands = merge(
        *[
            lathe([(r * 1.05, length * at), (r * 1.05, length * at + 0.006)], 20)
            .turned(y=90)
            .moved(z=r * head)
            for at in (0.08, 0.2, 0.32)
        ]
    )
    button = ellipsoid(0.008, 0.006, 0.004, 12).moved(x=length * 0.5, z=r * head + r)
    return Shape((Piece(body), Piece(lens, "lamp"), Piece(bands, "black"), Piece(button, "red")))


def ruler(rng: Rng) -> Shape:
    return Shape((Piece(box(between(rng, 0.22, 0.3), between(rng, 0.03, 0.038), 0.003), "print"),))


def clamp(rng: Rng) -> Shape:
    """A C-clamp lying flat."""
    wide, deep, z = between(rng, 0.075, 0.1), between(rng, 0.055, 0.07), 0.013
    frame = np.array(
        [
            (wide / 2, -deep * 0.45),
            (wide / 2, deep * 0.35),
            (wide * 0.36, deep * 0.5),
            (-wide * 0.36, deep * 0.5),
            (-wide / 2, deep * 0.35),
            (-wide / 2, -deep * 0.45),
        ]
    )
    inner = frame * [0.74, 0.72]
    body = extrude(np.concatenate([frame, inner[::-1]]), 0.02).moved(z=z - 0.01)
    boss = rounded_box(wide * 0.2, 0.026, 0.025, 0.005).moved(x=wide * 0.43, y=-deep * 0.4, z=z - 0.0125)
    screw = cylinder(0.0055, wide * 0.95, segments=12).turned(y=90).moved(x=-wide * 0.05, y=-deep * 0.4, z=z)
    pad = cylinder(0.013, 0.008).turned(y=90).moved(x=-wide * 0.1, y=-deep * 0.4, z=z)
    bar = cylinder(0.0035, 0.07, segments=10).turned(x=90).moved(x=wide * 0.85, y=-deep * 0.4 + 0.035, z=z)
    return Shape((Piece(merge(body, boss)), Piece(merge(screw, pad), "steel"), Piece(bar, "steel", "handle")))
