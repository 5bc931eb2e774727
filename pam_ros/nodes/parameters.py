"""All parameters with default, range, unit and description.

`python -m pam_ros.nodes.parameters` prints the table of docs/parameters.md, with `--yaml` the file
`config/pam.yaml`. The runtime's defaults come from `EngineOptions`.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from pam_ros.errors import InputError, PamError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import LoadOptions, Quantization
from pam_ros.model.text.server_address import server_address
from pam_ros.nodes.overrides import overrides
from pam_ros.nodes.requests import PromptDefaults, languages_of
from pam_ros.records import IMAGE_TASKS, Language, image_tasks
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.overlay import OverlayStyle, check_font_file

Value = bool | int | float | str | tuple[str, ...]


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a list of strings",
}


class Effect(Enum):
    """When a new value takes effect."""

    START = "at start (read-only)"
    CONFIGURE = "at next configure"
    LIVE = "immediately"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one node.

    Attributes:
        low, high: inclusive range of a number.
        check: raises ValueError or PamError for a bad value; the user reads its message.
        field: the field of EngineOptions that it sets, if any.
    """

    name: str
    default: Value
    effect: Effect
    description: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    field: str = ""

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows, and what rclpy enforces."""
        unit = f" [{self.unit}]" if self.unit else ""
        descriptor = ParameterDescriptor(
            description=f"{self.description}{unit}. Takes effect {self.effect.value}.",
            additional_constraints=f"one of: {', '.join(self.choices)}" if self.choices else "",
            read_only=self.effect is Effect.START,
        )
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high))]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=self.low, to_value=self.high)
                ]
        return descriptor

    def taken(self, value: Any) -> Any:
        """The value as stored: declared floats from integers; lists from arrays and from an empty value."""
        if isinstance(self.default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(self.default, tuple) and not value:
            return []  # ROS does not know the type of an empty list
        return list(value) if isinstance(value, (array.array, tuple)) else value

    def _fits(self, value: Any) -> bool:
        if isinstance(self.default, tuple):
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        return type(value) is type(self.default)

    def problem(self, value: Any) -> str:
        """Why the value, which was `taken`, is refused; empty if it is accepted."""
        if not self._fits(value):
            return f"{self.name} is {value!r}; it must be {_KINDS[type(self.default)]}"
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            return f"{self.name} is {value}; allowed: {_allowed(self)}"
        if self.choices:
            wrong = [
                item for item in ([value] if isinstance(value, str) else value) if item not in self.choices
            ]
            if wrong:
                return f"{self.name}: invalid value {wrong[0]!r}; allowed: {', '.join(self.choices)}"
        if self.check is not None:
            try:
                self.check(value)
            except (ValueError, PamError) as error:
                return f"{self.name}: {error}"
        return ""


def _check_cameras(names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise ValueError(f"must be a non-empty list of distinct names, not {list(names)}")
    for name in names:
        if not (name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()):
            raise ValueError(f"{name!r} is not a ROS name: use letters, digits and _, no digit first")


def _check_not_empty(value: str | Sequence[str]) -> None:
    if not value:
        raise ValueError("must not be empty")


def _check_server(url: str) -> None:
    if url:
        server_address(url)


_OPTIONS = EngineOptions()
_STYLE = OverlayStyle()
MARKERS_SHOWN = ("none", "regions", "all")
_LANGUAGES = tuple(language.value for language in Language)
_IMAGE_TASK_NAMES = tuple(task.value for task in IMAGE_TASKS)

# fmt: off
MANAGER = (
    Parameter("cameras", ("camera",), Effect.START, "Camera names; one perception node per camera",
        check=_check_cameras),
    Parameter("autostart", False, Effect.START, "Configure and activate automatically at start"),
    Parameter("model", AUTO, Effect.CONFIGURE,
        "Model to load: auto (the best of pam-3b, pam-1.5b, pam-tiny that is on this disk and fits), a name, "
        "a hub id or a folder",
        check=_check_not_empty),
    Parameter("device", "auto", Effect.CONFIGURE,
        "Device of the model: auto (GPU if available), cpu, cuda, cuda:1, …",
        check=_check_not_empty),
    Parameter("dtype", "auto", Effect.CONFIGURE,
        "Data type of the weights; auto picks one for the device",
        choices=("auto", "float32", "bfloat16", "float16")),
    Parameter("quantization", Quantization.NONE.value, Effect.CONFIGURE,
        "Weights of the language model's linear layers: int8 and int4 save memory and need torchao; "
        "docs/bench/README.md has their speed",
        choices=tuple(each.value for each in Quantization)),
    Parameter("memory_limit_gib", 0.0, Effect.CONFIGURE,
        "Maximum memory for the model, e.g. on a shared GPU; 0 = all free memory", unit="GiB",
        low=0.0, high=4096.0),
    Parameter("regions.max", _OPTIONS.max_regions, Effect.LIVE,
        "Maximum regions per camera; bounds memory and time per frame. On a GPU a higher value than at the "
        "last configure waits for the next one", low=1, high=256, field="max_regions"),
    Parameter("regions.lost_timeout_s", _OPTIONS.lost_timeout_s, Effect.LIVE,
        "Remove a region that has been lost for this long (stream time)", unit="s", low=1e-3,
        high=86400.0, field="lost_timeout_s"),
    Parameter("regions.min_mask_score", _OPTIONS.min_mask_score, Effect.LIVE,
        "A prompt whose mask scores lower has found nothing (status NOTHING_FOUND)", low=0.0, high=1.0,
        field="min_mask_score"),
    Parameter("detections.iou", _OPTIONS.detection_iou, Effect.LIVE,
        "A detection with a higher IoU to an existing region is matched to it", low=0.0,
        high=1.0, field="detection_iou"),
    Parameter("frames.history", _OPTIONS.frame_history, Effect.LIVE,
        "Recent frames kept per camera to match stamped prompts and detections", unit="frames",
        low=1, high=300, field="frame_history"),
    Parameter("frames.history_mib", _OPTIONS.frame_history_mib, Effect.LIVE,
        "Maximum memory of these frames per camera; the newest is kept whatever its size", unit="MiB",
        low=1, high=65536, field="frame_history_mib"),
    Parameter("frames.stamp_tolerance_s", _OPTIONS.stamp_tolerance_s, Effect.LIVE,
        "Maximum time difference between a prompt's stamp and its frame", unit="s", low=0.0, high=10.0,
        field="stamp_tolerance_s"),
    Parameter("texts.server", "", Effect.CONFIGURE,
        "vLLM server that generates the texts, e.g. http://host:8000; empty = this process",
        check=_check_server),
    Parameter("all.points_per_side", _OPTIONS.all_points_per_side, Effect.LIVE,
        "~/perceive_all and ~/find: points of the grid per side; SAM 2 uses 32", low=1, high=64,
        field="all_points_per_side"),
    Parameter("all.min_iou", _OPTIONS.all_min_iou, Effect.LIVE,
        "Drop masks of the grid whose estimated IoU is lower; SAM 2 uses 0.8", low=0.0, high=1.0,
        field="all_min_iou"),
    Parameter("all.min_stability", _OPTIONS.all_min_stability, Effect.LIVE,
        "Drop masks of the grid whose outline is less certain; SAM 2 uses 0.95", low=0.0, high=1.0,
        field="all_min_stability"),
    Parameter("all.max_box_iou", _OPTIONS.all_max_box_iou, Effect.LIVE,
        "Of masks with a higher IoU of their boxes, keep the best",
        low=0.0, high=1.0, field="all_max_box_iou"),
    Parameter("all.min_area", _OPTIONS.all_min_area, Effect.LIVE,
        "Smallest mask of the grid, as a fraction of the image", low=0.0, high=1.0, field="all_min_area"),
    Parameter("all.max_area", _OPTIONS.all_max_area, Effect.LIVE,
        "Largest mask of the grid, as a fraction of the image", low=0.0, high=1.0, field="all_max_area"),
    Parameter("all.max_regions", _OPTIONS.all_max_regions, Effect.LIVE,
        "Maximum regions in an answer if the request sets no limit", low=1, high=256,
        field="all_max_regions"),
    Parameter("all.budget_s", _OPTIONS.all_budget_s, Effect.LIVE,
        "Time for the grid if the request sets none; texts take extra time", unit="s", low=1e-3, high=60.0,
        field="all_budget_s"),
    Parameter("find.min_score", _OPTIONS.find_min_score, Effect.LIVE,
        "~/find: a region with a lower score does not fit", low=0.0, high=1.0, field="find_min_score"),
    Parameter("texts.max_new_tokens", _OPTIONS.max_new_tokens, Effect.LIVE,
        "Maximum tokens per text; bounds the time per answer", unit="tokens", low=1, high=4096,
        field="max_new_tokens"),
    Parameter("texts.min_confidence", _OPTIONS.min_confidence, Effect.LIVE,
        "Texts of lower confidence are marked unsure; 0 = the model's calibrated threshold (0.5 without)",
        low=0.0, high=1.0, field="min_confidence"),
    Parameter("texts.max_queued_requests", _OPTIONS.max_queued_requests, Effect.LIVE,
        "Maximum requests waiting for the language model; further ones are refused", low=1, high=1024,
        field="max_queued_requests"),
    Parameter("streaming.enabled", _OPTIONS.streaming, Effect.LIVE,
        "Stream rolling captions of every region; off by default because they keep the model busy",
        field="streaming"),
    Parameter("streaming.period_s", _OPTIONS.caption_period_s, Effect.LIVE,
        "Clip length of rolling captions (stream time)", unit="s", low=0.1, high=3600.0,
        field="caption_period_s"),
    Parameter("streaming.language", _OPTIONS.caption_language.value, Effect.LIVE,
        "Language of rolling captions, and of clip captions if the request names none", choices=_LANGUAGES,
        field="caption_language"),
    Parameter("streaming.carry_over", _OPTIONS.carry_over, Effect.LIVE,
        "Start each clip with the previous clip's last frame (paper, section 3.1); false: its caption only",
        field="carry_over"),
    Parameter("streaming.clip_frames", _OPTIONS.clip_frames, Effect.LIVE,
        "Maximum frames per clip; the model was trained on 16", unit="frames", low=1, high=64,
        field="clip_frames"),
    Parameter("streaming.least_fraction", _OPTIONS.clip_least_fraction, Effect.LIVE,
        "Captions are marked clip_too_thin if their clip has a smaller fraction of the frames planned for it",
        low=0.0, high=1.0, field="clip_least_fraction"),
)

PERCEPTION = (
    Parameter("image_transport", "raw", Effect.START,
        "Subscribe to `image` (raw) or `image/compressed` (compressed)", choices=("raw", "compressed")),
    Parameter("image_rectified", False, Effect.START,
        "The images are rectified (image_proc): use P of camera_info, no distortion; otherwise K and D"),
    Parameter("depth_transport", "raw", Effect.START,
        "Subscribe to `depth` (raw) or `depth/compressedDepth` (compressedDepth)",
        choices=("raw", "compressedDepth")),
    Parameter("depth.stamp_tolerance_s", 0.05, Effect.LIVE,
        "Maximum time difference between an image and its depth", unit="s", low=0.0, high=10.0),
    Parameter("prompt.tasks", ("label",), Effect.LIVE,
        "Tasks of prompts that name none: clicks, masks, detections",
        choices=_IMAGE_TASK_NAMES),
    Parameter("prompt.languages", ("en",), Effect.LIVE,
        "Languages of prompts that name none; labels of the first one name the regions",
        choices=_LANGUAGES, check=_check_not_empty),
    Parameter("overlay.opacity", _STYLE.opacity, Effect.LIVE, "Opacity of the mask overlay", low=0.0,
        high=1.0),
    Parameter("overlay.texts", _STYLE.texts, Effect.LIVE,
        "Draw labels at the regions and captions in a band below"),
    Parameter("overlay.font_px", _STYLE.font_px, Effect.LIVE,
        "Font height; 0 = scaled to the image height", unit="pixels", low=0, high=200),
    Parameter("overlay.font_file", _STYLE.font_file, Effect.LIVE,
        "TrueType or OpenType font file; empty = find a system font with Chinese characters",
        check=check_font_file),
    Parameter("markers.show", "all", Effect.LIVE,
        "What ~/markers shows: none, regions, or all: regions and, without depth, the image as a surface",
        choices=MARKERS_SHOWN),
    Parameter("markers.distance_m", 1.0, Effect.LIVE,
        "Distance of markers from the camera if there is no depth", unit="m", low=0.05, high=100.0),
    Parameter("overlay.jpeg_quality", 80, Effect.LIVE, "JPEG quality of ~/overlay/compressed", unit="percent",
        low=1, high=100),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """The manager's parameters, as configure reads them."""

    load: LoadOptions
    options: EngineOptions


@dataclass(frozen=True, slots=True)
class MarkersStyle:
    """What `~/markers` shows, one of MARKERS_SHOWN, and where, if depth does not say."""

    show: str = "all"
    distance_m: float = 1.0


@dataclass(frozen=True, slots=True)
class PerceptionSettings:
    """The parameters of a perception node that may change while it runs."""

    defaults: PromptDefaults
    depth_tolerance_s: float  # between the stamps of an image and its depth
    overlay: OverlayStyle
    jpeg_quality: int  # percent
    markers: MarkersStyle = MarkersStyle()


def declare(node: Node, parameters: Sequence[Parameter]) -> None:
    """Declares parameters. Raises InputError for bad values given at start; later ones are refused."""
    table = {parameter.name: parameter for parameter in parameters}

    def take(changes: list[RosParameter]) -> list[RosParameter]:
        return [
            _ros_parameter(change.name, table[change.name].taken(change.value))
            if change.name in table
            else change
            for change in changes
        ]

    def refuse_bad_values(changes: list[RosParameter]) -> SetParametersResult:
        problems = [table[change.name].problem(change.value) for change in changes if change.name in table]
        reason = "; ".join(problem for problem in problems if problem)
        return SetParametersResult(successful=not reason, reason=reason)

    given = overrides(node)
    values = {it.name: it.taken(given.get(it.name, it.default)) for it in parameters}
    if problems := [problem for it in parameters if (problem := it.problem(values[it.name]))]:
        raise InputError("; ".join(problems))
    node.add_pre_set_parameters_callback(take)
    node.add_on_set_parameters_callback(refuse_bad_values)
    for name, value in values.items():
        first = value if value != [] else list(table[name].default)  # type: ignore[arg-type] # tells the type
        node.declare_parameter(name, first, table[name].descriptor(), ignore_override=True)
        if first is not value:
            node.set_parameters([_ros_parameter(name, value)])


def _ros_parameter(name: str, value: Any) -> RosParameter:
    kind = RosParameter.Type.STRING_ARRAY if value == [] else None
    return RosParameter(name, kind, value)


def manager_settings(node: Node) -> ManagerSettings:
    """The manager's parameters as they are now."""
    values = {parameter.field: _value(node, parameter.name) for parameter in MANAGER if parameter.field}
    values["caption_language"] = Language.parse(values["caption_language"])
    options = EngineOptions(**values)
    load = LoadOptions(
        model=_value(node, "model"),
        device=_value(node, "device"),
        dtype=_value(node, "dtype"),
        quantization=_value(node, "quantization"),
        memory_limit_gib=_value(node, "memory_limit_gib"),
        regions=len(_value(node, "cameras")) * options.max_regions,
        text_server=_value(node, "texts.server"),
    )
    return ManagerSettings(load, options)


def perception_settings(node: Node) -> PerceptionSettings:
    """A perception node's live parameters as they are now."""
    return PerceptionSettings(
        defaults=PromptDefaults(
            tasks=image_tasks(_value(node, "prompt.tasks")),
            languages=languages_of(_value(node, "prompt.languages")),
        ),
        depth_tolerance_s=_value(node, "depth.stamp_tolerance_s"),
        overlay=OverlayStyle(
            opacity=_value(node, "overlay.opacity"),
            texts=_value(node, "overlay.texts"),
            font_px=_value(node, "overlay.font_px"),
            font_file=_value(node, "overlay.font_file"),
        ),
        jpeg_quality=_value(node, "overlay.jpeg_quality"),
        markers=MarkersStyle(
            show=_value(node, "markers.show"), distance_m=_value(node, "markers.distance_m")
        ),
    )


def _value(node: Node, name: str) -> Any:
    return node.get_parameter(name).value


def _shown(value: Value) -> str:
    """The value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return '""' if value == "" else str(value)


def _allowed(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    return f"{parameter.low:g} … {parameter.high:g}" if parameter.low is not None else ""


def markdown() -> str:
    """The table of docs/parameters.md."""
    lines = [
        "| node | parameter | default | unit | allowed | meaning | takes effect |",
        "|---|---|---|---|---|---|---|",
    ]
    for node, parameters in (("manager", MANAGER), ("perception", PERCEPTION)):
        for it in parameters:
            cells = (
                node,
                f"`{it.name}`",
                f"`{_shown(it.default)}`",
                it.unit,
                _allowed(it),
                it.description,
                it.effect.value,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def yaml() -> str:
    """The default parameters file. One section serves all nodes: each reads the names it declares."""
    lines = [
        "# Every parameter of pam_ros with its default, for all nodes in any namespace.",
        "# Generated by `python -m pam_ros.nodes.parameters --yaml`; change defaults there.",
        "/**:",
        "  ros__parameters:",
    ]
    for title, parameters in (("manager", MANAGER), ("perception nodes", PERCEPTION)):
        lines.append(f"    # --- {title}")
        for it in parameters:
            notes = [note for note in (_allowed(it), it.unit, it.effect.value) if note]
            lines.append(f"    # {it.description} ({'; '.join(notes)})")
            lines.append(f"    {it.name}: {_shown(it.default)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(yaml() if "--yaml" in sys.argv[1:] else markdown())
