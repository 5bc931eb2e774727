"""Workshop supplies as procedural shapes: bolt, nut, gear, toolbox, bucket, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    arc, box, circle, cylinder, ellipsoid, extrude, lathe, loft, merge, rounded_rectangle, sweep, vessel,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Joint, Piece, Shape, between, chance

Rng = np.random.Generator


def tape_roll(rng: Rng) -> Shape:
    r, wide = between(rng, 0.042, 0.055), between(rng, 0.022, 0.045)
    hole = r * between(rng, 0.62, 0.72)
    tape = lathe([(hole, 0), (r, 0), (r, wide), (hole, wide)], 30)
    core = lathe([(hole, wide * 1.001), (hole * 0.94, wide * 1.001), (hole * 0.94, 0), (hole, 0)], 24)
    inner = lathe([(hole * 0.94, wide), (hole * 0.94, 0)], 24)
    return Shape((Piece(tape), Piece(merge(core, inner), "cardboard")), rests=((0, 0, 0), (90, 0, 0)))


def bolt(rng: Rng) -> Shape:
    r, length = between(rng, 0.0095, 0.012), between(rng, 0.06, 0.085)
    head = extrude(circle(r * 1.85, count=6), r * 1.25)
    ridges = []
    for step in range(int(length / 0.0042)):
        ridges += [(r, r * 1.25 + step * 0.0042), (r * 0.84, r * 1.25 + step * 0.0042 + 0.0021)]
    shank = lathe([*ridges, (0, r * 1.25 + length)], 16)
    return Shape((Piece(merge(head, shank), "body"),), rests=((0, 0, 0), (0, 90, 0)))


def nut(rng: Rng) -> Shape:
    r = between(rng, 0.021, 0.027)
    high, hole = r * between(rng, 0.75, 0.95), r * 0.56
    outline = circle(r, count=6)
    sides = extrude(outline, high)
    keep = sides.faces[(np.ptp(sides.vertices[sides.faces][:, :, 2], axis=1) > 1e-6)]
    angles = np.linspace(0, 2 * np.pi, 25)
    inner = np.stack([np.cos(angles), np.sin(angles)], 1) * hole
    rim = np.array([_hexagon(angle, r) for angle in angles])
    count = len(angles)
    cap_vertices = np.concatenate([np.c_[rim, np.full(count, high)], np.c_[inner, np.full(count, high)]])
    index = np.arange(count - 1)
    cap_faces = np.concatenate(
        [
            np.stack([index, index + 1, index + count + 1], 1),
            np.stack([index, index + count + 1, index + count], 1),
        ]
    )
    top = type(sides)(cap_vertices, cap_faces.astype(np.int32))
    bottom = type(sides)(cap_vertices * [1, 1, 0], cap_faces[:, ::-1].astype(np.int32))
    tube = lathe([(hole, high), (hole, 0)], 24)
    return Shape(
        (Piece(merge(type(sides)(sides.vertices, keep), top, bottom, tube), "body"),),
        rests=((0, 0, 0), (90, 0, 0)),
    )


def _hexagon(angle: float, radius: float) -> tuple[float, float]:
    within = (angle % (np.pi / 3)) - np.pi / 6
    reach = radius * np.cos(np.pi / 6) / np.cos(within)
    return float(reach * np.cos(angle)), float(reach * np.sin(angle))


def toolbox(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.3, 0.38), between(rng, 0.16, 0.19), between(rng, 0.11, 0.14)
    body = vessel([(1, 0), (1, 1)], 0.05, 4).turned(z=45).scaled(w * 0.7071, d * 0.7071, h)
    lid_h = h * between(rng, 0.35, 0.5)
    roof = loft(
        [
            (rounded_rectangle(w, d, 0.006), 0.0),
            (rounded_rectangle(w, d, 0.006), lid_h * 0.4),
            (rounded_rectangle(w * 0.95, d * 0.5, 0.006), lid_h),
        ]
    ).moved(z=h + 0.002)
    grip = sweep(
        np.array(
            [
                (-w * 0.2, 0, lid_h),
                (-w * 0.19, 0, lid_h + 0.03),
                (-w * 0.1, 0, lid_h + 0.036),
                (w * 0.1, 0, lid_h + 0.036),
                (w * 0.19, 0, lid_h + 0.03),
                (w * 0.2, 0, lid_h),
            ]
        ),
        0.0075,
    ).moved(z=h)
    latches = merge(
        *[box(0.026, 0.008, 0.04).moved(x=w * at, y=-d / 2 - 0.003, z=h - 0.022) for at in (-0.28, 0.28)]
    )
    pieces = (
        Piece(body),
        Piece(roof, "body" if chance(rng, 0.5) else "accent", "lid", 0),
        Piece(grip, "black", "handle", 0),
        Piece(latches, "steel"),
    )
    return Shape(pieces, (Joint("lid", False, (1, 0, 0), (0, d / 2, h), -1.6),), faces_camera=True)


def bucket(rng: Rng) -> Shape:
    r, h = between(rng, 0.1, 0.125), between(rng, 0.19, 0.23)
    body = vessel(
        [(r * 0.76, 0), (r * 0.78, 0.004), (r, h * 0.93), (r * 1.04, h * 0.94), (r * 1.04, h)], 0.004, 32
    )
    up = chance(rng, 0.5)
    bail = sweep(arc((0, 0), r * 1.06, 0, 180, 22, squash=1.0), 0.004, segments=8)
    bail = bail.moved(z=h * 0.95) if up else bail.turned(x=72).moved(z=h * 0.95)
    ears = merge(
        *[
            cylinder(0.012, 0.012, segments=14).turned(y=90 * side).moved(x=side * r * 0.99, z=h * 0.93)
            for side in (1, -1)
        ]
    )
    return Shape((Piece(body), Piece(bail, "steel", "handle"), Piece(ears, "black")))


def gear(rng: Rng) -> Shape:
    r, teeth = between(rng, 0.04, 0.055), int(rng.integers(11, 18))
    high, hole = between(rng, 0.012, 0.02), r * between(rng, 0.2, 0.3)
    angles, radii = [], []
    for tooth in range(teeth):
        base = 2 * np.pi * tooth / teeth
        step = 2 * np.pi / teeth
        angles += [base, base + step * 0.2, base + step * 0.32, base + step * 0.62, base + step * 0.74]
        radii += [r * 0.83, r * 0.83, r, r, r * 0.83]
    outline = np.stack([np.cos(angles) * radii, np.sin(angles) * np.asarray(radii)], 1)
    body = extrude(outline, high)
    hub = lathe([(hole, high + 0.006), (hole * 1.7, high + 0.006), (hole * 1.7, high)][::-1], 22)
    bore = cylinder(hole, 0.001, segments=20).moved(z=high + 0.0055)
    rim = lathe([(r * 0.7, high + 0.0006), (r * 0.66, high + 0.0006)], 26)
    return Shape((Piece(merge(body, hub)), Piece(bore, "black"), Piece(rim, "black")), rests=((0, 0, 0),))


def paint_can(rng: Rng) -> Shape:
    r, h = between(rng, 0.07, 0.085), between(rng, 0.13, 0.16)
    body = lathe([(r, h * 0.05), (r, h * 0.93)])
    ends = merge(
        lathe([(0, 0), (r * 1.02, 0), (r * 1.02, h * 0.05)]),
        lathe([(r * 1.02, h * 0.93), (r * 1.02, h), (r * 0.88, h), (r * 0.86, h * 0.975), (0, h * 0.975)]),
    )
    drip = [lathe([(r * 1.008, h * low), (r * 1.008, h * 0.93)], 40) for low in (0.86,)]
    runs = [
        ellipsoid(0.006, 0.003, h * between(rng, 0.08, 0.18), 10)
        .moved(y=-r)
        .turned(z=float(angle))
        .moved(z=h * 0.84)
        for angle in rng.uniform(0, 360, 5)
    ]
    bail = (
        sweep(arc((0, 0), r * 1.03, 0, 180, 20), 0.0028, segments=7)
        .turned(x=between(rng, 60, 80))
        .moved(z=h * 0.82)
    )
    return Shape(
        (
            Piece(body, "print"),
            Piece(ends, "steel", ""),
            Piece(merge(*drip, *runs), "body"),
            Piece(bail, "steel", "handle"),
        )
    )
