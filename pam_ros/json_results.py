"""Regions and captions as JSON, with the field names of Region.msg, RegionText.msg and StreamingCaption.msg.

Differences: stamps are nanoseconds (`…_ns`), the box is `box_xyxy` (x1, y1, x2, y2), pixels, the mask is its
area in pixels, position and size are [x, y, z] in metres, a text that is not known is left out (so is
`pending` if it is empty), and a number that is not known is null.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pam_ros.records import Language, Region, Task

# Task → the field that holds its text; the text's confidence is in `<field>_confidence`.
TEXT_FIELDS = {
    Task.LABEL: "label",
    Task.EXPLAIN: "explanation",
    Task.BRIEF: "brief_caption",
    Task.DETAIL: "detailed_caption",
}


def region_json(region: Region) -> dict[str, Any]:
    """A region as plain JSON values."""
    texts: dict[Language, dict[str, Any]] = {}
    for (task, language), text in region.asked_texts():
        entry = texts.setdefault(language, {"language": language.value})
        if text is None:
            entry.setdefault("pending", []).append(task.value)
            continue
        entry[TEXT_FIELDS[task]] = text.text
        entry[f"{TEXT_FIELDS[task]}_confidence"] = _rounded(text.confidence)
        entry[f"{TEXT_FIELDS[task]}_unsure"] = text.unsure
    return {
        "id": region.region_id,
        "state": region.state.name.lower(),
        "texts": list(texts.values()),
        "mask_score": _rounded(region.mask_score),
        "presence_score": _rounded(region.presence_score),
        "source_id": region.source_id,
        "source_class": region.source_class,
        "created_ns": region.created_ns,
        "last_visible_ns": region.last_visible_ns,
        "box_xyxy": [round(float(side), 1) for side in region.box_xyxy],
        "area_px": int(region.mask.sum()),
        "position": None if region.surface is None else _metres(region.surface.position_m),
        "size": None if region.surface is None else _metres(region.surface.size_m),
    }


def caption_json(
    *,
    region_id: int,
    sequence: int,
    language: Language,
    text: str,
    confidence: float | None,
    unsure: bool,
    clip_start_ns: int,
    clip_end_ns: int,
    frame_count: int,
    clip_too_thin: bool,
    summary: bool,
) -> dict[str, Any]:
    """The final caption of one clip, or the summary of a stream, as plain JSON values."""
    return {
        "region_id": region_id,
        "sequence": sequence,
        "language": language.value,
        "text": text,
        "confidence": _rounded(confidence),
        "unsure": unsure,
        "clip_start_ns": clip_start_ns,
        "clip_end_ns": clip_end_ns,
        "frame_count": frame_count,
        "clip_too_thin": clip_too_thin,
        "summary": summary,
    }


def _metres(vector_m: NDArray[np.float64]) -> list[float]:
    """Tenths of a millimetre are enough."""
    return [round(value, 4) for value in vector_m.tolist()]


def _rounded(probability: float | None) -> float | None:
    """Four digits are enough; None, not known, stays None."""
    return None if probability is None else round(float(probability), 4)
