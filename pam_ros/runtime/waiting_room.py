"""What waits for one camera, and what the worker takes of it at a time."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from pam_ros.records import Frame
from pam_ros.runtime.frame_history import FrameHistory
from pam_ros.runtime.requests import CaptionRequest, Request
from pam_ros.runtime.statistics import StampOrder

MAX_DETECTION_MESSAGES = 4  # messages that wait; a newer one replaces the oldest
LEAST_SPEED = 0.01  # seconds of stamps for each second of the clock: slower time stands still


@dataclass(slots=True, eq=False)
class Work:
    """What the worker takes for one camera at a time.

    Attributes:
        frame: a frame not processed before, or None.
        arrived_s: when it arrived, seconds of the runtime's clock.
        older_frame, older: prompts on an earlier frame; at most one such frame at a time, so that a flood of
            them delays the newest frame by one encoder pass at most.
        current: prompts on `frame`, or on the frame processed last if `frame` is None.
        describe: regions to describe as they are.
        captions: clips to caption now.
    """

    camera: str
    frame: Frame | None = None
    arrived_s: float = 0.0
    older_frame: Frame | None = None
    older: list[Request] = field(default_factory=list)
    current: list[Request] = field(default_factory=list)
    describe: list[Request] = field(default_factory=list)
    captions: list[CaptionRequest] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class WaitingRoom:
    """What waits for one camera. Its owner, the inbox, guards it by a lock."""

    history: FrameHistory
    slot: tuple[Frame, float] | None = None  # the newest frame while it is not taken, and its arrival
    taken: Frame | None = None  # the frame taken last
    requests: deque[Request] = field(default_factory=deque)
    detections: deque[list[Request]] = field(default_factory=lambda: deque(maxlen=MAX_DETECTION_MESSAGES))
    detections_wait: bool = False  # for the callers' requests
    captions: deque[CaptionRequest] = field(default_factory=deque)
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    live: set[int] = field(default_factory=set)  # ids that callers may refer to
    removed: set[int] = field(default_factory=set)  # ids that the worker has yet to forget
    ended: bool = False  # see `Inbox.end`
    received: int = 0
    dropped: int = 0
    arrived_s: float = -math.inf  # of the newest frame
    advanced_s: float = -math.inf  # when the stream's time last moved, faster than it creeps
    _moved_ns: int | None = None  # the stamp at that time
    _order: StampOrder = field(default_factory=StampOrder)

    def has_work(self) -> bool:
        """Whether there is something to take."""
        return self.slot is not None or bool(self.requests or self.detections or self.captions)

    def put_frame(self, frame: Frame, now_s: float) -> None:
        """Puts a frame into the slot; one that still waits there is dropped and counted, or a late one."""
        self.received += 1
        if self._order.is_late(frame.stamp_ns):
            self.dropped += 1
            self.history.add_late(frame)
            return
        self.history.add(frame)
        if self._moves(frame.stamp_ns, now_s):
            self.advanced_s, self._moved_ns = now_s, frame.stamp_ns
        self.dropped += self.slot is not None
        self.slot = (frame, now_s)
        self.arrived_s = now_s

    def _moves(self, stamp_ns: int, now_s: float) -> bool:
        if self._moved_ns is None or stamp_ns < self._moved_ns:
            return True
        least_ns = LEAST_SPEED * 1e9 * max(now_s - self.advanced_s, 0.0)
        return stamp_ns - self._moved_ns > least_ns

    def take(self, name: str) -> Work:
        """Everything that can be done now, for the camera of this name."""
        work = Work(camera=name, captions=list(self.captions))
        self.captions.clear()
        if self.slot is not None:
            work.frame, work.arrived_s = self.slot
            self.taken, self.slot = work.frame, None
        later: deque[Request] = deque()
        for request in self.requests:
            if request.content.prompt is None:
                work.describe.append(request)
            elif not _sort_in(work, request, self.taken):
                later.append(request)
        self.requests = later
        self.detections_wait = bool(work.current or work.older) and not self.detections_wait
        if not self.detections_wait:  # callers go first; a detector waits for one turn at most
            later_messages = [  # one message means one frame
                message
                for message in self.detections
                if not all(_sort_in(work, request, self.taken) for request in message)
            ]
            self.detections = deque(later_messages, maxlen=MAX_DETECTION_MESSAGES)
        return work


def _sort_in(work: Work, request: Request, newest: Frame | None) -> bool:
    """Adds the request to the work, unless it means yet another older frame."""
    if request.frame is None or request.frame is newest:
        work.current.append(request)
    elif work.older_frame is None or work.older_frame is request.frame:
        work.older_frame = request.frame
        work.older.append(request)
    else:
        return False
    return True
