"""What waits for the worker: the newest frame of each camera, prompts, removals. Thread-safe and bounded.

Every method returns immediately; only `wait` blocks, and only the worker calls it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CapacityError, InputError, NotActiveError, UnknownRegionError
from pam_ros.records import Detection, Frame, Prompt
from pam_ros.runtime.frame_history import FrameHistory
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import (
    CaptionRequest,
    PromptRequest,
    Request,
    RequestHandle,
    Survey,
    SurveyRequest,
    SurveyResult,
)
from pam_ros.runtime.waiting_room import WaitingRoom, Work

MAX_IMAGE_BYTES = 512 << 20  # of waiting requests' own images


class Inbox:
    """Holds what arrives until the worker takes it; knows which regions callers may refer to."""

    def __init__(
        self,
        cameras: Sequence[str],
        options: EngineOptions,
        *,
        queued_elsewhere: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._condition = threading.Condition()
        self._options = options
        self._queued_elsewhere = queued_elsewhere  # requests that wait behind the inbox count as well
        self._clock = clock
        self._active = False
        self._cameras = {name: WaitingRoom(FrameHistory(name, options)) for name in cameras}
        self._turn = list(cameras)  # whose turn it is, first in line first
        self._images: deque[Request] = deque()  # prompts on images of the callers' own
        self._surveys: deque[Survey] = deque()
        self._in_hand = 0  # requests that the worker has taken and not yet passed on
        self._woken = False

    # Callers' side

    @property
    def active(self) -> bool:
        """False before `open` and after `close`."""
        return self._active

    def check_camera(self, name: str) -> None:
        """Raises InputError if the engine has no camera of this name."""
        self._camera(name)

    def configure(self, options: EngineOptions) -> None:
        """Applies new bounds; the frame history is shortened immediately."""
        with self._condition:
            self._options = options
            for camera in self._cameras.values():
                camera.history.configure(options)

    def open(self) -> None:
        """Starts accepting."""
        with self._condition:
            self._active = True

    def close(self) -> None:
        """Stops accepting; drops what waits, frames and region ids included; keeps the counters."""
        with self._condition:
            self._active = False
            self._images.clear()
            self._surveys.clear()
            for name, old in self._cameras.items():
                history = FrameHistory(name, self._options)
                self._cameras[name] = WaitingRoom(history, received=old.received, dropped=old.dropped)
            self._wake()

    def put_frame(self, frame: Frame, arrived_s: float | None = None) -> None:
        """Puts a frame into its camera's slot; a frame still waiting there is dropped and counted.

        `arrived_s`: see `Engine.submit_frame`.
        """
        with self._condition:
            camera = self._camera(frame.camera)
            if not self._active:
                return
            camera.put_frame(frame, self._clock() if arrived_s is None else arrived_s)
            self._wake()

    def put_request(self, request: Request) -> None:
        """Accepts a prompt and matches it to its frame. Raises the PamError for its caller."""
        with self._condition:
            camera = self._camera(request.camera)
            content = request.content
            self._admit(content.image)
            if content.image is not None:
                frame = Frame(image=content.image, stamp_ns=content.stamp_ns or 0, camera=request.camera)
                self._images.append(replace(request, frame=frame))
            else:
                if content.region_id:
                    self._check_live(request.camera, content.region_id)
                frame_meant = None if content.prompt is None else camera.history.match(content.stamp_ns)
                camera.requests.append(replace(request, frame=frame_meant))
            self._wake()

    def put_caption(self, name: str, request: CaptionRequest) -> None:
        """Accepts a `caption_now`. Raises the PamError for its caller."""
        with self._condition:
            self._camera(name)
            self._admit()
            self._check_live(name, request.region_id)
            self._cameras[name].captions.append(request)
            self._wake()

    def put_detections(
        self, name: str, requests: Sequence[tuple[Detection, PromptRequest]], stamp_ns: int | None
    ) -> None:
        """Accepts one message of detections. Raises a PamError that no caller waits for."""
        with self._condition:
            camera = self._camera(name)
            if not self._active or not requests:
                return
            frame = camera.history.match(stamp_ns)
            now_s = self._clock()
            camera.detections.append(
                [
                    Request(camera=name, content=content, frame=frame, arrived_s=now_s, detection=detection)
                    for detection, content in requests
                ]
            )
            self._wake()

    def put_survey(self, name: str, content: SurveyRequest, handle: RequestHandle[SurveyResult]) -> None:
        """Accepts a survey and matches it to its frame. Raises the PamError for its caller."""
        with self._condition:
            camera = self._camera(name)
            self._admit(content.image)
            for region_id in content.region_ids:
                self._check_live(name, region_id)
            if content.image is not None:
                frame = Frame(image=content.image, stamp_ns=content.stamp_ns or 0, camera=name)
            else:
                # Known regions are described as they are then.
                wanted_ns = None if content.region_ids else content.stamp_ns
                matched = camera.history.match(wanted_ns) or camera.history.newest
                assert matched is not None, "without a frame `match` raises"
                frame = matched
            for box in content.boxes_xyxy or ():
                Prompt.from_clicks(box_xyxy=box).check_size(*frame.size)
            if not content.region_ids:
                handle.is_about(frame.stamp_ns)
            self._surveys.append(Survey(name, content, frame, handle))
            self._wake()

    def put_found(self, name: str, requests: Sequence[Request]) -> bool:
        """Takes a survey's own requests about regions, however many wait; False once closed."""
        with self._condition:
            if self._active:
                self._cameras[name].requests.extend(requests)
                self._wake()
            return self._active

    def put_warning(self, name: str, message: str) -> None:
        """Leaves a warning for the worker to report: only its thread calls listeners."""
        with self._condition:
            self._camera(name)
            if self._active:
                self._cameras[name].warnings.append(message)
                self._wake()

    def remove(self, name: str, region_id: int) -> None:
        """From now on the region does not exist. Raises UnknownRegionError."""
        with self._condition:
            camera = self._camera(name)
            self._check_live(name, region_id)
            camera.live.discard(region_id)
            camera.removed.add(region_id)
            self._wake()

    def remove_all(self, name: str) -> int:
        """From now on the camera has no regions; returns how many it had."""
        with self._condition:
            camera = self._camera(name)
            count = len(camera.live)
            camera.removed |= camera.live
            camera.live.clear()
            self._wake()
            return count

    def end(self, name: str) -> None:
        """The camera's stream is over for now, after the frames that wait. Raises InputError."""
        with self._condition:
            self._camera(name).ended = True
            self._wake()

    def pending(self) -> int:
        """Requests that wait here or that the worker is working on."""
        with self._condition:
            return self._pending()

    def counters(self, name: str) -> tuple[int, int, int | None, float]:
        """received, dropped, stamp of the newest frame, seconds since it arrived."""
        with self._condition:
            camera = self._camera(name)
            newest = camera.history.newest
            stamp_ns = None if newest is None else newest.stamp_ns
            return camera.received, camera.dropped, stamp_ns, self._clock() - camera.arrived_s

    # Worker's side

    def take(self) -> Work | None:
        """Work of the camera that waited longest for its turn, or None."""
        with self._condition:
            for name in self._turn:
                if self._cameras[name].has_work():
                    self._turn.remove(name)
                    self._turn.append(name)
                    work = self._cameras[name].take(name)
                    self._in_hand += sum(
                        request.detection is None for request in (*work.older, *work.current, *work.describe)
                    )
                    self._in_hand += len(work.captions)
                    return work
            return None

    def take_image(self) -> Request | None:
        """The next prompt on a caller's own image, or None."""
        with self._condition:
            if not self._images:
                return None
            self._in_hand += 1
            return self._images.popleft()

    def take_survey(self) -> Survey | None:
        """The next survey, or None."""
        with self._condition:
            return self._surveys.popleft() if self._surveys else None

    def hand_over(self) -> None:
        """What was taken now waits for text generation, or is answered."""
        with self._condition:
            self._in_hand = 0

    def take_removed(self) -> list[tuple[str, int]]:
        """(camera, region id) of the regions that callers removed since the last call."""
        with self._condition:
            removed = [
                (name, region_id)
                for name, each in self._cameras.items()
                for region_id in sorted(each.removed)
            ]
            for camera in self._cameras.values():
                camera.removed.clear()
            return removed

    def take_ended(self) -> list[str]:
        """Cameras whose streams ended and whose frames are all taken."""
        with self._condition:
            ended = [name for name, each in self._cameras.items() if each.ended and each.slot is None]
            for name in ended:
                self._cameras[name].ended = False
            return ended

    def take_warnings(self) -> list[tuple[str, str]]:
        """(camera, message) of warnings to be reported."""
        with self._condition:
            warnings = [(name, message) for name, each in self._cameras.items() for message in each.warnings]
            for camera in self._cameras.values():
                camera.warnings.clear()
            return warnings

    def add_region(self, name: str, region_id: int) -> None:
        """Callers may refer to the region from now on; ignored once closed."""
        with self._condition:
            if self._active:
                self._cameras[name].live.add(region_id)

    def drop_region(self, name: str, region_id: int) -> None:
        """Callers may no longer refer to the region."""
        with self._condition:
            self._cameras[name].live.discard(region_id)

    def live(self, name: str) -> frozenset[int]:
        """Ids of the regions that exist for callers."""
        with self._condition:
            return frozenset(self._cameras[name].live)

    def advanced_s(self, name: str) -> float:
        """When the camera's stream time last moved, seconds of the runtime's clock."""
        with self._condition:
            return self._cameras[name].advanced_s

    def wait(self, timeout_s: float) -> None:
        """Sleeps until something comes, at most `timeout_s`."""
        with self._condition:
            self._condition.wait_for(lambda: self._woken, timeout_s)
            self._woken = False

    def wake(self) -> None:
        """Ends a `wait` early."""
        with self._condition:
            self._wake()

    # Under the lock

    def _wake(self) -> None:
        self._woken = True
        self._condition.notify_all()

    def _camera(self, name: str) -> WaitingRoom:
        try:
            return self._cameras[name]
        except KeyError:
            raise InputError(f"unknown camera {name!r}; available: {', '.join(self._cameras)}") from None

    def _pending(self) -> int:
        waiting = sum(len(camera.requests) + len(camera.captions) for camera in self._cameras.values())
        return waiting + len(self._images) + len(self._surveys) + self._in_hand

    def _admit(self, image: NDArray[np.uint8] | None = None) -> None:
        """Raises if no more requests are accepted, or not this image of the caller's own."""
        if not self._active:
            raise NotActiveError("the engine is not active; activate the manager, then try again")
        queued = self._pending() + self._queued_elsewhere()
        limit = self._options.max_queued_requests
        if queued >= limit:
            raise CapacityError(f"{queued} requests are waiting, the limit is {limit}; try again later")
        own = [each.content.image for each in self._images] + [each.content.image for each in self._surveys]
        waiting = sum(each.nbytes for each in own if each is not None)
        if image is not None and waiting and waiting + image.nbytes > MAX_IMAGE_BYTES:
            raise CapacityError(
                f"requests with {waiting >> 20} MiB of own images are waiting, the limit is "
                f"{MAX_IMAGE_BYTES >> 20} MiB; try again later"
            )

    def _check_live(self, name: str, region_id: int) -> None:
        live = self._cameras[name].live
        if region_id not in live:
            known = ", ".join(map(str, sorted(live))) or "none"
            raise UnknownRegionError(f"camera {name!r} has no region {region_id}; existing regions: {known}")
