"""Streaming captions of videos: whether they name the true events, and continue one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

import numpy as np

from pam_ros.datasets.schema import Clip, Kind, Sample, SampleRegion, SampleSource
from pam_ros.evaluation.cases import Case, Draw, Findings
from pam_ros.evaluation.judges import CaptionSequence, Judge, JudgeError
from pam_ros.evaluation.samples import SPOKEN
from pam_ros.evaluation.wording import Wording, add_wordings
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Language, Region, Task
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.offline import caption_video
from pam_ros.runtime.summary import summarise
from pam_ros.simulator.texts.judge import judge as read_text

PERIOD_S = 3.0  # of the clips; within the 1.5..5.5 s of training's windows
SHORTEST_CLIP = 0.4  # of the period; shorter remainders are not scored, since training has none
SHOWN_FRAMES = 6  # on a case's image
WORDINGS = 3  # of right captions
NO_VIDEOS = "there are no videos"
NO_EVENTS = "the data do not name the events of their videos"
TOO_SHORT = f"no region has two clips with known events; {NO_EVENTS}, or they are too short"


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """One captioned clip of one region.

    Attributes:
        start, end: its frames, end exclusive, without the frame carried over from the clip before.
        text: the model's caption.
        events: true events, ids of the ontology; () if the data do not say.
        references: right captions; () if none is known.
        regions: (frame index, the model's region there) of some of its frames.
    """

    start: int
    end: int
    text: str
    events: tuple[str, ...]
    references: tuple[str, ...]
    regions: tuple[tuple[int, Region], ...]


def evaluate_stream(
    model: PerceptionModel,
    videos: SampleSource,
    findings: Findings,
    judge: Judge,
    *,
    languages: Sequence[Language] = tuple(Language),
    every_s: float = PERIOD_S,
    carry_over: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Captions videos as `pam caption` does: clips of `every_s`, each with the previous frame and caption.

    In each video the acting object and one bystander are prompted by their boxes on the first frame, both at
    once. Adds, in English and with `_zh` in Chinese:

    - `event_accuracy`: of a clip, 1 if its caption names exactly the true events. These are as in training
      (`simulator.samples.events_between`): of the clip's own frames, the first two events of which at least
      half lies inside the clip, or that fill two thirds of it; without any, the longest state of rest
      ("still", "held", "stays covered", "stays away"). Smaller fragments at the borders of a clip must not be
      named. A last clip shorter than 0.4 of the period is not scored.
    - `event_accuracy_actor`, `event_accuracy_bystander`: the same for one of them.
    - `continuity`: by `judge`, for every region with at least two scored clips.
    - `summary_events`: of a region with at least two scored clips, how well the summary of their captions
      (`runtime.summary`) names the true events in their order: 2 m / (found + true), m of them matched in
      order (difflib). An event that several clips share is one; named twice, it counts as found twice.
    - `rouge_l_clip_en` …: see `wording.add_wordings`.
    """
    wordings: list[Wording] = []
    unwilling = ""
    for number, video in enumerate(videos, 1):
        for language in (each for each in languages if can_be_judged(video, each)):
            progress(f"captions of video {number} of {len(videos)}, {language.value}")
            chosen = chosen_regions(video)
            for place, clips in captioned_clips(model, video, chosen, language, every_s, carry_over).items():
                wordings += _judge_clips(video, place, clips, language, findings)
                _judge_summary(video, place, clips, language, findings)
                try:
                    if not unwilling:
                        _judge_sequence(video, place, clips, language, findings, judge)
                except JudgeError as error:  # other results of the run must not be lost
                    unwilling = str(error)
    add_wordings(wordings, findings)
    for language in languages:
        spoken = SPOKEN[language]
        findings.lack(f"event_accuracy{spoken}", NO_EVENTS if videos else NO_VIDEOS)
        findings.lack(f"summary_events{spoken}", TOO_SHORT if videos else NO_VIDEOS)
        findings.lack(f"continuity{spoken}", unwilling or (TOO_SHORT if videos else NO_VIDEOS))


# ---- what is captioned


def chosen_regions(video: Sample) -> tuple[int, ...]:
    """Places in `video.regions` of the actor and of one bystander.

    The bystander is the first to which something happens, else the largest in the first frame. Without a
    known actor: every region.
    """
    actor = [i for i, region in enumerate(video.regions) if video.actor and region.object_id == video.actor]
    if not actor:
        return tuple(range(len(video.regions)))

    def interest(place: int) -> tuple[bool, float]:
        region = video.regions[place]
        x1, y1, x2, y2 = region.box_xyxy() or (0.0, 0.0, 0.0, 0.0)
        return any(event != "still" for *_, event in region.segments), (x2 - x1) * (y2 - y1)

    others = [i for i, region in enumerate(video.regions) if i not in actor and region.kind is Kind.OBJECT]
    return (*actor, max(others, key=interest)) if others else tuple(actor)


def can_be_judged(video: Sample, language: Language) -> bool:
    """Whether the data have events, or captions in this language."""
    return any(
        region.segments or any(clip.captions.get(language) for clip in forward_clips(region))
        for region in video.regions
    )


def forward_clips(region: SampleRegion) -> list[Clip]:
    """The region's own clips, without those that show the video backwards."""
    return [clip for sequence in region.clips for clip in sequence if not clip.backward]


def captioned_clips(
    model: PerceptionModel,
    video: Sample,
    places: Sequence[int],
    language: Language,
    every_s: float,
    carry_over: bool,
) -> dict[int, list[CaptionedClip]]:
    """The captions of these regions by the runtime's own engine, with the truth of each clip."""
    limit = model.info.max_regions or len(places)
    if len(places) > limit:  # in several runs
        runs = [places[i : i + limit] for i in range(0, len(places), limit)]
        found = [captioned_clips(model, video, run, language, every_s, carry_over) for run in runs]
        return {place: each for part in found for place, each in part.items()}
    index_of = {stamp: index for index, stamp in enumerate(video.stamps_ns())}
    prompts = [video.regions[place].prompt() for place in places]
    clips: dict[int, list[CaptionedClip]] = {place: [] for place in places}
    seen: list[tuple[Region, ...]] = []
    for step in caption_video(
        model, video.stream(), prompts, every_s=every_s, language=language, carry_over=carry_over
    ):
        seen.append(step.regions)
        for caption in step.captions:
            place = places[caption.region_id - 1]
            start, end = index_of[caption.clip_start_ns], index_of[caption.clip_end_ns] + 1
            if clips[place]:  # the frame carried over is the last one of the clip before
                start = max(start, clips[place][-1].end)
            if (end - start) / video.fps >= SHORTEST_CLIP * every_s:
                clips[place].append(
                    _captioned_clip(video, place, caption, start, end, seen, clips[place], language)
                )
    return clips


def _captioned_clip(
    video: Sample,
    place: int,
    caption: CaptionEvent,
    start: int,
    end: int,
    seen: Sequence[tuple[Region, ...]],
    before: Sequence[CaptionedClip],
    language: Language,
) -> CaptionedClip:
    region = video.regions[place]
    events = events_in(region, start, end)
    previous = before[-1].events if before else ()
    shown = np.unique(np.linspace(start, end - 1, SHOWN_FRAMES).astype(int)).tolist()
    return CaptionedClip(
        start=start,
        end=end,
        text=caption.text,
        events=events,
        references=right_captions(region, start, end, events, previous, language),
        regions=tuple((index, seen[index][caption.region_id - 1]) for index in shown),
    )


def events_in(region: SampleRegion, start: int, end: int) -> tuple[str, ...]:
    """The true events of a region in frames start..end (end exclusive), as in training's windows."""
    if not region.segments:
        return ()
    from pam_ros.simulator.events.stage import Segment
    from pam_ros.simulator.samples import (
        events_between,
    )  # brings MuJoCo, which evaluating other data does not need

    return events_between([Segment(*segment) for segment in region.segments], start, end)


def right_captions(
    region: SampleRegion,
    start: int,
    end: int,
    events: Sequence[str],
    previous: Sequence[str],
    language: Language,
) -> tuple[str, ...]:
    """Right captions of a clip in several wordings.

    If its events are not known: those of the data's own clip that shares most frames with it.
    """
    if not events:
        known = [(min(end, clip.end) - max(start, clip.start), clip) for clip in forward_clips(region)]
        overlap, best = max(known, key=lambda pair: pair[0], default=(0, None))
        return tuple(best.captions.get(language, ())) if best is not None and overlap > 0 else ()
    from pam_ros.simulator.texts.captions import clip_caption
    from pam_ros.simulator.texts.facts import Facts

    facts = Facts(region.category, "object", colour=region.colour, material=region.material)
    rng = np.random.default_rng([start, end])
    worded = [clip_caption(facts, events, previous, language, rng) for _ in range(WORDINGS)]
    return tuple(dict.fromkeys(worded))


# ---- scores


def _judge_clips(
    video: Sample,
    place: int,
    clips: Sequence[CaptionedClip],
    language: Language,
    findings: Findings,
) -> list[Wording]:
    """Adds the cases of events; returns the captions whose wording is compared."""
    from pam_ros.evaluation.pictures import video_case  # imports OpenCV, which judging texts does not need

    region, wordings = video.regions[place], []
    role = "" if not video.actor else "_actor" if region.object_id == video.actor else "_bystander"
    for clip in clips:
        sample = f"{video.name} {region.name} frames {clip.start}..{clip.end}"
        picture = video_case(video, place, clip.regions)
        if clip.events:
            right = float(events_are_right(clip.text, language, clip.events))
            truth = f"{region.category}: {', '.join(clip.events)}"
            key = f"event_accuracy{SPOKEN[language]}"
            for metric in dict.fromkeys((key, key + role)):
                findings.add(Case(metric, sample, right, truth, clip.text, picture))
        if clip.references:
            wordings.append(Wording(sample, Task.CLIP, language, clip.text, clip.references, picture))
    return wordings


def events_are_right(text: str, language: Language, events: Sequence[str]) -> bool:
    """Whether the set of events a caption names is the set of these ids."""
    return set(read_text(text, language).events) == set(events)


def _judge_summary(
    video: Sample, place: int, clips: Sequence[CaptionedClip], language: Language, findings: Findings
) -> None:
    """Adds the case of the captions' summary if it covers several clips with known events."""
    from pam_ros.evaluation.pictures import video_case

    if len(clips) < 2 or not all(clip.events for clip in clips):
        return
    region = video.regions[place]
    text = summarise([clip.text for clip in clips], language)
    truth = [event for clip in clips for event in clip.events]
    score = events_in_order(text, language, truth)
    shown: Draw = video_case(video, place, [clip.regions[-1] for clip in clips])
    what = f"{region.category}: {', '.join(truth)}"
    key = f"summary_events{SPOKEN[language]}"
    findings.add(Case(key, f"{video.name} {region.name}", score, what, text, shown))


def events_in_order(text: str, language: Language, truth: Sequence[str]) -> float:
    """0..1: how well the events that a text names are the true ones, in order; see `summary_events`."""
    found = read_text(text, language).events
    expected = [event for event, _ in groupby(truth)]
    return SequenceMatcher(None, found, expected, autojunk=False).ratio()


def _judge_sequence(
    video: Sample,
    place: int,
    clips: Sequence[CaptionedClip],
    language: Language,
    findings: Findings,
    judge: Judge,
) -> None:
    """Adds the case of continuity if the judge can tell."""
    from pam_ros.evaluation.pictures import video_case

    region = video.regions[place]
    sequence = CaptionSequence(
        sample=f"{video.name} {region.name}",
        language=language,
        captions=tuple(clip.text for clip in clips),
        references=tuple(clip.references[0] if clip.references else "" for clip in clips),
        category=region.category,
        events=tuple(clip.events for clip in clips),
    )
    score = judge.continuity(sequence) if len(clips) > 1 else None
    if score is not None:
        truth, found = (" | ".join(texts) for texts in (sequence.references, sequence.captions))
        shown: Draw = video_case(video, place, [clip.regions[-1] for clip in clips])
        findings.add(Case(f"continuity{SPOKEN[language]}", sequence.sample, score, truth, found, shown))
