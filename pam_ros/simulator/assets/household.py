"""Household objects as procedural shapes: box, ball, plant, basket, drawer unit, ..."""

from __future__ import annotations

import numpy as np

from pam_ros.simulator.assets.meshes import (  # isort: skip
    Mesh, arc, box, circle, curve, cylinder, ellipsoid, extrude, lathe, merge, smooth, sweep, vessel,
)  # fmt: skip
from pam_ros.simulator.assets.parts import Joint, Piece, Shape, between, chance

Rng = np.random.Generator


def cardboard_box(rng: Rng) -> Shape:
    w, d, h = between(rng, 0.16, 0.26), between(rng, 0.13, 0.2), between(rng, 0.1, 0.17)
    body = vessel([(1, 0), (1, 1)], 0.03, 4).turned(z=45).scaled(w * 0.7071, d * 0.7071, h)
    pieces = [Piece(body, "cardboard")]
    if chance(rng, 0.5):
        pieces.append(Piece(box(w, d, 0.004).moved(z=h - 0.002), "cardboard"))
        pieces.append(Piece(box(w * 1.003, 0.045, 0.002).moved(z=h + 0.0022), "tape"))
        pieces.append(Piece(box(w * 1.006, 0.045, h * 0.3).moved(z=h * 0.7), "tape"))
    else:
        for side in (1, -1):
            flap = (
                box(w * 0.98, d * 0.45, 0.003)
                .moved(y=d * 0.225)
                .turned(x=between(rng, -50, -10))
                .moved(y=d / 2, z=h)
            )
            pieces.append(Piece(flap if side > 0 else flap.turned(z=180), "cardboard"))
    return Shape(tuple(pieces))


def ball(rng: Rng) -> Shape:
    r = between(rng, 0.045, 0.07)
    sphere = ellipsoid(r, r, r, 28).turned(x=between(rng, 0, 180), y=between(rng, 0, 180)).moved(z=r)
    return Shape((Piece(sphere, "print"),))


def candle(rng: Rng) -> Shape:
    r, h = between(rng, 0.022, 0.032), between(rng, 0.08, 0.14)
    wax = lathe(
        [(0, 0.008), (r, 0.008), (r, h), (r * 0.86, h + 0.002), (r * 0.6, h - 0.004), (0, h - 0.005)], 24
    )
    wick = sweep(
        smooth([(0, 0, h - 0.006), (0.001, 0, h + 0.006), (0.003, 0, h + 0.012)], 4), 0.0013, segments=6
    )
    pieces = [Piece(wax), Piece(wick, "black")]
    if chance(rng, 0.7):
        flame = lathe([(0, h + 0.008), (0.006, h + 0.017), (0.0045, h + 0.026), (0, h + 0.04)], 10).moved(
            x=0.003
        )
        pieces.append(Piece(flame, "flame"))
    if chance(rng, 0.7):
        dish = vessel([(r * 1.5, 0), (r * 1.75, 0.006), (r * 1.9, 0.016)], 0.003)
        pieces.append(Piece(dish, "accent"))
    else:
        pieces = [Piece(piece.mesh.moved(z=-0.008), piece.slot) for piece in pieces]
    return Shape(tuple(pieces))


def plant(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.07), between(rng, 0.085, 0.115)
    pot = vessel(
        [(r * 0.7, 0), (r * 0.72, 0.004), (r * 0.95, h * 0.8), (r * 1.05, h * 0.8), (r * 1.08, h)], 0.006
    )
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
        leaves.append(
            one.turned(y=-(90 - lean if style != 2 else between(rng, 20, 90)), z=angle).moved(z=h * 0.9)
        )
    return Shape((*pieces, Piece(merge(*leaves), "leaf", "leaf")))


def basket(rng: Rng) -> Shape:
    rx, ry, h = between(rng, 0.12, 0.15), between(rng, 0.09, 0.11), between(rng, 0.09, 0.12)
    rows = 7
    pieces: list[Mesh] = []
    for row in range(rows + 1):
        grow = 0.82 + 0.18 * row / rows
        angles = np.linspace(0, 2 * np.pi, 33)
        wave = 0.0022 * np.cos(angles * 16 + np.pi * (row % 2))
        ring = np.stack(
            [
                (rx * grow + wave) * np.cos(angles),
                (ry * grow + wave) * np.sin(angles),
                np.full(33, 0.008 + (h - 0.01) * row / rows),
            ],
            1,
        )
        pieces.append(sweep(ring, 0.0078 if row < rows else 0.009, segments=6))
    floor = extrude(circle(rx * 0.82, ry * 0.82, 28), 0.005)
    grip = sweep(arc((0, h * 0.95), rx, 0, 180, 20, squash=between(rng, 0.9, 1.15)), 0.007, flat=1.6)
    return Shape((Piece(merge(*pieces, floor)), Piece(grip, "body", "handle")))


def drawer_unit(rng: Rng) -> Shape:
    w, d = between(rng, 0.22, 0.28), between(rng, 0.2, 0.24)
    count = int(rng.integers(2, 4))
    each = between(rng, 0.085, 0.105)
    h, t = count * each + 0.016, 0.011
    shell = merge(
        box(w, d, t),
        box(w, d, t).moved(z=h - t),
        box(t, d, h).moved(x=-w / 2 + t / 2),
        box(t, d, h).moved(x=w / 2 - t / 2),
        box(w, t, h).moved(y=d / 2 - t / 2),
    )
    pieces, joints = [Piece(shell)], []
    front_slot = "body" if chance(rng, 0.4) else "accent"
    bar = chance(rng, 0.5)
    for index in range(count):
        low = 0.008 + index * each
        inner_w, inner_d, inner_h = w - 2 * t - 0.004, d - t - 0.01, each - 0.016
        tray = merge(
            box(inner_w, inner_d, 0.005),
            box(0.005, inner_d, inner_h).moved(x=-inner_w / 2),
            box(0.005, inner_d, inner_h).moved(x=inner_w / 2),
            box(inner_w, 0.005, inner_h).moved(y=inner_d / 2),
        ).moved(z=low + 0.006)
        front = box(w - 0.008, 0.014, each - 0.006).moved(y=-d / 2 - 0.007, z=low + 0.003)
        centre = low + each / 2
        grip = (
            sweep(
                np.array(
                    [
                        (-0.04, -d / 2 - 0.012, centre),
                        (-0.038, -d / 2 - 0.032, centre),
                        (0.038, -d / 2 - 0.032, centre),
                        (0.04, -d / 2 - 0.012, centre),
                    ]
                ),
                0.005,
                segments=8,
            )
            if bar
            else merge(cylinder(0.006, 0.012, segments=12), ellipsoid(0.014, 0.014, 0.008, 14).moved(z=0.016))
            .turned(x=90)
            .moved(y=-d / 2 - 0.014, z=centre)
        )
        pieces += [
            Piece(merge(tray), "wood", "drawer", index),
            Piece(front, front_slot, "drawer", index),
            Piece(grip, "steel" if bar else "black", "handle" if bar else "knob", index),
        ]
        joints.append(Joint("drawer", True, (0, -1, 0), (0, 0, 0), d * 0.62))
    return Shape(tuple(pieces), tuple(joints), faces_camera=True)


def watering_can(rng: Rng) -> Shape:
    r, h = between(rng, 0.065, 0.08), between(rng, 0.12, 0.15)
    body = lathe([(0, 0), (r, 0), (r, h), (r * 0.55, h + 0.012), (r * 0.5, h + 0.012), (0, h * 0.9)])
    spout = sweep(
        np.array([(r * 0.85, 0, h * 0.2), (r * 1.5, 0, h * 0.6), (r * 2.1, 0, h * 1.05)]),
        [0.014, 0.011, 0.009],
    )
    rose = lathe([(0.009, 0), (0.028, 0.022), (0, 0.024)], 18).turned(y=52).moved(x=r * 2.08, z=h * 1.03)
    grip = sweep(
        smooth(
            [
                (r * 0.35, 0, h),
                (0, 0, h * 1.38),
                (-r * 1.1, 0, h * 1.15),
                (-r * 1.3, 0, h * 0.6),
                (-r * 0.95, 0, h * 0.25),
            ],
            18,
        ),
        0.0065,
    )
    return Shape((Piece(body), Piece(merge(spout, rose), "body", "spout"), Piece(grip, "body", "handle")))


def vase(rng: Rng) -> Shape:
    r, h = between(rng, 0.05, 0.065), between(rng, 0.17, 0.23)
    profile = curve(
        (r * 0.6, 0),
        (r, h * between(rng, 0.3, 0.4)),
        (r * 0.45, h * 0.78),
        (r * 0.42, h * 0.88),
        (r * 0.7, h),
        count=14,
    )
    pieces = [Piece(vessel(profile, 0.004))]
    if chance(rng, 0.6):
        stems, heads = [], []
        for index in range(int(rng.integers(3, 6))):
            a, lean = index * 137.5, between(rng, 0.02, 0.06)
            top = h + between(rng, 0.07, 0.12)
            stems.append(
                sweep(
                    smooth([(0, 0, h * 0.4), (lean * 0.4, 0, h), (lean, 0, top)], 5), 0.0022, segments=6
                ).turned(z=a)
            )
            petals = [
                ellipsoid(0.013, 0.008, 0.004, 8).turned(y=-25).moved(x=0.014).turned(z=60.0 * k)
                for k in range(6)
            ]
            heads.append(merge(*petals).moved(x=lean, z=top).turned(z=a))
        pieces += [Piece(merge(*stems), "leaf"), Piece(merge(*heads), "accent")]
    return Shape(tuple(pieces))
