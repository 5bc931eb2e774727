"""Reads and writes images and videos (Pillow, PyAV); no model, no ROS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pam_ros.errors import ImageError
from pam_ros.records import Frame

# PyAV is imported only to read or write videos: training and evaluation need pictures only.
if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

NS = 1_000_000_000


def read_image(path: Path) -> NDArray[np.uint8]:
    """A picture file → (H, W, 3) uint8 RGB. Raises ImageError if it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"no image file at {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(f"cannot read image {path}: {error}") from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A picture file → (H, W) bool, True where it is not black. Raises ImageError if it cannot be read."""
    return np.asarray(read_image(path).any(axis=2))


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """(H, W) bool → PNG, 255 inside and 0 outside."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """(H, W, 3) uint8 RGB → a picture file in the format of its suffix."""
    Image.fromarray(image).save(path)


def video_stamps_ns(path: Path) -> list[int]:
    """Presentation stamps of every frame, nanoseconds from the first; no picture is decoded.

    Raises ImageError if the file cannot be read or has no video.
    """
    import av.error

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = stream.time_base or Fraction(1, 1000)
            stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    except FileNotFoundError:
        raise ImageError(f"no video file at {path}") from None
    except (av.error.FFmpegError, IndexError) as error:
        raise ImageError(f"cannot read video {path}: {error}") from error
    if not stamps:
        raise ImageError(f"{path} contains no video frames")
    return [int((stamp - stamps[0]) * base * NS) for stamp in stamps]


def read_video(path: Path) -> Iterator[Frame]:
    """Decodes a video; stamps count from its first frame. Raises ImageError if the file cannot be read."""
    import av.error

    try:
        with av.open(str(path)) as container:
            first: int | None = None
            for frame in container.decode(video=0):
                pts = frame.pts or 0
                first = pts if first is None else first
                stamp_ns = int((pts - first) * (frame.time_base or Fraction(1, 1000)) * NS)
                yield Frame(image=frame.to_ndarray(format="rgb24"), stamp_ns=stamp_ns)
    except FileNotFoundError:
        raise ImageError(f"no video file at {path}") from None
    except (av.error.FFmpegError, IndexError) as error:
        raise ImageError(f"cannot read video {path}: {error}") from error


def read_webcam(which: str) -> Iterator[Frame]:
    """Pictures of a webcam as they come, by its number or device; stamps are the time since the first one.

    Raises ImageError if it cannot be opened or stops sending.
    """
    import cv2

    capture = cv2.VideoCapture(int(which) if which.isdecimal() else which)
    try:
        if not capture.isOpened():
            raise ImageError(f"cannot open webcam {which}; is it connected, and in no other program?")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # an old picture is of no use
        first_ns = time.monotonic_ns()
        while True:
            read, bgr = capture.read()
            if not read:
                raise ImageError(f"webcam {which} sends no more pictures")
            picture = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(image=picture, stamp_ns=time.monotonic_ns() - first_ns)
    finally:
        capture.release()


class VideoWriter:
    """Writes H.264 in MP4 at the size of the first picture; an odd width or height loses a pixel."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._last_pts = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: NDArray[np.uint8], stamp_ns: int) -> None:
        """Appends a (H, W, 3) uint8 RGB picture, visible from `stamp_ns` on; stamps must grow."""
        import av

        if self._container is None:
            self._open(image)
        assert self._container is not None and self._stream is not None
        even = np.ascontiguousarray(image[: self._stream.height, : self._stream.width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts = self._last_pts = max(round(stamp_ns / 1e6), self._last_pts + 1)
        frame.time_base = Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))

    def _open(self, image: NDArray[np.uint8]) -> None:
        import av

        self._container = av.open(str(self._path), "w")
        stream = self._container.add_stream(
            "libx264", rate=Fraction(30), options={"crf": "23", "preset": "veryfast"}
        )
        stream.height, stream.width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.time_base = Fraction(1, 1000)
        self._stream = stream

    def close(self) -> None:
        """Finishes the file; without any picture there is no file. Idempotent."""
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container = self._stream = None
