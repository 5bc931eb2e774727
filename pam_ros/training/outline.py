"""Outlines: samples without masks and with few texts, so that those of a whole data set fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pam_ros.datasets.schema import Clip, FramePrompt, Sample, SampleRegion
from pam_ros.records import Language, Task

KEPT_TEXTS = ((Task.LABEL, Language.EN), (Task.BRIEF, Language.EN))  # one wording each


def outlines_of(source: Iterable[Sample]) -> list[Sample]:
    """Reads all samples once. Their outlines fit into memory; texts and masks are read again when used."""
    return [outline(sample) for sample in source]


def outline(sample: Sample) -> Sample:
    """The sample with the first frame's boxes for masks; only label and brief caption keep their texts."""
    return replace(
        sample, regions=tuple(_outline(region) for region in sample.regions), other_masks=(), extra={}
    )


def _outline(region: SampleRegion) -> SampleRegion:
    box = region.box_xyxy(0)
    texts = {key: (texts[0] if key in KEPT_TEXTS else "",) for key, texts in region.texts.items() if texts}
    return replace(
        region,
        masks=(),
        prompts={} if box is None else {0: FramePrompt(box)},
        texts=texts,
        clips=tuple(tuple(_blank(clip) for clip in sequence) for sequence in region.clips),
        path_m=(),
        extra={},
    )


def _blank(clip: Clip) -> Clip:
    return replace(clip, captions=dict.fromkeys(clip.captions, ("",)), previous={})
