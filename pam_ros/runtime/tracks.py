"""Per-region tracking state: memory, lost / found, ids; and what one camera's regions share."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import Box, box_ious, crop_mask
from pam_ros.model.interface import FrameFeatures, Observation, RegionMemory
from pam_ros.records import Detection, Frame, Language, Region, RegionState, Task, Text
from pam_ros.runtime.statistics import CameraStatistics, RateMeter, Smoothed

LOST_BELOW = 0.5  # presence score
# Mask score. A tracked region below it is lost: without its object, a mask is a few stray pixels.
NO_MASK_BELOW = 0.15
_JUMP_NS = 5_000_000_000  # a longer time between two frames may be a wrong stamp
EMPTY_BOX = np.zeros(4, np.float32)
EMPTY_MASK = np.zeros((0, 0), np.bool_)


def is_in_view(found: Observation, *, prompted: bool) -> bool:
    """False if the region is lost. An empty mask counts as lost: there is nothing to show.

    A prompted region is judged by its presence alone, however poor its mask.
    """
    present = found.presence_score >= LOST_BELOW and bool(found.mask.any())
    return present and (prompted or found.mask_score >= NO_MASK_BELOW)


@dataclass(frozen=True, slots=True, eq=False)
class TrackObservation:
    """One region in one frame, prompted in it or tracked into it."""

    output: Observation
    stamp_ns: int
    frame_id: str
    arrived_s: float  # when the frame arrived, seconds of the runtime's clock
    prompted: bool = False
    observation_id: int = field(default_factory=count(1).__next__)  # unique in the process

    @property
    def in_view(self) -> bool:
        """See `is_in_view`."""
        return is_in_view(self.output, prompted=self.prompted)


@dataclass(slots=True, eq=False)
class Track:
    """One region of one camera. Only the worker touches it.

    Attributes:
        memory: None if regions are not tracked, see `EngineOptions.tracking`.
        last_visible: observation in the newest frame in which it was in view (at first, of its prompt).
        last_observed: observation in the newest frame, in view or not. Clips hold these, so that captions can
            say that the object left, as the reference's do.
        state, box, mask, mask_score, presence_score: as of the newest frame.
        lost_since_ns: stamp of the first frame in which it was not in view any more; None while tracked.
        boxes: (stamp, box) of recent frames in which it was in view, for detections that arrive late.
        source: the detection it was made from; None if it was prompted.
        detector_box: a detector's box relative to `box` at that time, (x1, y1, x2, y2) in box widths and
            heights. A detector's box differs from the mask's; it must still match its region later.
        texts: final texts, in the order in which they were asked for.
    """

    region_id: int
    memory: RegionMemory | None
    created_ns: int
    last_visible: TrackObservation
    boxes: deque[tuple[int, Box]]
    state: RegionState = RegionState.TRACKED
    box: Box = field(default_factory=lambda: EMPTY_BOX)
    mask: NDArray[np.bool_] = field(default_factory=lambda: EMPTY_MASK)
    mask_score: float = 0.0
    presence_score: float = 0.0
    lost_since_ns: int | None = None
    texts: dict[tuple[Task, Language], Text] = field(default_factory=dict)
    source: Detection | None = None
    detector_box: NDArray[np.float32] | None = None
    removed: bool = False
    _order: dict[tuple[Task, Language], None] = field(default_factory=dict)  # every text ever asked for
    _under_way: dict[Hashable, tuple[tuple[Task, Language], ...]] = field(default_factory=dict)  # by job
    last_observed: TrackObservation = field(init=False)

    def __post_init__(self) -> None:
        self.last_observed = self.last_visible

    def observe(self, observation: TrackObservation) -> None:
        """Takes in the region's newest observation."""
        output, self.last_observed = observation.output, observation
        self.mask_score, self.presence_score = (
            float(output.mask_score),
            float(output.presence_score),
        )
        if not observation.in_view:
            self.miss(observation.stamp_ns)
            return
        self.state, self.lost_since_ns = RegionState.TRACKED, None
        self.box, self.mask = crop_mask(output.mask)
        self.last_visible = observation
        self.boxes.append((observation.stamp_ns, self.box))

    def expect(self, job: Hashable, texts: Iterable[tuple[Task, Language]]) -> None:
        """A job was asked for texts: `texts` will list them in this order, whichever is finished first."""
        self._under_way[job] = tuple(texts)
        self._order |= dict.fromkeys(self._under_way[job])

    def settle(self, job: Hashable) -> None:
        """The job has ended, with or without its texts."""
        self._under_way.pop(job, None)

    @property
    def asked(self) -> tuple[tuple[Task, Language], ...]:
        """See Region."""
        coming = {each for texts in self._under_way.values() for each in texts}
        return tuple(each for each in self._order if each in coming or each in self.texts)

    def add_text(self, task: Task, language: Language, text: Text) -> None:
        """Adds or replaces a final text, which was expected."""
        self.texts[task, language] = text
        self.texts = {each: self.texts[each] for each in self._order if each in self.texts}

    def miss(self, stamp_ns: int) -> None:
        """The region was not found in the frame of this stamp."""
        self.state, self.box, self.mask = RegionState.LOST, EMPTY_BOX, EMPTY_MASK
        if self.lost_since_ns is None or stamp_ns < self.lost_since_ns:  # the latter: stamps jumped back
            self.lost_since_ns = stamp_ns

    def observed_at(self, stamp_ns: int) -> TrackObservation | None:
        """Its observation in the frame of this stamp; None if it was not looked for in that frame."""
        return self.last_observed if self.last_observed.stamp_ns == stamp_ns else None

    def lost_for_s(self, stamp_ns: int) -> float:
        """Seconds of stream time since it went out of view; 0 while it is tracked."""
        return 0.0 if self.lost_since_ns is None else (stamp_ns - self.lost_since_ns) / 1e9

    def boxes_at(self, stamp_ns: int) -> list[Box]:
        """Its box in the frame of this stamp and, after it, its detector's; empty if it was never in view."""
        if not self.boxes:
            return []
        known = min(self.boxes, key=lambda each: abs(each[0] - stamp_ns))[1]
        if self.detector_box is None:
            return [known]
        corner, extent = known[[0, 1, 0, 1]], (known[2:] - known[:2])[[0, 1, 0, 1]]
        return [known, corner + self.detector_box * extent]

    def remember_detection(self, box: Box) -> None:
        """Remembers a detector's box of this region, relative to the mask's box in the newest frame."""
        extent = (self.box[2:] - self.box[:2])[[0, 1, 0, 1]]
        if (extent > 0).all():
            self.detector_box = (box - self.box[[0, 1, 0, 1]]) / extent

    def snapshot(self) -> Region:
        """The region as of the newest frame."""
        return Region(
            region_id=self.region_id,
            state=self.state,
            box_xyxy=self.box,
            mask=self.mask,
            mask_score=self.mask_score,
            presence_score=self.presence_score,
            texts=MappingProxyType(dict(self.texts)),
            created_ns=self.created_ns,
            last_visible_ns=self.last_visible.stamp_ns,
            source_id=self.source.source_id if self.source is not None else "",
            source_class=self.source.source_class if self.source is not None else "",
            asked=self.asked,
        )


@dataclass(slots=True, eq=False)
class CameraTracks:
    """The regions of one camera and its newest frame. Only the worker touches it.

    Attributes:
        frame: the newest; kept for clicks that come after the camera has stopped.
        before_ns: stamp of the frame before.
        features: of `frame`, once a region was looked for in it.
        ids: of the regions to come. They only grow: an id means one region for the life of the process.
        tracked, lost: number of regions, for other threads to read.
    """

    name: str
    regions: dict[int, Track] = field(default_factory=dict)
    frame: Frame | None = None
    arrived_s: float = 0.0
    features: FrameFeatures | None = None
    before_ns: int = 0
    ids: Iterator[int] = field(default_factory=lambda: count(1))
    processed: int = 0
    rate: RateMeter = field(default_factory=RateMeter)
    mask_latency_s: Smoothed = field(default_factory=Smoothed)
    tracked: int = 0
    lost: int = 0

    def begin(self, frame: Frame, arrived_s: float) -> bool:
        """Makes `frame` the newest. Returns True if its stamp jumped back."""
        before, self.frame, self.arrived_s, self.features = self.frame, frame, arrived_s, None
        self.before_ns = frame.stamp_ns if before is None else before.stamp_ns
        jumped = before is not None and frame.stamp_ns < before.stamp_ns
        if jumped or (before is not None and frame.size != before.size):
            for track in self.regions.values():
                track.boxes.clear()  # their pixels or stamps are no longer valid
        return jumped

    def lost_for_s(self, track: Track) -> float:
        """Seconds of stream time since the region went out of view.

        A frame that jumps ahead counts once another one follows it: a single wrong stamp makes no region old.
        """
        newest_ns = self.frame.stamp_ns if self.frame is not None else self.before_ns
        return track.lost_for_s(newest_ns if newest_ns - self.before_ns <= _JUMP_NS else self.before_ns)

    def region_at(self, x: float, y: float) -> int:
        """Id of the smallest region whose newest mask covers this pixel; 0 if there is none."""
        covering = [track for track in self.regions.values() if _covers(track, round(x), round(y))]
        smallest = min(covering, key=lambda track: np.count_nonzero(track.mask), default=None)
        return 0 if smallest is None else smallest.region_id

    def match(self, boxes: NDArray[np.float32], stamp_ns: int, min_iou: float) -> list[int]:
        """(N, 4) boxes of a detector in the frame of this stamp → the region that each shows; 0 if new."""
        ids = np.zeros(len(boxes), np.int64)
        for region_id, track in self.regions.items():
            if known := track.boxes_at(stamp_ns):
                ids[(ids == 0) & (box_ious(boxes, np.array(known)) > min_iou).any(1)] = region_id
        matched: list[int] = ids.tolist()
        return matched

    def count(self) -> None:
        """Brings `tracked` and `lost` up to date."""
        self.tracked = sum(track.state is RegionState.TRACKED for track in self.regions.values())
        self.lost = len(self.regions) - self.tracked

    def statistics(
        self, received: int, dropped: int, last_stamp_ns: int | None, age_s: float, now_s: float
    ) -> CameraStatistics:
        """The camera as of now, with the inbox's counters; may be called from any thread."""
        return CameraStatistics(
            camera=self.name,
            received=received,
            processed=self.processed,
            dropped=dropped,
            rate_hz=self.rate.rate_hz(now_s),
            regions_tracked=self.tracked,
            regions_lost=self.lost,
            mask_latency_s=self.mask_latency_s.value or 0.0,
            last_stamp_ns=last_stamp_ns,
            age_s=age_s,
        )

    def forget(self) -> None:
        """Drops regions and frames; keeps ids and counters."""
        self.regions.clear()
        self.frame = self.features = None
        self.count()


def _covers(track: Track, x: int, y: int) -> bool:
    x1, y1, x2, y2 = (int(side) for side in track.box)
    return x1 <= x < x2 and y1 <= y < y2 and bool(track.mask[y - y1, x - x1])
