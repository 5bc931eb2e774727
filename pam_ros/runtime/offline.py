"""Files instead of a camera: every frame is processed, clips are cut by stamp, nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pam_ros.model.interface import (
    FIRST_FRAME_STRIDE,
    LATER_FRAME_STRIDE,
    GenerationRequest,
    Observation,
    PerceptionModel,
    RegionEmbeddings,
)
from pam_ros.records import Frame, Language, Prompt, Region, RegionState, Task, Text, crop_mask
from pam_ros.runtime.tracks import is_in_view


@dataclass(frozen=True, slots=True)
class Caption:
    """What happened in one clip of one region."""

    region_id: int
    sequence: int
    start_ns: int
    end_ns: int
    frames: int  # that the caption was made from
    text: str


@dataclass(frozen=True, slots=True)
class VideoStep:
    """One frame with its regions; `captions` are those of the clip that ends here."""

    frame: Frame
    regions: tuple[Region, ...]
    captions: tuple[Caption, ...]


def perceive_image(
    model: PerceptionModel,
    image: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    tasks: Sequence[Task],
    languages: Sequence[Language],
    on_text: Callable[[int, Task, Language, str], None] = lambda region_id, task, language, text: None,
) -> list[Region]:
    """Masks and texts of several regions of one picture: one encoder pass, one prefill each, one batch.

    `on_text` hears the texts grow. Raises PromptError where a prompt does not lie in the picture.
    """
    for prompt in prompts:
        prompt.check_size(image.shape[0], image.shape[1])
    memories = [model.new_memory() for _ in prompts]
    observations = model.segment(model.encode(image), prompts, memories)
    embeddings = [(each,) for each in model.embeddings(observations, stride=FIRST_FRAME_STRIDE, crop=True)]
    wanted = [(i, task, language) for i in range(len(prompts)) for task in tasks for language in languages]
    decode = model.decode(
        [GenerationRequest(embeddings=embeddings[i], task=t, language=lang) for i, t, lang in wanted]
    )
    texts: list[dict[tuple[Task, Language], Text]] = [{} for _ in prompts]
    while not decode.done:
        for delta in decode.step():
            i, task, language = wanted[delta.index]
            on_text(i + 1, task, language, delta.text)
            if delta.final:
                texts[i][task, language] = Text(delta.text, 0)
    return [
        region_of(i + 1, seen, present=is_in_view(seen, prompted=True), texts=texts[i])
        for i, seen in enumerate(observations)
    ]


def caption_video(
    model: PerceptionModel,
    frames: Iterable[Frame],
    stamps_ns: Sequence[int],
    prompts: Sequence[Prompt],
    *,
    every_s: float,
    language: Language,
    carry_over: bool = True,
    clip_frames: int = 16,
) -> Iterator[VideoStep]:
    """Tracks regions prompted on the first frame and captions them every `every_s` seconds.

    `stamps_ns` are those of all the frames, known in advance, so that clips are sampled exactly as the
    reference does: the first frame, and the others evenly over the rest. With `carry_over` (paper, section
    3.1) the previous clip's last frame is the first, and all the clip's own frames are sampled evenly.
    A clip shorter than `clip_frames` uses every frame it has. Raises PromptError for one outside the frame.
    """
    plan = _plan_clips(stamps_ns, every_s, clip_frames, carry_over)
    memories = [model.new_memory() for _ in prompts]
    clips: list[list[RegionEmbeddings]] = [[] for _ in prompts]
    stories: list[str | None] = [None for _ in prompts]
    last_seen = [0 for _ in prompts]
    sequence, start_ns = 0, 0
    for frame, step in zip(frames, plan, strict=False):
        features = model.encode(frame.image)
        seen = model.track(features, memories) if step.index else model.segment(features, prompts, memories)
        if step.begins:
            start_ns = frame.stamp_ns
        if step.sampled:
            first = not clips[0]
            for clip, embeddings in zip(
                clips,
                model.embeddings(seen, stride=FIRST_FRAME_STRIDE if first else LATER_FRAME_STRIDE),
                strict=True,
            ):
                clip.append(embeddings)
        captions: list[Caption] = []
        if step.ends:
            texts = _caption(model, clips, stories, language)
            count = len(clips[0])
            captions = [
                Caption(i + 1, sequence, start_ns, frame.stamp_ns, count, t) for i, t in enumerate(texts)
            ]
            stories = list(texts)
            clips = (
                [[embeddings] for embeddings in model.embeddings(seen, stride=FIRST_FRAME_STRIDE)]
                if carry_over
                else [[] for _ in prompts]
            )
            sequence += 1
        present = [is_in_view(observation, prompted=step.index == 0) for observation in seen]
        last_seen = [
            frame.stamp_ns if here else before for here, before in zip(present, last_seen, strict=True)
        ]
        regions = tuple(
            region_of(i + 1, each, present=here, created_ns=stamps_ns[0], last_visible_ns=last_ns)
            for i, (each, here, last_ns) in enumerate(zip(seen, present, last_seen, strict=True))
        )
        yield VideoStep(frame, regions, tuple(captions))


@dataclass(frozen=True, slots=True)
class _PlannedFrame:
    index: int
    begins: bool  # first frame of its clip
    ends: bool  # last frame of its clip
    sampled: bool  # enters the language model


def _plan_clips(
    stamps_ns: Sequence[int], every_s: float, clip_frames: int, carry_over: bool
) -> list[_PlannedFrame]:
    clip_of = [int((stamp - stamps_ns[0]) / (every_s * 1e9)) for stamp in stamps_ns]
    planned: list[_PlannedFrame] = []
    for clip in sorted(set(clip_of)):
        members = [i for i, owner in enumerate(clip_of) if owner == clip]
        carried = carry_over and clip > clip_of[0]
        chosen = sample_indices(len(members), clip_frames, carried=carried)
        for k, i in enumerate(members):
            planned.append(_PlannedFrame(i, begins=k == 0, ends=k == len(members) - 1, sampled=k in chosen))
    return planned


def sample_indices(frames: int, clip_frames: int, *, carried: bool) -> set[int]:
    """Which of a clip's frames are read; one place is taken where a frame was carried over."""
    room = clip_frames - 1 if carried else clip_frames
    if frames <= room:
        return set(range(frames))
    if carried:
        return set(np.linspace(0, frames - 1, room, dtype=int).tolist())
    return {0, *np.linspace(1, frames - 1, room - 1, dtype=int).tolist()}


def _caption(
    model: PerceptionModel,
    clips: Sequence[list[RegionEmbeddings]],
    stories: Sequence[str | None],
    language: Language,
) -> list[str]:
    decode = model.decode(
        [
            GenerationRequest(
                embeddings=tuple(clip), task=Task.CLIP, language=language, previous_caption=story
            )
            for clip, story in zip(clips, stories, strict=True)
        ]
    )
    texts = ["" for _ in clips]
    while not decode.done:
        for delta in decode.step():
            texts[delta.index] = delta.text
    return texts


def region_of(
    region_id: int,
    observation: Observation,
    *,
    present: bool,
    texts: Mapping[tuple[Task, Language], Text] = MappingProxyType({}),
    created_ns: int = 0,
    last_visible_ns: int = 0,
) -> Region:
    """What is shown of an observation: no mask where it is not `present`, see `tracks.is_in_view`."""
    box, mask = crop_mask(observation.mask if present else np.zeros(observation.mask.shape, np.bool_))
    return Region(
        region_id=region_id,
        state=RegionState.TRACKED if present else RegionState.LOST,
        box_xyxy=box,
        mask=mask,
        mask_score=observation.mask_score,
        presence_score=observation.presence_score,
        texts=texts,
        created_ns=created_ns,
        last_visible_ns=last_visible_ns,
    )
