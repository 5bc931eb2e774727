"""Every parameter once: default, range, unit, reason. `python -m pam_ros.nodes.parameters` prints the table.

Defaults of what the runtime does stand in `EngineOptions` and are taken from there. `--yaml` prints the
parameters file `config/pam.yaml`, which a test keeps equal.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from pam_ros.errors import PamError
from pam_ros.nodes.conversions import PromptDefaults, languages_of
from pam_ros.records import IMAGE_TASKS, Language, image_tasks
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.overlay import OverlayStyle, check_font_file

Value = bool | int | float | str | tuple[str, ...]


class Effect(Enum):
    """When a new value counts."""

    START = "at start (read-only)"
    CONFIGURE = "at the next configure"
    LIVE = "at once"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one node.

    Attributes:
        low, high: inclusive range of a number.
        check: raises ValueError or PamError for a bad value; the message is the reason people see.
        field: the field of EngineOptions it sets, if any.
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

    def problem(self, value: Any) -> str:
        """Why the value is refused; empty where it is fine."""
        if self.choices:
            wrong = [
                item for item in ([value] if isinstance(value, str) else value) if item not in self.choices
            ]
            if wrong:
                return f"{self.name} cannot be {wrong[0]!r}; allowed: {', '.join(self.choices)}"
        if self.check is not None:
            try:
                self.check(value)
            except (ValueError, PamError) as error:
                return f"{self.name}: {error}"
        return ""


def _check_cameras(names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise ValueError(f"camera names must be one or more different ones, not {list(names)}")
    for name in names:
        if not (name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()):
            raise ValueError(f"{name!r} is no ROS name: letters, digits and _ only, no digit first")


def _check_not_empty(text: str) -> None:
    if not text:
        raise ValueError("must not be empty")


_OPTIONS = EngineOptions()
_STYLE = OverlayStyle()
_LANGUAGES = tuple(language.value for language in Language)
_IMAGE_TASK_NAMES = tuple(task.value for task in IMAGE_TASKS)

# fmt: off
MANAGER = (
    Parameter("cameras", ("camera",), Effect.START, "Names of the cameras; one perception node each",
        check=_check_cameras),
    Parameter("autostart", False, Effect.START, "Configure and activate by itself after start"),
    Parameter("model", "pam-tiny", Effect.CONFIGURE,
        "Model to load: pam-tiny (ships with the package), pam-1.5b, pam-3b, a hub id or a folder",
        check=_check_not_empty),
    Parameter("device", "auto", Effect.CONFIGURE,
        "Where the model runs: auto (a GPU where there is one), cpu, cuda, cuda:1, …",
        check=_check_not_empty),
    Parameter("dtype", "auto", Effect.CONFIGURE,
        "Number type of the weights; auto takes what suits the device",
        choices=("auto", "float32", "bfloat16", "float16")),
    Parameter("memory_limit_gib", 0.0, Effect.CONFIGURE,
        "Most memory the model may take, where it shares a GPU or a computer; 0 = what is free", unit="GiB",
        low=0.0, high=4096.0),
    Parameter("regions.max", _OPTIONS.max_regions, Effect.LIVE,
        "Most regions per camera; bounds memory and time per frame", low=1, high=256, field="max_regions"),
    Parameter("regions.lost_timeout_s", _OPTIONS.lost_timeout_s, Effect.LIVE,
        "How long a lost region is looked for before it is forgotten, in stream time", unit="s", low=1e-3,
        high=86400.0, field="lost_timeout_s"),
    Parameter("detections.iou", _OPTIONS.detection_iou, Effect.LIVE,
        "A detection that overlaps a region more than this is that region (intersection over union)", low=0.0,
        high=1.0, field="detection_iou"),
    Parameter("frames.history", _OPTIONS.frame_history, Effect.LIVE,
        "Recent frames kept per camera so that stamped prompts and detections find theirs", unit="frames",
        low=1, high=300, field="frame_history"),
    Parameter("frames.stamp_tolerance_s", _OPTIONS.stamp_tolerance_s, Effect.LIVE,
        "How far a prompt's stamp may be from its frame's", unit="s", low=0.0, high=10.0,
        field="stamp_tolerance_s"),
    Parameter("texts.max_new_tokens", _OPTIONS.max_new_tokens, Effect.LIVE,
        "Longest text; bounds how long one answer may take", unit="tokens", low=1, high=4096,
        field="max_new_tokens"),
    Parameter("texts.share", _OPTIONS.text_time_fraction, Effect.LIVE,
        "How long texts are decoded after each frame, as a part of the frame's time; at least one step",
        unit="0..1", low=0.0, high=1.0, field="text_time_fraction"),
    Parameter("texts.max_queued_requests", _OPTIONS.max_queued_requests, Effect.LIVE,
        "Requests that may wait for the language model; more are refused", low=1, high=1024,
        field="max_queued_requests"),
    Parameter("streaming.enabled", _OPTIONS.streaming, Effect.LIVE,
        "Rolling captions of every region; off by default as they keep the language model busy",
        field="streaming"),
    Parameter("streaming.period_s", _OPTIONS.caption_period_s, Effect.LIVE,
        "Length of a rolling caption's clip in stream time", unit="s", low=0.1, high=3600.0,
        field="caption_period_s"),
    Parameter("streaming.language", _OPTIONS.caption_language.value, Effect.LIVE,
        "Language of rolling captions, and of clip captions that name none", choices=_LANGUAGES,
        field="caption_language"),
    Parameter("streaming.carry_over", _OPTIONS.carry_over, Effect.LIVE,
        "A clip starts with the last frame of the one before (paper, section 3.1); false: with its text only",
        field="carry_over"),
    Parameter("streaming.clip_frames", _OPTIONS.clip_frames, Effect.LIVE,
        "Most frames of a clip; the model was trained on 16", unit="frames", low=1, high=64,
        field="clip_frames"),
)

PERCEPTION = (
    Parameter("image_transport", "raw", Effect.START,
        "Whether the camera sends `image` (raw) or `image/compressed`", choices=("raw", "compressed")),
    Parameter("prompt.tasks", ("label",), Effect.LIVE,
        "What to say about regions whose prompt names no tasks: clicks, masks, detections",
        choices=_IMAGE_TASK_NAMES),
    Parameter("prompt.languages", ("en",), Effect.LIVE, "In which languages, where the prompt names none",
        choices=_LANGUAGES),
    Parameter("overlay.opacity", _STYLE.opacity, Effect.LIVE, "Opacity of the tint over masks", low=0.0,
        high=1.0),
    Parameter("overlay.texts", _STYLE.texts, Effect.LIVE, "Write labels and captions beside the regions"),
    Parameter("overlay.font_px", _STYLE.font_px, Effect.LIVE,
        "Height of the letters; 0 = by the picture's height", unit="pixels", low=0, high=200),
    Parameter("overlay.font_file", _STYLE.font_file, Effect.LIVE,
        "TrueType or OpenType font; empty = search the system for one with Chinese characters",
        check=check_font_file),
    Parameter("overlay.jpeg_quality", 80, Effect.LIVE, "Quality of ~/overlay/compressed", unit="percent",
        low=1, high=100),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What configure needs."""

    model: str
    device: str
    dtype: str
    memory_limit_gib: float  # 0 = what is free
    options: EngineOptions


@dataclass(frozen=True, slots=True)
class PerceptionSettings:
    """What may change in a perception node while it runs."""

    defaults: PromptDefaults
    overlay: OverlayStyle
    jpeg_quality: int  # percent


def declare(node: Node, parameters: Sequence[Parameter]) -> None:
    """Declares them; bad values, at start and later, are rejected with the reason."""
    table = {parameter.name: parameter for parameter in parameters}

    def refuse_bad_values(changes: list[RosParameter]) -> SetParametersResult:
        problems = [table[change.name].problem(change.value) for change in changes if change.name in table]
        reason = "; ".join(problem for problem in problems if problem)
        return SetParametersResult(successful=not reason, reason=reason)

    node.add_on_set_parameters_callback(refuse_bad_values)
    for parameter in parameters:
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        node.declare_parameter(parameter.name, default, parameter.descriptor())


def unknown_overrides(nodes: Sequence[Node]) -> list[str]:
    """One line for each parameter that was given at start and that none of the nodes has.

    All nodes are looked at together: `-p name:=value` and `/**` of a file reach every one of them.
    """
    known = [it.name for it in (*MANAGER, *PERCEPTION)]
    declared = {name for node in nodes for name in node.get_parameters_by_prefix("")}
    given = {name for node in nodes for name in node._parameter_overrides}  # rclpy shows them nowhere else
    lines = []
    for name in sorted(given - declared):
        close = difflib.get_close_matches(name, known)
        advice = f"did you mean {' or '.join(close)}?" if close else "config/pam.yaml has all that there are"
        lines.append(f"there is no parameter {name!r}, its value is ignored; {advice}")
    return lines


def manager_settings(node: Node) -> ManagerSettings:
    """The manager's parameters as they are now."""
    values = {parameter.field: _value(node, parameter.name) for parameter in MANAGER if parameter.field}
    values["caption_language"] = Language.parse(values["caption_language"])
    return ManagerSettings(
        model=_value(node, "model"),
        device=_value(node, "device"),
        dtype=_value(node, "dtype"),
        memory_limit_gib=_value(node, "memory_limit_gib"),
        options=EngineOptions(**values),
    )


def perception_settings(node: Node) -> PerceptionSettings:
    """A perception node's live parameters as they are now."""
    return PerceptionSettings(
        defaults=PromptDefaults(
            tasks=image_tasks(_value(node, "prompt.tasks")),
            languages=languages_of(_value(node, "prompt.languages")),
        ),
        overlay=OverlayStyle(
            opacity=_value(node, "overlay.opacity"),
            texts=_value(node, "overlay.texts"),
            font_px=_value(node, "overlay.font_px"),
            font_file=_value(node, "overlay.font_file"),
        ),
        jpeg_quality=_value(node, "overlay.jpeg_quality"),
    )


def _value(node: Node, name: str) -> Any:
    return node.get_parameter(name).value


def _shown(value: Value) -> str:
    """As YAML writes it."""
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
    """The default parameters file. One section serves both nodes: each takes the names it knows."""
    lines = [
        "# Every parameter of pam_ros with its default, for all its nodes and any namespace.",
        "# Made by `python -m pam_ros.nodes.parameters --yaml`; change defaults there.",
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
