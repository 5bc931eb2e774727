"""Triangle meshes from a few numbers: lathe, extrude, sweep, loft; metres, z up.

Letters: V vertices, F faces, N points of a path or polygon, S segments around.
Faces are counter-clockwise as seen from outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: (V, 3) float64, metres.
        faces: (F, 3) int32.
        uv: (V, 2) float64 texture coordinates in 0..1, or None without a texture.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    uv: NDArray[np.float64] | None = None

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh, shifted; metres."""
        return Mesh(self.vertices + np.array([x, y, z]), self.faces, self.uv)

    def turned(self, *, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh, rotated about the axes through the origin: x first, then y, then z; degrees."""
        return Mesh(self.vertices @ rotation(x, y, z).T, self.faces, self.uv)

    def scaled(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Mesh:
        """The mesh, stretched along the axes by positive factors."""
        return Mesh(self.vertices * np.array([x, y, z]), self.faces, self.uv)


@lru_cache(maxsize=512)
def rotation(x_deg: float, y_deg: float, z_deg: float) -> NDArray[np.float64]:
    """(3, 3) read-only rotation about x, then y, then z of the fixed frame."""
    (cx, cy, cz), (sx, sy, sz) = (
        np.cos(np.radians([x_deg, y_deg, z_deg])),
        np.sin(np.radians([x_deg, y_deg, z_deg])),
    )
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turn = np.asarray(about_z @ about_y @ about_x)
    turn.flags.writeable = False
    return turn


def merge(*meshes: Mesh) -> Mesh:
    """Joins meshes; texture coordinates are dropped unless all meshes have them."""
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    uvs = [mesh.uv for mesh in meshes if mesh.uv is not None]
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]).astype(
            np.int32
        ),
        np.concatenate(uvs) if len(uvs) == len(meshes) else None,
    )


@lru_cache(maxsize=1)
def _unit_box() -> Mesh:
    """A cube of one metre, centred at the origin; all boxes share its arrays."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
    uv_square = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    vertices: list[NDArray[np.float64]] = []
    faces: list[NDArray[np.int64]] = []
    uvs: list[NDArray[np.float64]] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            first, second = [(1, 2), (0, 2), (0, 1)][axis]
            side = np.zeros((4, 3))
            side[:, first], side[:, second], side[:, axis] = corners[:, 0], corners[:, 1], 0.5 * sign
            outward = sign if axis != 1 else -sign
            start = 4 * len(vertices)
            quad = [[0, 1, 2], [0, 2, 3]] if outward > 0 else [[0, 2, 1], [0, 3, 2]]
            faces.append(np.array(quad) + start)
            uv = uv_square.copy()
            if outward < 0:
                uv[:, 0] = 1 - uv[:, 0]
            vertices.append(side)
            uvs.append(uv)
    unit = Mesh(np.concatenate(vertices), np.concatenate(faces).astype(np.int32), np.concatenate(uvs))
    for array in (unit.vertices, unit.faces, unit.uv):
        assert array is not None
        array.flags.writeable = False
    return unit


def box(size_x: float, size_y: float, size_z: float) -> Mesh:
    """A box standing on z = 0, centred in x and y. Each side shows the whole texture."""
    unit = _unit_box()
    points = unit.vertices * np.array([size_x, size_y, size_z])
    points[:, 2] += size_z / 2
    return Mesh(points, unit.faces, unit.uv)


@lru_cache(maxsize=64)
def _ring(segments: int) -> NDArray[np.float64]:
    """(3, segments + 1) read-only cosine, sine and fraction of the turn, from 0 to the full turn."""
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.sin(angles), angles / (2 * np.pi)])
    ring.flags.writeable = False
    return ring


def lathe(profile: Sequence[tuple[float, float]], segments: int = 28) -> Mesh:
    """Revolves (radius, height) points about z: the outside from bottom to top, then the inside downwards.

    The texture wraps around once, with its top at the highest point of the profile.
    """
    points = np.asarray(profile, float)
    wide = segments + 1  # the seam appears twice, for the texture
    ring = _ring(segments)
    vertices = np.empty((len(points), wide, 3))
    vertices[..., 0] = points[:, :1] * ring[0]
    vertices[..., 1] = points[:, :1] * ring[1]
    vertices[..., 2] = points[:, 1:]
    low, high = points[:, 1].min(), points[:, 1].max()
    uv = np.empty((len(points), wide, 2))
    uv[..., 0] = ring[2]
    uv[..., 1] = 1 - (points[:, 1:] - low) / max(high - low, 1e-9)
    below = (np.arange(len(points) - 1) * wide)[:, None] + np.arange(segments)  # (N - 1, S)
    off_axis = points[:, 0] > 1e-6  # on the axis a ring is a point, and half of its triangles are empty
    kept = np.stack([off_axis[:-1], off_axis[1:]], 1)
    faces = _quads(below, below + 1, below + wide + 1, below + wide)[kept]
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3), uv.reshape(-1, 2))


def _quads(
    a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64], d: NDArray[np.int64]
) -> NDArray[np.int32]:
    """(N, 2, S, 3): the two triangles a-b-c and a-c-d of each of N rings of S quads."""
    faces = np.empty((len(a), 2, a.shape[1], 3), np.int32)
    for corner, indices in enumerate((a, b, c)):
        faces[:, 0, :, corner] = indices
    for corner, indices in enumerate((a, c, d)):
        faces[:, 1, :, corner] = indices
    return faces


def _tube(rings: int, count: int) -> NDArray[np.int32]:
    """(F, 3) faces between `rings` closed rings of `count` points each."""
    low = (np.arange(rings - 1) * count)[:, None] + np.arange(count)
    nxt = np.roll(low, -1, axis=1)
    return _quads(low, nxt, nxt + count, low + count).reshape(-1, 3)


def cylinder(radius: float, height: float, *, top_radius: float | None = None, segments: int = 24) -> Mesh:
    """A closed cylinder or cone frustum standing on z = 0; its edges stay sharp."""
    top = radius if top_radius is None else top_radius
    side = lathe([(radius, 0), (top, height)], segments)
    return merge(lathe([(0, 0), (radius, 0)], segments), side, lathe([(top, height), (0, height)], segments))


def vessel(profile: Sequence[tuple[float, float]], wall: float, segments: int = 28) -> Mesh:
    """An open vessel: `profile` is the outside, bottom to rim; the inside is `wall` metres smaller."""
    outside = [(0.0, profile[0][1]), *profile]
    inside = [
        (max(radius - wall, 1e-4), height) for radius, height in profile if height > profile[0][1] + wall
    ]
    inner = [(max(profile[-1][0] - wall, 1e-4), profile[-1][1]), *reversed(inside)]
    floor = profile[0][1] + wall
    return lathe([*outside, *inner, (inner[-1][0], floor), (0.0, floor)], segments)


def ellipsoid(radius_x: float, radius_y: float, radius_z: float, segments: int = 20) -> Mesh:
    """An ellipsoid centred at the origin."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 2)
    profile = [(float(np.cos(angle)), float(np.sin(angle))) for angle in angles]
    profile[0], profile[-1] = (0.0, -1.0), (0.0, 1.0)
    return lathe(profile, segments).scaled(radius_x, radius_y, radius_z)


def polygon(points: ArrayLike) -> NDArray[np.float64]:
    """(N, 2) counter-clockwise polygon from points in either direction."""
    outline = np.asarray(points, float)
    nxt = np.roll(outline, -1, axis=0)
    area = float(np.sum(outline[:, 0] * nxt[:, 1] - nxt[:, 0] * outline[:, 1]))
    return outline if area > 0 else outline[::-1].copy()


def rounded_rectangle(width: float, depth: float, corner: float, per_corner: int = 5) -> NDArray[np.float64]:
    """(N, 2) outline centred at the origin."""
    corner = min(corner, width / 2 - 1e-5, depth / 2 - 1e-5)
    quarters = np.arange(4)
    angles = np.linspace(quarters, quarters + 1, per_corner, axis=1).ravel() * np.pi / 2
    middle = np.array([width / 2 - corner, depth / 2 - corner])
    centres = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * middle
    return np.repeat(centres, per_corner, axis=0) + corner * np.stack([np.cos(angles), np.sin(angles)], 1)


def circle(radius_x: float, radius_y: float | None = None, count: int = 24) -> NDArray[np.float64]:
    """(N, 2) outline of an ellipse."""
    angles = np.arange(count) * 2 * np.pi / count
    return np.stack([radius_x * np.cos(angles), (radius_y or radius_x) * np.sin(angles)], 1)


def triangulate(outline: NDArray[np.float64]) -> NDArray[np.int32]:
    """Ear clipping of a simple counter-clockwise polygon; (N - 2, 3) indices."""
    last = len(outline) - 1
    edge = np.roll(outline, -1, axis=0) - outline
    turn = edge[:, 0] * np.roll(edge[:, 1], -1) - edge[:, 1] * np.roll(edge[:, 0], -1)
    if turn.min() > 1e-12:  # convex: a fan
        fan = [(last, index, index + 1) for index in range(last - 2)]
        return np.asarray([*fan, (last - 2, last - 1, last)], np.int32)
    points = outline.tolist()
    rest = list(range(len(points)))
    triangles: list[tuple[int, int, int]] = []
    while len(rest) > 3:
        for spot in range(len(rest)):
            before, here, after = rest[spot - 1], rest[spot], rest[(spot + 1) % len(rest)]
            if _is_ear(points, rest, before, here, after):
                break
        else:  # only slivers are left; any cut works
            spot = 0
            before, here, after = rest[-1], rest[0], rest[1]
        triangles.append((before, here, after))
        del rest[spot]
    triangles.append((rest[0], rest[1], rest[2]))
    return np.asarray(triangles, np.int32)


def _is_ear(points: list[list[float]], rest: list[int], before: int, here: int, after: int) -> bool:
    """True if the corner is convex and its triangle contains no other point."""
    (ax, ay), (bx, by), (cx, cy) = points[before], points[here], points[after]
    abx, aby, bcx, bcy, cax, cay = bx - ax, by - ay, cx - bx, cy - by, ax - cx, ay - cy
    if abx * (cy - ay) - aby * (cx - ax) <= 1e-14:
        return False
    for index in rest:
        x, y = points[index]
        if (
            abx * (y - ay) - aby * (x - ax) >= 0
            and bcx * (y - by) - bcy * (x - bx) >= 0
            and cax * (y - cy) - cay * (x - cx) >= 0
            and index not in (before, here, after)
        ):
            return False
    return True


def extrude(outline: ArrayLike, height: float) -> Mesh:
    """A prism over an (x, y) outline, from z = 0 up; sharp edges. Top and bottom carry the texture."""
    shape = polygon(outline)
    count = len(shape)
    cap = triangulate(shape)
    rings = np.zeros((2, count, 3))  # bottom and top
    rings[..., :2], rings[1, :, 2] = shape, height
    sides = _tube(2, count)
    low, span = shape.min(0), np.ptp(shape, axis=0)
    uv = (shape - low) / np.maximum(span, 1e-9)
    uv[:, 1] = 1 - uv[:, 1]
    return Mesh(
        np.concatenate([rings, rings]).reshape(-1, 3),
        np.concatenate([cap[:, ::-1], cap + count, sides + 2 * count]).astype(np.int32),
        np.concatenate([uv, uv, uv, uv]),
    )


def loft(sections: Sequence[tuple[NDArray[np.float64], float]]) -> Mesh:
    """Joins outlines of equal length at their heights, from bottom to top; both ends are closed."""
    count = len(sections[0][0])
    rings = np.empty((len(sections), count, 3))
    for ring, (outline, height) in zip(rings, sections, strict=True):
        ring[:, :2], ring[:, 2] = polygon(outline), height
    bottom, top = triangulate(rings[0, :, :2])[:, ::-1], triangulate(rings[-1, :, :2])
    faces = np.concatenate([bottom, _tube(len(rings), count), top + (len(rings) - 1) * count])
    return Mesh(rings.reshape(-1, 3), faces.astype(np.int32))


def rounded_box(size_x: float, size_y: float, size_z: float, corner: float) -> Mesh:
    """A box with rounded upright edges and bevelled top and bottom, standing on z = 0."""
    bevel = min(corner * 0.5, size_z * 0.3)
    full = rounded_rectangle(size_x, size_y, corner)
    small = rounded_rectangle(size_x - 2 * bevel, size_y - 2 * bevel, max(corner - bevel, 1e-4))
    return loft([(small, 0.0), (full, bevel), (full, size_z - bevel), (small, size_z)])


def sweep(path: ArrayLike, radius: ArrayLike, *, flat: float = 1.0, segments: int = 10) -> Mesh:
    """A round bar along an (N, 3) path with one radius or N; `flat` scales it across the path's plane."""
    line = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), (len(line),))
    tangents = np.gradient(line, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-12)
    normals = _normals_along(tangents.tolist())
    angles = np.arange(segments) * 2 * np.pi / segments
    sides = cross(tangents, normals)
    around = np.cos(angles)[:, None] * normals[:, None] + flat * np.sin(angles)[:, None] * sides[:, None]
    rings = line[:, None] + radii[:, None, None] * around
    index = np.arange(1, segments - 1)
    end = np.stack([np.zeros(segments - 2, int), index, index + 1], 1)
    last = (len(line) - 1) * segments
    faces = np.concatenate([end[:, [0, 2, 1]], _tube(len(line), segments), end + last])
    return Mesh(rings.reshape(-1, 3), faces.astype(np.int32))


def _normals_along(tangents: list[list[float]]) -> NDArray[np.float64]:
    """(N, 3) unit vectors across N unit tangents, each turned as little as possible from the previous one."""
    x, y, z = tangents[0]
    nx, ny, nz = (-z, 0.0, x) if math.hypot(z, x) >= 1e-3 else (0.0, z, -y)
    normals = []
    for x, y, z in tangents:
        along = nx * x + ny * y + nz * z
        nx, ny, nz = nx - x * along, ny - y * along, nz - z * along
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx / length, ny / length, nz / length
        normals.append((nx, ny, nz))
    return np.array(normals)


def cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) cross products of (N, 3) vectors; several times faster than np.cross."""
    product = np.empty(first.shape)
    for axis, (one, two) in enumerate(((1, 2), (2, 0), (0, 1))):
        product[:, axis] = first[:, one] * second[:, two] - first[:, two] * second[:, one]
    return product


def arc(
    centre: tuple[float, float],
    radius: float,
    start_deg: float,
    end_deg: float,
    count: int = 14,
    *,
    squash: float = 1.0,
) -> NDArray[np.float64]:
    """(N, 3) points of an arc in the x-z plane around (x, z) = centre; `squash` scales its height."""
    angles = np.radians(np.linspace(start_deg, end_deg, count))
    return np.stack(
        [centre[0] + radius * np.cos(angles), np.zeros(count), centre[1] + squash * radius * np.sin(angles)],
        1,
    )


def smooth(points: ArrayLike, count: int = 16) -> NDArray[np.float64]:
    """(count, D) points on a Catmull-Rom curve through the given points."""
    knots = np.asarray(points, float)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    places = np.linspace(0, len(knots) - 1, count)
    which = np.minimum(places.astype(int), len(knots) - 2)
    t = (places - which)[:, None]
    p0, p1, p2, p3 = padded[which], padded[which + 1], padded[which + 2], padded[which + 3]
    return np.asarray(
        0.5
        * (
            2 * p1
            + (p2 - p0) * t
            + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
            + (3 * p1 - p0 - 3 * p2 + p3) * t**3
        )
    )


def curve(*points: tuple[float, float], count: int = 14) -> list[tuple[float, float]]:
    """A smooth (radius, height) profile for `lathe` through the given points."""
    return [(max(float(radius), 0.0), float(height)) for radius, height in smooth(points, count)]
