"""Per-region tracking state: memory, lost / found, ids; and what one camera's regions share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pam_ros.model.interface import FrameFeatures, Observation, RegionMemory
from pam_ros.records import Frame, Language, Region, RegionState, Task, Text, crop_mask
from pam_ros.runtime.statistics import CameraStatistics, RateMeter, Smoothed

LOST_BELOW = 0.5  # presence score
# Mask score. What is tracked with less is not there: with its object gone, a mask is a few pixels somewhere.
NO_MASK_BELOW = 0.15
EMPTY_BOX = np.zeros(4, np.float32)
EMPTY_MASK = np.zeros((0, 0), np.bool_)

Box = NDArray[np.float32]  # (4,) x1, y1, x2, y2, pixels; x2, y2 exclusive


def is_in_view(found: Observation, *, prompted: bool) -> bool:
    """False where the region is lost. A mask without a pixel is lost as well: there is nothing to show.

    What somebody pointed at is taken by its presence alone, however poor its mask.
    """
    present = found.presence_score >= LOST_BELOW and bool(found.mask.any())
    return present and (prompted or found.mask_score >= NO_MASK_BELOW)


@dataclass(frozen=True, slots=True, eq=False)
class TrackObservation:
    """A region looked for in one frame; `prompted` in that frame, or tracked."""

    output: Observation
    stamp_ns: int
    frame_id: str
    arrived_s: float  # when the frame came, seconds of the runtime's clock
    prompted: bool = False

    @property
    def in_view(self) -> bool:
        """See `is_in_view`."""
        return is_in_view(self.output, prompted=self.prompted)


@dataclass(slots=True, eq=False)
class Track:
    """One region of one camera. Only the worker touches it.

    Attributes:
        seen: the newest frame in which it was in view (or, before the first, that of its prompt).
        looked: the newest frame it was looked for in, in view or not; clips hold these, so that captions can
            tell that it left, as the reference's do.
        state, box, mask, mask_score, presence_score: as of the newest frame it was looked for in.
        lost_since_ns: stamp of the first frame in which it was not seen any more; None while tracked.
        boxes: (stamp, box) of recent frames in which it was seen, for detections that come late.
        detector_box: a detector's box relative to `box` at that time, (x1, y1, x2, y2) in box widths and
            heights; detectors draw other boxes than masks have, and must still know their object again.
    """

    region_id: int
    memory: RegionMemory
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
    detector_box: NDArray[np.float32] | None = None
    last_observed: TrackObservation = field(init=False)

    def __post_init__(self) -> None:
        self.last_observed = self.last_visible

    def observe(self, observation: TrackObservation) -> None:
        """Takes in what the model says about the region in one frame."""
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

    def miss(self, stamp_ns: int) -> None:
        """The region was not found in the frame of this stamp."""
        self.state, self.box, self.mask = RegionState.LOST, EMPTY_BOX, EMPTY_MASK
        if self.lost_since_ns is None or stamp_ns < self.lost_since_ns:  # the latter: stamps jumped back
            self.lost_since_ns = stamp_ns

    def observed_at(self, stamp_ns: int) -> TrackObservation | None:
        """How it was found, or not, in the frame of this stamp; None where it was not looked for in it."""
        return self.last_observed if self.last_observed.stamp_ns == stamp_ns else None

    def lost_for_s(self, stamp_ns: int) -> float:
        """Seconds of stream time since it went out of view; 0 while tracked."""
        return 0.0 if self.lost_since_ns is None else (stamp_ns - self.lost_since_ns) / 1e9

    def is_detection(self, box: Box, stamp_ns: int, min_iou: float) -> bool:
        """True where a detector's box in the frame of this stamp means this region."""
        if not self.boxes:
            return False
        known = min(self.boxes, key=lambda each: abs(each[0] - stamp_ns))[1]
        if box_iou(box, known) > min_iou:
            return True
        if self.detector_box is None:
            return False
        corner, extent = known[[0, 1, 0, 1]], (known[2:] - known[:2])[[0, 1, 0, 1]]
        return box_iou(box, corner + self.detector_box * extent) > min_iou

    def remember_detection(self, box: Box) -> None:
        """Notes how a detector draws this region, as of the newest frame it was looked for in."""
        extent = (self.box[2:] - self.box[:2])[[0, 1, 0, 1]]
        if (extent > 0).all():
            self.detector_box = (box - self.box[[0, 1, 0, 1]]) / extent

    def snapshot(self) -> Region:
        """The region as of the newest frame it was looked for in."""
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
        )


@dataclass(slots=True, eq=False)
class CameraTracks:
    """The regions of one camera and the frame they were looked for in last. Only the worker touches it.

    Attributes:
        frame: processed last; kept so that a click finds it when the camera has stopped.
        features: of `frame`, once something had to be looked for in it.
        next_id: never goes back, so that an id means one region for as long as the process lives.
        tracked, lost: how many regions are, for other threads to read.
    """

    name: str
    regions: dict[int, Track] = field(default_factory=dict)
    frame: Frame | None = None
    arrived_s: float = 0.0
    features: FrameFeatures | None = None
    next_id: int = 1
    processed: int = 0
    rate: RateMeter = field(default_factory=RateMeter)
    mask_latency_s: Smoothed = field(default_factory=Smoothed)
    tracked: int = 0
    lost: int = 0

    def begin(self, frame: Frame, arrived_s: float) -> bool:
        """Makes `frame` the newest. Returns True where its stamp jumped back."""
        before, self.frame, self.arrived_s, self.features = self.frame, frame, arrived_s, None
        jumped = before is not None and frame.stamp_ns < before.stamp_ns
        if jumped or (before is not None and frame.size != before.size):
            for track in self.regions.values():
                track.boxes.clear()  # pixels or stamps of before mean nothing now
        return jumped

    def count(self) -> None:
        """Brings `tracked` and `lost` up to date."""
        self.tracked = sum(track.state is RegionState.TRACKED for track in self.regions.values())
        self.lost = len(self.regions) - self.tracked

    def statistics(
        self, received: int, dropped: int, last_stamp_ns: int | None, age_s: float, now_s: float
    ) -> CameraStatistics:
        """The camera as of now, with what the inbox counted; may be called from any thread."""
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
        """Drops regions and pictures; ids and counters stay."""
        self.regions.clear()
        self.frame = self.features = None
        self.count()


def box_iou(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2), 0..1."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    overlap = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return overlap / union if union > 0 else 0.0
