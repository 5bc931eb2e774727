"""Tableware as procedural shapes: mug, plate, bottle, fork, teapot, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    arc, curve, cylinder, ellipsoid, extrude, lathe, rounded_box, rounded_rectangle, smooth, sweep, vessel,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Piece, Shape, between, chance

Rng = np.random.Generator
LYING_X = (0.0, 90.0, 0.0)


def mug(rng: Rng) -> Shape:
    r, h = between(rng, 0.036, 0.046), between(rng, 0.085, 0.11)
    taper = between(rng, 0.82, 1.0)
    body = vessel(
        [(r * taper * 0.92, 0), (r * taper, 0.006), (r * 0.5 * (1 + taper), h * 0.5), (r, h)], 0.0045
    )
    reach = between(rng, 0.026, 0.034)
    loop = arc((r * 0.93, h * 0.52), reach, -100, 100, squash=h * 0.33 / reach)
    handle = sweep(loop, 0.0062, flat=between(rng, 0.9, 1.5))
    return Shape((Piece(body), Piece(handle, "body", "handle")))


def bowl(rng: Rng) -> Shape:
    r, h = between(rng, 0.065, 0.095), between(rng, 0.05, 0.075)
    bulge = between(rng, 0.68, 0.85)
    profile = [
        (r * 0.45, 0),
        (r * 0.45, 0.006),
        *curve((r * 0.5, 0.008), (r * bulge, h * 0.38), (r * 0.95, h * 0.75), (r, h), count=9),
    ]
    return Shape((Piece(vessel(profile, 0.005)),))


def plate(rng: Rng) -> Shape:
    r, h = between(rng, 0.1, 0.135), between(rng, 0.014, 0.022)
    well = between(rng, 0.58, 0.7)
    profile = [(r * well * 0.9, 0), (r * well, 0.004), (r * (well + 0.05), h * 0.7), (r, h)]
    pieces = [Piece(vessel(profile, 0.005, 36))]
    if chance(rng, 0.5):
        pieces.append(
            Piece(
                lathe([(r * 0.9, h * 0.9 + 0.0015), (r * 0.985, h + 0.0015), (r * 0.9, h * 0.9 + 0.001)], 36),
                "accent",
            )
        )
    return Shape(tuple(pieces))


def bottle(rng: Rng) -> Shape:
    r, h = between(rng, 0.03, 0.042), between(rng, 0.23, 0.31)
    neck, shoulder = between(rng, 0.011, 0.0145), between(rng, 0.52, 0.66)
    profile = [
        (0, 0),
        (r * 0.93, 0),
        (r, 0.008),
        (r, h * shoulder),
        *curve(
            (r, h * shoulder),
            (r * 0.8, h * (shoulder + 0.07)),
            (neck * 1.1, h * (shoulder + 0.17)),
            (neck, h * 0.9),
            count=9,
        ),
        (neck, h * 0.95),
    ]
    pieces = [
        Piece(lathe(profile)),
        Piece(cylinder(neck * 1.25, h * 0.065).moved(z=h * 0.94), "accent", "cap"),
    ]
    if chance(rng, 0.75):
        pieces.append(Piece(lathe([(r * 1.015, h * 0.14), (r * 1.015, h * (shoulder - 0.1))]), "print"))
    return Shape(tuple(pieces), rests=((0, 0, 0), LYING_X))


def wine_glass(rng: Rng) -> Shape:
    r, h = between(rng, 0.034, 0.044), between(rng, 0.18, 0.23)
    stem = between(rng, 0.38, 0.48) * h
    foot = [(0, 0), (r * 0.95, 0), (r * 0.95, 0.003), (r * 0.3, 0.007), (0.0045, 0.014), (0.004, stem)]
    cup = curve(
        (0.004, stem),
        (r * 0.75, stem + (h - stem) * 0.16),
        (r * 1.05, stem + (h - stem) * 0.45),
        (r * between(rng, 0.75, 0.95), h),
        count=9,
    )
    rim = [(radius - 0.002, z) for radius, z in reversed(cup) if z > stem + 0.01]
    return Shape((Piece(lathe([*foot, *cup, *rim, (0, stem + 0.006)])),))


def teapot(rng: Rng) -> Shape:
    r = between(rng, 0.06, 0.075)
    h = r * between(rng, 1.35, 1.6)
    body = lathe(
        [
            (0, 0),
            (r * 0.55, 0),
            (r * 0.58, 0.006),
            *curve((r * 0.62, 0.008), (r, h * 0.42), (r * 0.85, h * 0.75), (r * 0.42, h), count=11),
            (0, h),
        ]
    )
    lid = lathe([(r * 0.44, h), (r * 0.4, h + 0.007), (r * 0.12, h + 0.014), (0, h + 0.015)])
    knob = ellipsoid(0.010, 0.010, 0.011).moved(z=h + 0.024)
    loop = arc((-r * 0.86, h * 0.52), r * 0.62, 75, 285, 16)
    handle = sweep(loop, 0.0065)
    spout = sweep(
        smooth(
            [
                (r * 0.75, 0, h * 0.3),
                (r * 1.25, 0, h * 0.42),
                (r * 1.5, 0, h * 0.75),
                (r * 1.75, 0, h * 0.93),
            ],
            11,
        ),
        np.linspace(0.02, 0.008, 11),
    )
    return Shape(
        (
            Piece(body),
            Piece(lid, "body", "lid"),
            Piece(knob, "body", "lid"),
            Piece(handle, "body", "handle"),
            Piece(spout, "body", "spout"),
        )
    )


def knife(rng: Rng) -> Shape:
    blade_length, width = between(rng, 0.15, 0.21), between(rng, 0.028, 0.042)
    edge = smooth(
        [
            (0, 0),
            (blade_length * 0.55, 0.002),
            (blade_length * 0.85, width * 0.3),
            (blade_length, width * 0.9),
        ],
        10,
    )
    blade = extrude(np.concatenate([edge, [(blade_length * 0.97, width), (0, width)]]), 0.003).moved(z=0.008)
    grip_length = between(rng, 0.1, 0.125)
    grip = rounded_box(grip_length, 0.024, 0.02, 0.008).moved(x=-grip_length / 2, y=width - 0.014)
    pieces = [Piece(blade, "steel", "blade"), Piece(grip, "body", "handle")]
    for spot in (0.25, 0.5, 0.75):
        pieces.append(
            Piece(
                cylinder(0.003, 0.0015, segments=10).moved(x=-grip_length * spot, y=width - 0.014, z=0.0195),
                "steel",
                "handle",
            )
        )
    return Shape(tuple(pieces))


def _cutlery_handle(rng: Rng, length: float) -> Piece:
    widths = smooth([(0, 0.0045), (length * 0.4, 0.004), (length * 0.85, 0.0095), (length, 0.004)], 12)
    outline = np.concatenate([np.c_[-widths[:, 0], widths[:, 1]], np.c_[-widths[::-1, 0], -widths[::-1, 1]]])
    return Piece(extrude(outline, 0.0035).moved(z=0.004), "body", "handle")


def fork(rng: Rng) -> Shape:
    length, wide, deep = between(rng, 0.12, 0.15), between(rng, 0.027, 0.033), between(rng, 0.05, 0.062)
    tines = 4 if chance(rng, 0.7) else 3
    base = extrude(
        [
            (-0.004, -0.0045),
            (0.014, -wide / 2),
            (0.028, -wide / 2),
            (0.028, wide / 2),
            (0.014, wide / 2),
            (-0.004, 0.0045),
        ],
        0.0035,
    ).moved(z=0.004)
    pieces = [_cutlery_handle(rng, length), Piece(base, "body")]
    for y in np.linspace(-wide / 2 + 0.0026, wide / 2 - 0.0026, tines):
        tine = sweep(
            smooth([(0.026, y, 0.006), (0.026 + deep * 0.5, y, 0.004), (0.026 + deep, y, 0.01)], 6),
            [0.003, 0.003, 0.0028, 0.0025, 0.002, 0.001],
            segments=6,
        )
        pieces.append(Piece(tine, "body"))
    return Shape(tuple(pieces))


def spoon(rng: Rng) -> Shape:
    length = between(rng, 0.12, 0.15)
    rx, ry = between(rng, 0.03, 0.036), between(rng, 0.021, 0.026)
    bowl_part = (
        vessel([(0.25, 0.0), (0.62, 0.16), (0.86, 0.5), (1.0, 1.0)], 0.06, 20)
        .scaled(rx, ry, 0.012)
        .moved(x=rx * 0.95, z=0.0005)
    )
    return Shape((_cutlery_handle(rng, length), Piece(bowl_part, "body")))


def cutting_board(rng: Rng) -> Shape:
    wide, deep, thick = between(rng, 0.26, 0.34), between(rng, 0.18, 0.22), between(rng, 0.014, 0.022)
    if chance(rng, 0.5):
        outline = rounded_rectangle(wide, deep, 0.03)
        return Shape((Piece(extrude(outline, thick), "print"),))
    outline = np.array(
        [
            (-wide / 2, -deep / 2),
            (wide * 0.4, -deep / 2),
            (wide * 0.5, -deep * 0.15),
            (wide * 0.8, -deep * 0.12),
            (wide * 0.85, 0),
            (wide * 0.8, deep * 0.12),
            (wide * 0.5, deep * 0.15),
            (wide * 0.4, deep / 2),
            (-wide / 2, deep / 2),
        ]
    )
    hole = cylinder(0.009, 0.001, segments=14).moved(x=wide * 0.77, z=thick)
    return Shape((Piece(extrude(outline, thick), "print"), Piece(hole, "black", "handle")))


def jar(rng: Rng) -> Shape:
    r, h = between(rng, 0.037, 0.05), between(rng, 0.09, 0.13)
    fill = lathe(
        [
            (0, 0),
            (r * 0.97, 0),
            (r, 0.008),
            (r, h * 0.72),
            (r * 0.84, h * 0.82),
            (r * 0.84, h * 0.86),
            (0, h * 0.86),
        ]
    )
    lid = cylinder(r * 0.92, h * 0.16).moved(z=h * 0.84)
    pieces = [Piece(fill, "body"), Piece(lid, "accent", "lid")]
    if chance(rng, 0.7):
        pieces.append(Piece(lathe([(r * 1.012, h * 0.2), (r * 1.012, h * 0.6)]), "print"))
    return Shape(tuple(pieces))
