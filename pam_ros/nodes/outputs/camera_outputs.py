"""Everything one camera publishes: hands the engine's results to outputs with a thread each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rclpy.node import Node

from pam_ros.nodes.outputs.annotations import annotations_output
from pam_ros.nodes.outputs.captions import CaptionsOutput
from pam_ros.nodes.outputs.labels import LabelsOutput
from pam_ros.nodes.outputs.markers import MarkersOutput
from pam_ros.nodes.outputs.overlay import OverlayOutput
from pam_ros.nodes.outputs.regions import Detections3DOutput, DetectionsOutput, RegionsOutput
from pam_ros.nodes.outputs.snapshot import Caption, FrameOutput, Snapshot
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import Language, Task
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent, with_text
from pam_ros.runtime.overlay import LastSeen

_STILL_S = 1.0  # without a frame for so long, the newest one is sent to a new subscriber
_REDRAW_S = 0.25  # a growing text is shown with the next frame or, without one, after this time


class CameraOutputs:
    """Called on the engine's worker thread: nothing here converts or publishes a message."""

    def __init__(
        self,
        node: Node,
        log: ThrottledLog,
        settings: Callable[[], PerceptionSettings],
        surfaces: Surfaces,
    ) -> None:
        self._captions = CaptionsOutput(node, log)
        self._overlay = OverlayOutput(node, log, settings)
        self._markers = MarkersOutput(
            node,
            log,
            settings,
            measured=surfaces.of_frame,
            camera_of=surfaces.camera_of,
            has_depth=lambda: surfaces.has_depth,
        )
        annotations = annotations_output(node, log)
        # What shows captions is sent again while one grows.
        self._with_captions: list[FrameOutput] = [self._overlay, self._markers]
        if annotations is not None:
            self._with_captions.append(annotations)
        self._regions = RegionsOutput(node, log, surfaces)
        self._of_frames: list[FrameOutput] = [
            self._regions,
            LabelsOutput(node, log),
            DetectionsOutput(node, log),
            Detections3DOutput(node, log, surfaces),
            *self._with_captions,
        ]
        self._sinks = [*(output.sink for output in self._of_frames), self._captions.sink]
        self._showing = threading.Lock()  # nothing older is shown after something newer
        self._newest: Snapshot | None = None
        self._captions_of: dict[int, dict[Language, Caption]] = {}  # by region id; the newest comes last
        self._last_seen = LastSeen()
        self._framed_s = self._shown_s = 0.0  # when all, and captions, were last shown; monotonic clock
        self._subscribers: dict[Any, int] = {}  # of each publisher, when last counted
        self._unserved: set[Any] = set()  # publishers with a new subscriber, since the last frame

    @property
    def frame_id(self) -> str:
        """frame_id of the newest result; empty before the first."""
        newest = self._newest
        return newest.result.frame_id if newest is not None else ""

    @property
    def latency_s(self) -> float:
        """From an image's callback to its published regions: median of the last; 0 before the first."""
        return self._regions.latency_s.median

    @property
    def dropped(self) -> int:
        """Messages that were lost because a queue was full."""
        return sum(sink.dropped for sink in self._sinks)

    def on_frame(self, result: FrameResult) -> None:
        """The masks of one frame."""
        ids = [region.region_id for region in result.regions]
        self._captions_of = {region_id: self._captions_of.get(region_id, {}) for region_id in ids}
        self._show(self._snapshot(result), self._of_frames)

    def on_text(self, event: TextEvent) -> None:
        """Shows a growing text; a finished one sends the newest regions again, now with it.

        Without this the text of a region on a camera that stands still (one image, a paused bag) would never
        reach the topics.
        """
        if event.region_id not in self._captions_of:
            return  # its region was removed
        if event.task is not Task.LABEL:  # the overlay shows the label beside the id already
            self._grow(event)
        newest = self._newest
        if event.final and newest is not None:
            regions = tuple(with_text(region, event) for region in newest.result.regions)
            self.on_frame(replace(newest.result, regions=regions, arrived_s=None))

    def on_caption(self, event: CaptionEvent) -> None:
        """Publishes a growing or finished caption, and shows it."""
        self._captions.on_caption(event)
        self._grow(event)

    def repeat(self) -> None:
        """Called once a second: sends what expires or is new to a subscriber, if the camera stands still."""
        with self._showing:
            publishers = [each for output in self._of_frames for each in output.publishers]
            counts = {each: each.get_subscription_count() for each in publishers}
            known = self._subscribers
            self._unserved |= {each for each in publishers if counts[each] > known.get(each, 0)}
            self._subscribers = counts
            newest = self._newest
            if newest is None:
                return
            self._markers.repeat(newest)
            if time.monotonic() - self._framed_s < _STILL_S:
                return
            again = replace(newest, result=replace(newest.result, arrived_s=None))
            for output in self._of_frames:
                if not self._unserved.isdisjoint(output.publishers):
                    output.on_frame(again)
            self._unserved.clear()

    def clear(self) -> None:
        """Forgets the regions: the engine was stopped. Captions that wait are still published."""
        self._captions_of = {}
        self._last_seen = LastSeen()
        with self._showing:
            self._newest = None
            for output in self._of_frames:
                output.clear()

    def close(self) -> None:
        """Accepts nothing more; the threads publish what is queued. Returns immediately. Idempotent."""
        for sink in self._sinks:
            sink.close()

    def join(self) -> bool:
        """Waits for the threads, at most `sink.DRAIN_S` from `close` on. False if one still publishes."""
        ended = [sink.join() for sink in self._sinks]
        return all(ended)

    def _grow(self, event: TextEvent | CaptionEvent) -> None:
        """Takes the newest state of a text and draws it, as the camera may be slow or stand still."""
        newest = self._newest
        if event.region_id not in self._captions_of or newest is None:
            return  # its region was removed
        captions = self._captions_of[event.region_id]
        captions.pop(event.language, None)
        captions[event.language] = Caption(event.shown, event.language, event.final)
        if event.final or time.monotonic() - self._shown_s >= _REDRAW_S:
            self._show(self._snapshot(newest.result), self._with_captions)

    def _show(self, snapshot: Snapshot, outputs: list[FrameOutput]) -> None:
        with self._showing:
            self._newest = snapshot
            self._shown_s = time.monotonic()
            if outputs is self._of_frames:
                self._framed_s = self._shown_s
                self._unserved.clear()
            for output in outputs:
                output.on_frame(snapshot)

    def _snapshot(self, result: FrameResult) -> Snapshot:
        return Snapshot(
            result=result,
            names={region.region_id: region.name for region in result.regions if region.name},
            captions={
                region_id: tuple(reversed(captions.values()))
                for region_id, captions in self._captions_of.items()
            },
            last_seen=self._last_seen.update(result.regions),
        )
