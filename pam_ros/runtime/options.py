"""The runtime's options, each with default, unit and range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pam_ros.records import Language

_SHORTEST_CLIP_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Raises ValueError naming the value and its range.

    Attributes:
        max_regions: regions per camera, 1..256; a prompt for one more is rejected.
        frame_history: recent frames kept per camera so that stamped prompts find theirs, 1..300.
        frame_history_mib: their maximum memory, MiB, 1..65536; the newest is kept whatever its size.
        stamp_tolerance_s: how far a prompt's stamp may be from a kept frame's, seconds, 0..10.
        lost_timeout_s: a region lost longer (in stream time) is removed, seconds, above 0.
        detection_iou: a detection matches a region if the IoU of their boxes is above this, 0..1.
        max_new_tokens: longest text, tokens, 1..4096.
        max_queued_requests: requests that may wait, 1..1024; more are rejected.
        streaming: rolling captions of every region.
        caption_period_s: length of a rolling clip in stream time, seconds, 0.1..3600.
        caption_language: of rolling captions.
        carry_over: a clip's last frame, at first-frame density, starts the next clip (paper, section 3.1);
            False carries only the previous caption, as the reference implementation does.
        decode_times_ns: if given, rolling clips end at these stamps instead of every `caption_period_s`, in
            order and at least 0.1 s apart; none is recorded after the last.
        clip_frames: maximum frames of a clip, 1..64; the first at first-frame density.
        clip_least_fraction: a clip with a smaller fraction of its planned frames is too thin to trust its
            caption, 0..1; see `ClipBuffer.too_thin`.
        all_points_per_side: of a survey's grid, 1..64; each point is one click.
        all_min_iou, all_min_stability: a survey drops masks below these, 0..1 (see `model.vision.grid`).
        all_max_box_iou: of masks with a higher IoU of their boxes, a survey keeps the best, 0..1.
        all_min_area, all_max_area: smallest and largest mask of a survey, fractions of the frame, 0..1.
        all_max_regions: maximum regions of a survey that sets no limit, 1..256.
        all_budget_s: time for the grid of a survey that sets none, seconds, above 0, at most 60.
        find_min_score: a region that scores lower does not fit the purpose, 0..1.
        min_mask_score: a prompt whose mask scores lower has found nothing, 0..1.
        min_confidence: texts that are less sure are unsure, 0..1; 0 = as calibrated with the model.
        tracking: False for a single image: no region is looked for in another frame, so none keeps a memory,
            and the model's room for memories does not limit their number.
    """

    max_regions: int = 16
    frame_history: int = 30
    frame_history_mib: int = 256
    stamp_tolerance_s: float = 0.05
    lost_timeout_s: float = 10.0
    detection_iou: float = 0.5
    max_new_tokens: int = 512
    max_queued_requests: int = 32
    streaming: bool = False
    caption_period_s: float = 5.0
    caption_language: Language = Language.EN
    carry_over: bool = True
    decode_times_ns: tuple[int, ...] = ()
    clip_frames: int = 16
    clip_least_fraction: float = 0.25
    all_points_per_side: int = 16
    all_min_iou: float = 0.5
    all_min_stability: float = 0.4
    all_max_box_iou: float = 0.7
    all_min_area: float = 0.0005
    all_max_area: float = 0.9
    all_max_regions: int = 24
    all_budget_s: float = 10.0
    find_min_score: float = 0.4
    min_mask_score: float = 0.02
    min_confidence: float = 0.0
    tracking: bool = True

    def __post_init__(self) -> None:
        _check("max_regions", self.max_regions, 1, 256)
        _check("frame_history", self.frame_history, 1, 300)
        _check("frame_history_mib", self.frame_history_mib, 1, 65536)
        _check("stamp_tolerance_s", self.stamp_tolerance_s, 0.0, 10.0)
        _check("lost_timeout_s", self.lost_timeout_s, 1e-3, 86400.0)
        _check("detection_iou", self.detection_iou, 0.0, 1.0)
        _check("max_new_tokens", self.max_new_tokens, 1, 4096)
        _check("max_queued_requests", self.max_queued_requests, 1, 1024)
        _check("caption_period_s", self.caption_period_s, 0.1, 3600.0)
        _check_times(self.decode_times_ns)
        _check("clip_frames", self.clip_frames, 1, 64)
        _check("clip_least_fraction", self.clip_least_fraction, 0.0, 1.0)
        _check("all_points_per_side", self.all_points_per_side, 1, 64)
        for name in ("all_min_iou", "all_min_stability", "all_max_box_iou", "all_min_area", "all_max_area"):
            _check(name, getattr(self, name), 0.0, 1.0)
        _check("all_max_regions", self.all_max_regions, 1, 256)
        _check("all_budget_s", self.all_budget_s, 1e-3, 60.0)
        for name in ("find_min_score", "min_mask_score", "min_confidence"):
            _check(name, getattr(self, name), 0.0, 1.0)


def _check_times(times_ns: tuple[int, ...]) -> None:
    for before, after in zip(times_ns, times_ns[1:], strict=False):
        if after - before < _SHORTEST_CLIP_NS:
            raise ValueError(
                f"decode timestamps {before / 1e9} s and {after / 1e9} s: "
                "give them in order, at least 0.1 s apart"
            )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value}; allowed: {low}..{high}")
