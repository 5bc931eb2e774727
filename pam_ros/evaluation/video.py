"""Tracking in videos: DAVIS's J&F from one box, and whether lost objects are reported lost and found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np

from pam_ros.datasets.schema import Sample, SampleSource
from pam_ros.evaluation.cases import Case, Findings
from pam_ros.evaluation.masks import NO_MASKS, SMALLEST_OBJECT
from pam_ros.evaluation.pictures import video_case
from pam_ros.geometry import Mask, full_mask, mask_iou
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Region, RegionState
from pam_ros.runtime.offline import follow_video

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal, as in DAVIS
GONE_BELOW = 1e-4  # of the image's area: an object with fewer visible pixels is gone
GONE_FRAMES = 4  # shortest absence that counts
BACK_FRAMES = 4  # shortest time it must then be in view
FOUND_WITHIN_FRAMES = 8
FOUND_IOU = 0.5
SHOWN_FRAMES = 6  # on a case's image


# ---- J and F


def boundary(mask: Mask) -> Mask:
    """(H, W) bool: pixels whose right, lower or lower right neighbour is on the other side (DAVIS's rule)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return np.asarray((here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:]))


def boundary_f(truth: Mask, found: Mask) -> float:
    """DAVIS's contour accuracy F of two (H, W) bool masks, 0..1 (Perazzi et al., CVPR 2016, section 4.1).

    The F-measure of boundary pixels that lie within `BOUNDARY_TOLERANCE` times the diagonal (rounded up,
    pixels) of the other mask's boundary. 1 if neither mask has a boundary, 0 if one has none.
    """
    edges = boundary(truth), boundary(found)
    counts = [int(np.count_nonzero(edge)) for edge in edges]
    if not all(counts):
        return float(not any(counts))
    reach_px = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape))
    near = [
        cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= reach_px
        for edge in edges
    ]
    recall = int(np.count_nonzero(edges[0] & near[1])) / counts[0]
    precision = int(np.count_nonzero(edges[1] & near[0])) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(slots=True)
class _Course:
    """One object through a video, frame by frame.

    Attributes:
        j, f: as in `evaluate_video`; visible: the object's fraction of the image; lost: by the runtime.
        iou: with the true mask, also while the object is not visible.
        shown: (frame, region) for the case's image.
    """

    j: list[float]
    f: list[float]
    visible: list[float]
    lost: list[bool]
    iou: list[float]
    shown: list[tuple[int, Region]]

    def take(self, region: Region, truth: Mask) -> None:
        found = full_mask(region.box_xyxy, region.mask, truth.shape)
        visible = int(np.count_nonzero(truth))
        self.iou.append(mask_iou(truth, found))
        self.j.append(self.iou[-1])
        self.f.append(boundary_f(truth, found) if visible else float(not found.any()))
        self.visible.append(visible / truth.size)
        self.lost.append(region.state is RegionState.LOST)


def evaluate_video(
    model: PerceptionModel,
    videos: SampleSource,
    findings: Findings,
    progress: Callable[[str], None] = lambda line: None,
    *,
    absences: SampleSource = (),
) -> None:
    """Adds `jf_video` with its halves, `jf_video_moving`, and `recovery_rate`.

    `jf_video`: per object of at least `SMALLEST_OBJECT` of the first frame, prompted there by its tight box:
    the mean over all frames, the first and last included, of (J + F) / 2. J is the mask's IoU, F the
    boundary's accuracy. In a frame without the object both are 1 if the answer is empty, else 0.
    `region_j_video` and `boundary_f_video` are its halves, `jf_video_moving` counts only objects to which
    something happens.

    `recovery_rate`: of the absences (an object has fewer visible pixels than `GONE_BELOW` of the image for
    at least `GONE_FRAMES` frames, and is later in view with at least `SMALLEST_OBJECT` of it for at least
    `BACK_FRAMES` frames in a row): the fraction in which the runtime reports "lost" in at least half of the
    gone frames, and shows the region under its id, with an IoU of at least `FOUND_IOU`, in one of the first
    `FOUND_WITHIN_FRAMES` frames in view. Only this is judged on the videos of `absences`.
    """
    for number, video in enumerate(chain(videos, absences), 1):
        progress(f"tracking in video {number} of {len(videos) + len(absences)}")
        for place, course in _courses(model, video):
            if number <= len(videos):
                _judge(video, place, course, findings)
            _judge_absences(video, place, course, findings)
    known = any(region.masks for video in videos for region in video.regions)
    why = "there are no videos" if not videos else "" if known else NO_MASKS
    for key in ("jf_video", "recovery_rate"):
        findings.lack(key, why or "no object of these videos goes away and comes back")


def _courses(model: PerceptionModel, video: Sample) -> list[tuple[int, _Course]]:
    """(place in the video's regions, course) of every object with masks that is large enough."""
    if not any(region.masks for region in video.regions):
        return []
    courses = [_Course([], [], [], [], [], []) for _ in video.regions]
    shown = set(np.linspace(0, len(video) - 1, SHOWN_FRAMES).astype(int).tolist())
    prompts = [region.prompt() for region in video.regions]
    size = model.info.max_regions or len(prompts)
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        for index, step in enumerate(follow_video(model, video.stream(), prompts[part])):
            for course, region, true in zip(courses[part], step.regions, video.regions[part], strict=True):
                if (truth := true.mask(index)) is None:
                    continue
                course.take(region, truth)
                if index in shown:
                    course.shown.append((index, region))
    return [
        (place, course)
        for place, course in enumerate(courses)
        if course.visible and course.visible[0] >= SMALLEST_OBJECT
    ]


def _judge(video: Sample, place: int, course: _Course, findings: Findings) -> None:
    region = video.regions[place]
    sample, picture = f"{video.name} {region.name}", video_case(video, place, course.shown)
    j, f = float(np.mean(course.j)), float(np.mean(course.f))
    events = [event for *_, event in region.segments]
    extra = ["jf_video_moving"] if set(events) - {"still"} else []
    for metric, score in (("jf_video", (j + f) / 2), ("region_j_video", j), ("boundary_f_video", f)):
        text = f"{region.category}: {', '.join(events)}"
        findings.add(Case(metric, sample, score, text, f"J {j:.3f}, F {f:.3f}", picture))
    for metric in extra:
        findings.add(Case(metric, sample, (j + f) / 2, ", ".join(events), f"J {j:.3f}, F {f:.3f}", picture))


def _judge_absences(video: Sample, place: int, course: _Course, findings: Findings) -> None:
    for gone, back in absences_in(course.visible):
        lost_frames = sum(course.lost[gone.start : gone.stop])
        best = max(
            iou * (not lost)
            for iou, lost in zip(
                course.iou[back.start : back.stop], course.lost[back.start : back.stop], strict=True
            )
        )
        right = lost_frames >= len(gone) / 2 and best >= FOUND_IOU
        findings.add(
            Case(
                "recovery_rate",
                f"{video.name} {video.regions[place].name} frame {gone.start}",
                float(right),
                f"{video.regions[place].category}: gone in frames {gone.start}..{gone.stop - 1}",
                f"reported lost in {lost_frames} of {len(gone)}, best IoU back in view {best:.2f}",
                video_case(video, place, course.shown),
            )
        )


def absences_in(visible: Sequence[float]) -> list[tuple[range, range]]:
    """Visible fraction of the image per frame → (gone frames, first frames back in view) of every absence.

    The second range starts when the object is well in view and has at most `FOUND_WITHIN_FRAMES` frames.
    """
    found: list[tuple[range, range]] = []
    index = 0
    while index < len(visible):
        start = index
        while index < len(visible) and visible[index] < GONE_BELOW:
            index += 1
        if index == start:
            index += 1
        elif index - start >= GONE_FRAMES and (back := _back(visible, index)):
            found.append((range(start, index), back))
    return found


def _back(visible: Sequence[float], index: int) -> range | None:
    """The frames in which the object is well in view again, before it goes away once more."""
    while index < len(visible) and GONE_BELOW <= visible[index] < SMALLEST_OBJECT:
        index += 1
    end = index
    while end < len(visible) and visible[end] >= SMALLEST_OBJECT:
        end += 1
    return range(index, min(end, index + FOUND_WITHIN_FRAMES)) if end - index >= BACK_FRAMES else None
