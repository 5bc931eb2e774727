"""Reads video files as players show them (PyAV): frames, and their time stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import ImageError
from pam_ros.media import NS, check_file, check_image_size, fitted, why
from pam_ros.records import Frame

# PyAV is imported only where a video is read: its import takes a moment.
if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_SHORT_S = 1.0  # a video that is shorter by more than this than its file says has lost its end

Note = Callable[[str], None]


def _no_note(line: str) -> None:
    """For callers that show no notes."""


def video_stamps_ns(path: Path) -> list[int]:
    """Stamps of all frames as `read_video` gives them, but for damaged ones; no image is decoded.

    Raises ImageError if the file cannot be read or has no video.
    """
    runs: list[list[int | None]] = [[]]  # time starts over between runs; packets come in order of decoding
    with _video_file(path) as (container, stream):
        clock = _Clock(stream)
        last_dts = None
        for packet in _Packets(container, stream):
            if packet.is_discard or not packet.size:
                continue
            if packet.dts is not None and last_dts is not None and packet.dts < last_dts:
                runs.append([])
            runs[-1].append(packet.pts)
            last_dts = packet.dts
        pts = [each for run in runs for each in (run if None in run else sorted(run))]  # type: ignore[type-var]
        if not pts:
            raise ImageError(f"{path} contains no video frames")
        return [clock.stamp_ns(each) for each in pts]


def read_video(path: Path, note: Note = _no_note) -> Iterator[Frame]:
    """Decodes a video as players show it; stamps start at 0 with the first frame, and increase.

    The display matrix and the shape of the pixels are applied; frames that an edit list hides are left out;
    frames of another size are scaled to that of the first; frames without time stamps follow at the stream's
    nominal rate. Damaged packets and frames are skipped. `note` gets a line about each of these.
    Raises ImageError if the file cannot be read or not a single frame can be decoded.
    """
    import av.error

    with _video_file(path) as (container, stream):
        clock, size, skipped, noted = _Clock(stream), None, 0, set()

        def once(what: str, line: str) -> None:
            if what not in noted:
                noted.add(what)
                note(line)

        packets = _Packets(container, stream)
        for packet in packets:
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                skipped += 1
                continue
            for frame in decoded:
                check_image_size(f"a frame of {path}", _shown_width(frame.width, stream), frame.height)
                if frame.is_corrupt:
                    skipped += 1
                    continue
                if frame.pts is None:
                    once(
                        "stamps",
                        f"{path} has no time stamps; it is read at {float(1 / clock.period):g} frames/s",
                    )
                image = _as_shown(frame, stream)
                if size is None:
                    size = image.shape[:2]
                elif image.shape[:2] != size:
                    sizes = (f"{width}x{height}" for height, width in (size, image.shape[:2]))
                    once("size", f"{path} changes its size from {' to '.join(sizes)}; the first one is kept")
                yield Frame(image=fitted(image, *size), stamp_ns=clock.stamp_ns(frame.pts))
        if skipped:
            note(f"skipped {skipped} damaged packets or frames of {path}")
        if size is None:
            raise ImageError(f"cannot read video {path}: {packets.ended_early or 'no frame can be decoded'}")
        if packets.ended_early:
            note(f"{path} ends early: {packets.ended_early}")


class _Clock:
    """Time stamps of a stream, in the order of presentation → nanoseconds from the first; they always grow.

    Attributes:
        period: nominal time between frames, seconds.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.period = 1 / (stream.guessed_rate or stream.average_rate or Fraction(25))
        self._base = stream.time_base or Fraction(1, 1000)
        self._offset_ns: int | None = None  # from the stream's time
        self._last_ns = 0

    def stamp_ns(self, pts: int | None) -> int:
        """The stamp of the next frame. One without a time, or whose time does not grow, follows the last."""
        first = self._offset_ns is None
        following_ns = 0 if first else self._last_ns + int(self.period * NS)
        at_ns = following_ns if pts is None else int(pts * self._base * NS) + (self._offset_ns or 0)
        if pts is not None and (self._offset_ns is None or at_ns <= self._last_ns):
            self._offset_ns = (self._offset_ns or 0) + following_ns - at_ns
            at_ns = following_ns
        elif first:
            self._offset_ns = 0
        self._last_ns = at_ns
        return at_ns


class _Packets:
    """The packets of a stream, the last of them empty.

    Attributes:
        ended_early: why the file ended before its end; empty if it did not. Valid after the last packet.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.ended_early = ""
        self._container, self._stream = container, stream

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        import av.error

        count, end_s, expected_s = 0, 0.0, self._seconds()
        try:
            for packet in self._container.demux(self._stream):
                count += bool(packet.size)
                if packet.pts is not None and packet.time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                yield packet
        except av.error.FFmpegError as error:
            self.ended_early = why(error)
        if count < self._stream.frames:
            self.ended_early = f"it has {count} of {self._stream.frames} frames"
        elif count and end_s < expected_s - _SHORT_S:
            self.ended_early = f"it has {end_s:.1f} of {expected_s:.1f} s"

    def _seconds(self) -> float:
        """When the stream ends as its file says; 0 if that is not known."""
        alone = len(self._container.streams) == 1
        if not alone or self._container.duration is None or self._container.start_time is None:
            return 0.0
        return (self._container.start_time + self._container.duration) / 1e6


@contextmanager
def _video_file(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream. Raises ImageError."""
    import av
    import av.error
    from av.stream import Disposition

    check_file(path, "video")
    try:
        # Absolute, as FFmpeg takes "a:b" for a protocol.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise ImageError(f"cannot read video {path}: {why(error)}") from error
    with container:
        covers = Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & covers]
        if not streams:
            others = sorted({each.type for each in container.streams if each.type != "video"})
            raise ImageError(f"{path} has no video stream, only {' and '.join(others) or 'a cover picture'}")
        if streams[0].codec_context is None:
            raise ImageError(f"cannot read video {path}: its codec is not known")
        codec = streams[0].codec_context
        check_image_size(str(path), _shown_width(codec.width, streams[0]), codec.height)
        yield container, streams[0]


def _shown_width(width: int, stream: VideoStream) -> int:
    """A stored width with square pixels."""
    return max(1, round(width * (stream.sample_aspect_ratio or 1)))


def _as_shown(frame: VideoFrame, stream: VideoStream) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB with square pixels, turned and mirrored as the display matrix says."""
    from av.sidedata.sidedata import Type

    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=_shown_width(frame.width, stream))
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV knows no such data, e.g. EXIF or the views of spatial videos
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y; players turn by right angles only.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, count=5).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
