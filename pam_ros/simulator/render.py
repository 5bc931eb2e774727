"""Renders a scene with MuJoCo: colour, instance ids, part ids, depth, camera matrix and pose.

Headless rendering needs `MUJOCO_GL=egl` (the default; a GPU or Mesa's libegl1) or `osmesa` (libosmesa6).
A process has one GL context.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pam_ros.errors import TRAINING_EXTRA
from pam_ros.simulator.assets import textures
from pam_ros.simulator.assets.materials import FIXED, Finish, Rgb
from pam_ros.simulator.assets.mesh_store import scanned_picture
from pam_ros.simulator.assets.meshes import Mesh, box, cross, rotation
from pam_ros.simulator.assets.parts import Piece
from pam_ros.simulator.assets.prints import printed
from pam_ros.simulator.spec import CameraSpec, FixtureSpec, LookSpec, ObjectSpec, SceneSpec

os.environ.setdefault("MUJOCO_GL", "egl")
try:
    import mujoco
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; {TRAINING_EXTRA}", name=error.name) from None

PARTS = ("", "handle", "knob", "door", "lid", "drawer", "spout", "cap", "blade", "leaf")  # part id = index
_CREASE_COSINE = float(np.cos(np.radians(38)))
_MOST_FACES = 40  # around a point; more hardly change its normal
_PART_STEP = 2**16  # a geom's owner is one number: instance id + part id * _PART_STEP
_GRAIN_SHIFTS = 64  # pixels, the largest shift of a frame's noise


@dataclass(frozen=True, slots=True)
class Rendered:
    """One frame with its ground truth.

    Attributes:
        rgb: (H, W, 3) uint8.
        instances: (H, W) uint16, 0 = nothing, else an instance id of the scene.
        parts: (H, W) uint8 index into PARTS; 0 = no named part.
        depth_m: (H, W) float32 along the optical axis.
        intrinsics: (3, 3) pinhole matrix, pixels.
        pose: (4, 4) camera-to-world transform of the optical frame.
    """

    rgb: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    parts: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    pose: NDArray[np.float64]


@dataclass(slots=True)
class ObjectState:
    """The state of an object; `opening` runs from 0 (closed) to 1 (fully open)."""

    position: NDArray[np.float64]  # (3,) metres
    rotation: NDArray[np.float64]  # (3, 3), applied after its rest pose and yaw
    opening: NDArray[np.float64]  # (joints,)
    visible: bool = True


def rest_rotation(item: ObjectSpec) -> NDArray[np.float64]:
    """(3, 3) rotation of the object's resting pose, yaw included."""
    return rotation(0, 0, item.yaw_deg) @ rotation(*item.rest_deg)


def rest_offset(item: ObjectSpec) -> NDArray[np.float64]:
    """(3,) mesh origin relative to the object's base point, metres."""
    turned = (
        np.concatenate([piece.mesh.vertices for piece in item.shape.pieces])
        @ rest_rotation(item).T
        * item.scale
    )
    low, high = turned.min(0), turned.max(0)
    return np.array([-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]])


def first_states(scene: SceneSpec) -> list[ObjectState]:
    """The initial state of every object: in its place, closed."""
    return [
        ObjectState(np.asarray(item.position, float), np.eye(3), np.zeros(len(item.shape.joints)))
        for item in scene.objects
    ]


class SceneRenderer:
    """Renders a scene in any state. A context manager; otherwise call `close`."""

    _gl: Any = None

    def __init__(self, scene: SceneSpec, width: int = 512, height: int = 384) -> None:
        self.scene, self.width, self.height = scene, width, height
        self._spec = mujoco.MjSpec()
        self._visual()
        self._owner: dict[str, tuple[int, int]] = {}  # geom name → (instance id, part id)
        self._materials: set[str] = set()
        self._count = 0
        self._offsets = [rest_offset(item) for item in scene.objects]
        self._rests = [rest_rotation(item) for item in scene.objects]
        for index, item in enumerate(scene.objects):
            self._add_object(index, item)
        for index, fixture in enumerate(scene.fixtures):
            self._add_fixture(scene.fixture_id(index), fixture)
        self._model = self._spec.compile()
        self._data = mujoco.MjData(self._model)
        self._view = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 20)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        if SceneRenderer._gl is None:
            SceneRenderer._gl = mujoco.GLContext(width, height)
        SceneRenderer._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        owners = [(0, 0), *[self._owner.get(name, (0, 0)) for name in names]]  # by geom id + 1
        self._owner_of = np.array([instance + part * _PART_STEP for instance, part in owners], np.uint32)
        self._tones, self._blur = _tones(scene.look), _blur(scene.look)
        self._grain = _grain(scene, width, height)

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the scene's GL memory; can be called twice."""
        if self._context is not None:
            self._context.free()
            self._context = None

    def render(self, states: list[ObjectState], camera: CameraSpec | None = None, frame: int = 0) -> Rendered:
        """Renders one frame; `frame` seeds the camera noise."""
        camera = camera or self.scene.camera
        pose = camera.pose()
        self._place(states, camera, pose)
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._view,
        )
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_render(self._rect, self._view, self._context)
        mujoco.mjr_readPixels(rgb, None, self._rect, self._context)
        instances, parts, depth = self._segment()
        return Rendered(
            rgb=self._develop(rgb, frame),
            instances=instances,
            parts=parts,
            depth_m=depth,
            intrinsics=camera.intrinsics(self.width, self.height),
            pose=pose,
        )

    def _segment(self) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float32]]:
        """(H, W) instances, parts, and depth in metres, top row first."""
        flags = self._view.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        coded = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        mujoco.mjr_render(self._rect, self._view, self._context)
        mujoco.mjr_readPixels(coded, depth, self._rect, self._context)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        segment = coded[::-1, :, 1].astype(np.uint16) << 8 | coded[::-1, :, 0]
        geom_of = np.zeros(self._view.ngeom + 1, np.int64)  # geom id + 1 by segment, 0 = nothing
        for geom in self._view.geoms[: self._view.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geom_of[geom.segid + 1] = geom.objid + 1
        near = self._model.vis.map.znear * self._model.stat.extent
        far = self._model.vis.map.zfar * self._model.stat.extent
        metres = depth[::-1].astype(np.float64)
        metres *= near / far - 1
        metres += 1
        np.divide(near, metres, out=metres)
        owner = self._owner_of[geom_of].take(segment)
        parts = (owner // _PART_STEP).astype(np.uint8)
        return owner.astype(np.uint16), parts, metres.astype(np.float32)

    def _develop(self, upturned: NDArray[np.uint8], frame: int) -> NDArray[np.uint8]:
        """Flips the rows, then applies exposure, white balance, gamma, blur and noise."""
        developed = Image.fromarray(np.ascontiguousarray(upturned[::-1])).point(self._tones)
        picture = np.asarray(developed if self._blur is None else developed.filter(self._blur))
        if self._grain is None:
            return picture
        shift = np.random.default_rng([self.scene.seed, frame]).integers(0, _GRAIN_SHIFTS, 2)
        top, left = (_GRAIN_SHIFTS - int(value) for value in shift)
        grainy = picture + self._grain[top : top + self.height, left : left + self.width]
        return np.clip(grainy, 0, 255, out=grainy).astype(np.uint8)

    def _place(self, states: list[ObjectState], camera: CameraSpec, pose: NDArray[np.float64]) -> None:
        joint = 0
        for index, (item, state) in enumerate(zip(self.scene.objects, states, strict=True)):
            turn = state.rotation @ self._rests[index]
            place = state.position + state.rotation @ self._offsets[index]
            self._data.mocap_pos[index] = place if state.visible else (0, 0, -50)
            quaternion = np.empty(4)
            mujoco.mju_mat2Quat(quaternion, turn.flatten())
            self._data.mocap_quat[index] = quaternion
            for opening, spec in zip(state.opening, item.shape.joints, strict=True):
                reach = spec.fully_open * (item.scale if spec.sliding else 1.0)
                self._data.qpos[joint] = opening * reach
                joint += 1
        flip = np.diag([1.0, -1.0, -1.0])  # OpenGL looks along -z
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (pose[:3, :3] @ flip).flatten())
        self._model.cam_pos[0], self._model.cam_quat[0] = pose[:3, 3], quaternion
        half = np.tan(np.radians(camera.fov_deg) / 2) * self.height / self.width
        self._model.cam_fovy[0] = np.degrees(2 * np.arctan(half))
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _visual(self) -> None:
        spec, scene = self._spec, self.scene
        spec.visual.global_.offwidth, spec.visual.global_.offheight = self.width, self.height
        spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 2048, 4
        spec.visual.map.znear, spec.visual.map.zfar = 0.02, 12.0
        spec.visual.map.shadowclip = 2.0
        spec.stat.extent, spec.stat.center = 1.0, [0, 0, 0]
        spec.compiler.boundmass = spec.compiler.boundinertia = 1e-6  # required; nothing is simulated
        spec.visual.headlight.ambient = [scene.ambient] * 3
        spec.visual.headlight.diffuse = [0.18] * 3
        spec.visual.headlight.specular = [0.08] * 3
        spec.worldbody.add_camera(name="robot", pos=[0, -1, 1])
        for light in scene.lights:
            spec.worldbody.add_light(
                type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
                pos=light.position,
                dir=light.direction,
                diffuse=light.diffuse,
                specular=[0.3 * value for value in light.diffuse],
                castshadow=light.casts_shadow,
            )

    def _material(self, name: str, rgb: Rgb, finish: Finish, texture: str | None = None) -> str:
        if name not in self._materials:
            material = self._spec.add_material(
                name=name,
                rgba=[*rgb, finish.alpha],
                specular=finish.specular,
                shininess=finish.shininess,
                emission=finish.emission,
            )
            if texture is not None:
                material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
            self._materials.add(name)
        return name

    def _texture(self, name: str, picture: NDArray[np.uint8]) -> str:
        high, wide = picture.shape[:2]
        made = self._spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=wide, height=high, nchannel=3
        )
        made.data = np.ascontiguousarray(picture).tobytes()
        return name

    def _slot_material(self, index: int, item: ObjectSpec, slot: str) -> str:
        name = f"object{index}/{slot}"
        if name in self._materials:
            return name
        if slot == "print":
            picture = printed(item.category, item.print_seed, item.body_rgb, item.accent_rgb)
            return self._material(name, (1, 1, 1), Finish(0.15, 0.3), self._texture(name, picture))
        if slot == "picture":
            texture = self._texture(name, scanned_picture(item.picture))
            return self._material(name, (1, 1, 1), Finish(0.15, 0.3), texture)
        if slot == "body":
            return self._material(name, item.body_rgb, item.finish)
        if slot == "accent":
            return self._material(name, item.accent_rgb, Finish(0.35, 0.5))
        return self._material(name, *FIXED[slot])

    def _mesh(self, mesh: Mesh) -> str:
        name = f"mesh{self._count}"
        self._count += 1
        vertices, normals, uv = shade(mesh)
        made = self._spec.add_mesh(
            name=name,
            uservert=vertices.ravel().tolist(),  # the binding takes lists much faster than arrays
            userface=list(range(len(vertices))),
            usernormal=normals.ravel().tolist(),
            inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
        )
        if uv is not None:
            made.usertexcoord = uv.ravel().tolist()
        return name

    def _add_geom(
        self, body: Any, piece: Piece, owner: tuple[int, int], material: str, scale: float = 1.0
    ) -> None:
        name = f"geom{len(self._owner)}"
        self._owner[name] = owner
        mesh = self._mesh(piece.mesh if scale == 1.0 else piece.mesh.scaled(scale, scale, scale))
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=mesh,
            material=material,
            contype=0,
            conaffinity=0,
        )

    def _add_object(self, index: int, item: ObjectSpec) -> None:
        root = self._spec.worldbody.add_body(name=f"object{index}", mocap=True)
        bodies: list[Any] = []
        for number, joint in enumerate(item.shape.joints):
            body = root.add_body(name=f"object{index}/{number}")
            kind = mujoco.mjtJoint.mjJNT_SLIDE if joint.sliding else mujoco.mjtJoint.mjJNT_HINGE
            body.add_joint(type=kind, axis=joint.axis, pos=[item.scale * value for value in joint.anchor])
            bodies.append(body)
        for piece in item.shape.pieces:
            owner = (index + 1, PARTS.index(piece.part))
            self._add_geom(
                bodies[piece.joint] if piece.joint >= 0 else root,
                piece,
                owner,
                self._slot_material(index, item, piece.slot),
                item.scale,
            )

    def _add_fixture(self, instance: int, fixture: FixtureSpec) -> None:
        name = f"fixture{instance}"
        texture = self._texture(name, textures.surface(*fixture.texture)) if fixture.texture else None
        material = self._material(name, fixture.rgb, fixture.finish, texture)
        body = self._spec.worldbody.add_body(name=name)
        for size, centre in fixture.boxes:
            block = tiled_box(size, fixture.tile_m).moved(centre[0], centre[1], centre[2] - size[2] / 2)
            self._add_geom(body, Piece(block), (instance, 0), material)
        for shape, place in fixture.details:
            for piece in shape.pieces:
                slot = (
                    material
                    if piece.slot == "body"
                    else self._material(f"fixed/{piece.slot}", *FIXED[piece.slot])
                )
                self._add_geom(
                    body, Piece(piece.mesh.moved(*place)), (instance, PARTS.index(piece.part)), slot
                )


def tiled_box(size: tuple[float, float, float], tile_m: float) -> Mesh:
    """A box whose texture repeats every `tile_m` metres on each side."""
    mesh = box(*size)
    assert mesh.uv is not None
    uv = mesh.uv.copy()
    for side in range(6):
        rows = slice(4 * side, 4 * side + 4)
        spans = [size[i] for i in range(3) if i != side // 2]
        uv[rows] *= np.asarray(spans) / tile_m
    return Mesh(mesh.vertices, mesh.faces, uv)


def _tones(look: LookSpec) -> list[int]:
    """Lookup tables of 256 values for red, green and blue: exposure, white balance and gamma."""
    steps = np.arange(256) / 255
    tables = [np.clip(steps * look.exposure * gain, 0, 1) ** look.gamma * 255 for gain in look.balance]
    return [int(tone) for tone in np.concatenate(tables)]


def _blur(look: LookSpec) -> ImageFilter.Kernel | None:
    """A 3 x 3 Gaussian, wide enough for the small radii in use; None if there is no blur."""
    if look.blur <= 0.2:
        return None
    row = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * look.blur**2))
    return ImageFilter.Kernel((3, 3), np.outer(row, row).ravel().tolist())


def _grain(scene: SceneSpec, width: int, height: int) -> NDArray[np.int16] | None:
    """(height + 64, width + 64, 3) periodic noise: any window is the same noise, shifted."""
    if scene.look.noise <= 0:
        return None
    rng = np.random.default_rng([scene.seed, 4242])
    grain = np.floor(rng.normal(0, scene.look.noise, (height, width))).astype(np.int16)
    grain = np.pad(grain, ((_GRAIN_SHIFTS, 0), (_GRAIN_SHIFTS, 0)), mode="wrap")
    return np.repeat(grain[..., None], 3, axis=2)


def shade(mesh: Mesh) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """Vertices and normals (3F, 3), texture coordinates (3F, 2), by corner; sharp beyond 38 degrees."""
    corners = mesh.vertices.take(mesh.faces, 0)  # (F, 3, 3)
    crossed = cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # twice the area long
    area = np.sqrt(np.einsum("fc,fc->f", crossed, crossed))
    keep = area > 1e-12
    corners, area, faces = corners[keep], area[keep], mesh.faces[keep]
    unit = crossed[keep] / area[:, None]
    grid = np.round(mesh.vertices / 2e-5).astype(np.int64)  # 21 bits an axis: within 20 m
    _, place = np.unique((grid[:, 0] << 42) + (grid[:, 1] << 21) + grid[:, 2], return_inverse=True)
    owner = place[faces.ravel()]  # (3F,) the point of each corner
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    begins = np.cumsum(counts) - counts
    # (P,) pairs of a corner and a face around its point, one run of pairs for each corner
    around = np.minimum(counts, _MOST_FACES)[owner]
    runs = np.cumsum(around) - around
    face = order[np.arange(around.sum()) + np.repeat(begins[owner] - runs, around)] // 3
    own = np.repeat(np.arange(len(owner)) // 3, around)
    other = unit.take(face, 0)
    near = np.einsum("pc,pc->p", other, unit.take(own, 0)) > _CREASE_COSINE
    normals = np.add.reduceat(other * (area.take(face) * near)[:, None], runs)
    length = np.sqrt(np.einsum("fc,fc->f", normals, normals))[:, None]
    normals = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), np.repeat(unit, 3, axis=0))
    uv = None if mesh.uv is None else mesh.uv[faces.ravel()].astype(np.float32)
    return corners.reshape(-1, 3).astype(np.float32), normals.astype(np.float32), uv
