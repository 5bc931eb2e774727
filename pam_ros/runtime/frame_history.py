"""Recent frames of one camera, bounded in number and bytes; finds the frame that a stamp means."""

from __future__ import annotations

from bisect import insort
from collections import deque

from pam_ros.errors import NoFrameError, StaleFrameError
from pam_ros.records import Frame
from pam_ros.runtime.options import EngineOptions


class FrameHistory:
    """Oldest first; stamps rise. The newest frame always stays, whatever its size."""

    def __init__(self, camera: str, options: EngineOptions) -> None:
        """`camera` is named in errors."""
        self._camera = camera
        self._options = options
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def configure(self, options: EngineOptions) -> None:
        """Applies new bounds immediately."""
        self._options = options
        self._shorten()

    @property
    def newest(self) -> Frame | None:
        """The frame added last."""
        return self._frames[-1] if self._frames else None

    def add(self, frame: Frame) -> None:
        """Adds the newest frame. Time may start over."""
        before = self.newest
        if before is not None and frame.stamp_ns < before.stamp_ns:
            self._frames.clear()  # earlier stamps are no longer valid
            self._bytes = 0
        self._frames.append(frame)
        self._bytes += frame.image.nbytes
        self._shorten()

    def add_late(self, frame: Frame) -> None:
        """Adds a frame that is older than the newest, for prompts that mean it."""
        insort(self._frames, frame, key=lambda each: each.stamp_ns)
        self._bytes += frame.image.nbytes
        self._shorten()

    def match(self, stamp_ns: int | None) -> Frame | None:
        """The frame nearest to the stamp; None stands for the newest at the time of processing.

        Raises NoFrameError before the first frame, StaleFrameError if none is near enough.
        """
        frames = self._frames
        if not frames:
            raise NoFrameError(
                f"no frame has arrived from camera {self._camera!r} yet; check that its publisher is running"
            )
        if stamp_ns is None:
            return None
        frame = min(frames, key=lambda each: abs(each.stamp_ns - stamp_ns))
        off_s = (stamp_ns - frame.stamp_ns) / 1e9
        tolerance_s = self._options.stamp_tolerance_s
        if abs(off_s) <= tolerance_s:
            return frame
        oldest_s, asked_s = ((frames[-1].stamp_ns - each) / 1e9 for each in (frames[0].stamp_ns, stamp_ns))
        if frame is frames[0] and off_s < 0:
            full = len(frames) < self._options.frame_history and self._bytes_next() > self._most_bytes
            raise StaleFrameError(
                f"the prompt's frame is {asked_s:.3f} s older than the newest, but the history covers only "
                f"{oldest_s:.3f} s ({len(frames)} frames); send prompts sooner or raise "
                f"{'frames.history_mib' if full else 'frames.history'}"
            )
        newer = off_s > 0 and frame is frames[-1]
        where = "newer than the newest frame" if newer else "away from the nearest frame"
        raise StaleFrameError(
            f"the prompt's stamp is {abs(off_s):.3f} s {where}; at most {tolerance_s} s is allowed. "
            "Copy the stamp of the prompted image"
        )

    @property
    def _most_bytes(self) -> int:
        return self._options.frame_history_mib << 20

    def _bytes_next(self) -> int:
        """With one more frame like the newest."""
        return self._bytes + self._frames[-1].image.nbytes

    def _shorten(self) -> None:
        while len(self._frames) > 1 and (
            len(self._frames) > self._options.frame_history or self._bytes > self._most_bytes
        ):
            self._bytes -= self._frames.popleft().image.nbytes
