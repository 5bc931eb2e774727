"""Reads images and masks as viewers show them (Pillow), and webcams; writes images and videos (PyAV)."""

from __future__ import annotations

import io
import re
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pam_ros.errors import ImageError
from pam_ros.output_files import cannot_write, writing
from pam_ros.records import Frame

# PyAV is imported only to read or write videos: training and evaluation need images only.
if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# Pillow warns of odd metadata, which changes no pixel; what matters becomes an ImageError.
warnings.filterwarnings("ignore", module=r"PIL\.")

NS = 1_000_000_000
MAX_PIXELS = 100_000_000  # of one image; the largest phone cameras have as many
MAX_BYTES = 1 << 30  # of one image, compressed or not
JPEG_END = b"\xff\xd9"  # the marker at the end of the file
MAX_FILM_PX = 16384  # largest width and height of a written video, of the encoder
FRAGMENT_FRAMES = 10  # of a written video: at most so many are lost if the process is killed
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_MASK_LEVELS = 16  # an image of so few values is drawn, not taken: every value above 0 is inside
_SOFT_SHARE = 0.1  # most of a mask that may be neither dark nor bright
_PILLOW = threading.Lock()  # its limit of pixels is one for the whole process


def check_image_size(what: str, width: int, height: int, bytes_: int = 0) -> None:
    """Raises ImageError if an image, `what` in the message, is larger than MAX_PIXELS or MAX_BYTES."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} is {width}x{height} = {width * height / 1e6:.0f} megapixels; "
            f"at most {MAX_PIXELS // 10**6} megapixels are allowed, so scale it down"
        )
    if bytes_ > MAX_BYTES:
        raise ImageError(
            f"{what} has {bytes_ / 2**20:.0f} MiB; at most {MAX_BYTES >> 20} MiB are allowed, "
            "so scale it down"
        )


# --- images


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file → (H, W, 3) uint8 RGB, as viewers show it.

    The EXIF orientation is applied. 16-bit grey is scaled by its range (`eight_bits`), transparent pixels lie
    on white. Raises ImageError if the file cannot be read or is too large.
    """
    with _picture_file(path) as picture:
        if picture.mode == "F" and not np.isfinite(np.asarray(picture)).any():
            raise ImageError(f"cannot read image {path}: none of its values is finite")
        return rgb(picture)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """An image file → (H, W) bool, True inside; EXIF orientation as in `read_image`.

    The mask is the alpha channel if that varies, else the brightest channel. Of at most _MASK_LEVELS
    different values, all above 0 are inside; otherwise (JPEG, soft edges) those of at least half the
    maximum. Raises ImageError if the file cannot be read, or looks like a photo.
    """
    with _picture_file(path) as picture:
        if picture.mode == "P" or picture.has_transparency_data:
            picture = picture.convert("RGBA")
        elif picture.mode == "LAB":
            picture = picture.getchannel("L")  # as RGB, black is not quite 0
        elif picture.mode not in ("1", "L", "RGB") and not picture.mode.startswith(("I", "F")):
            picture = picture.convert("RGB")  # CMYK, YCbCr, …: the largest channel is not the brightness
        values = np.asarray(picture)
    if values.ndim == 3:
        alpha = values[..., -1] if values.shape[2] in (2, 4) and picture.mode[-1] == "A" else None
        colours = values if alpha is None else values[..., :-1]
        values = colours.max(axis=2) if alpha is None or alpha.min() == alpha.max() else alpha
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{path} is not a mask: it has values that are NaN or infinite")
    if len(np.unique(values)) <= _MASK_LEVELS:
        return np.asarray(values > 0)
    bright = values >= 0.75 * values.max()
    soft = ((values > 0.25 * values.max()) & ~bright).mean()
    if soft > _SOFT_SHARE or soft > max(bright.mean(), _SOFT_SHARE / 5):
        raise ImageError(
            f"{path} looks like a photo, not like a mask: {soft:.0%} of its pixels are neither dark nor "
            "bright; a mask is white on the object and black elsewhere, or opaque and transparent"
        )
    return np.asarray(values >= 0.5 * values.max())


def open_image(data: bytes, what: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """An image in memory, of which only the header is decoded. Raises ImageError if it is too large.

    `formats`: those allowed, as Pillow names them. Pillow raises an exception of almost any type if it cannot
    be read.
    """
    with _PILLOW:  # its own limit is lower, and its exception does not tell the size
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    check_image_size(what, *picture.size, len(data))
    return picture


def load_image(data: bytes, what: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """An image in memory, decoded, as stored. Exceptions: see `open_image`.

    A JPEG that lacks only its end marker is complete: what would follow does not change the pixels.
    """
    picture = open_image(data, what, formats)
    try:
        picture.load()
    except OSError:
        if picture.format != "JPEG":
            raise
        picture = open_image(data + JPEG_END, what)
        if picture.tobytes() != open_image(data + b"U" * 4096 + JPEG_END, what).tobytes():
            raise
    return picture


def rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """A decoded image → (H, W, 3) uint8 RGB; see `read_image`."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(eight_bits(np.asarray(picture)))
    return np.asarray(picture.convert("RGB"))


def eight_bits(values: NDArray[Any], least_bits: int = 8) -> NDArray[np.uint8]:
    """Values of any range → uint8 of the same shape.

    Unsigned values lose the bits below the upper eight of the range. The range is measured: 8, 10, 12, 14 or
    16 bits, the smallest that holds the maximum, and at least `least_bits`. Other values, and larger ones,
    are scaled from their minimum to their maximum; those that are not finite become 0.
    """
    if values.dtype == np.uint8:
        return values
    values = np.where(np.isfinite(values), values, 0)
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu" and low >= 0 and high < 1 << 16:
        return np.asarray(values >> (range_bits(values, least_bits) - 8)).astype(np.uint8)
    scaled = (values.astype(np.float64) - low) * (255 / max(float(high) - float(low), 1e-30))
    return np.asarray(scaled.round().astype(np.uint8))


def range_bits(values: NDArray[Any], least_bits: int = 8) -> int:
    """The bits of a camera whose image has these values: 8, 10, 12, 14 or 16; see `eight_bits`."""
    bits = int(values.max(initial=0)).bit_length()
    return min(16, max(8, least_bits, bits + bits % 2))


@contextmanager
def _picture_file(path: Path) -> Iterator[Image.Image]:
    """The decoded image, upright. Any failure while it is used raises ImageError."""
    size = check_file(path, "image")
    check_image_size(str(path), 0, 0, size)
    try:
        yield ImageOps.exif_transpose(load_image(path.read_bytes(), str(path)))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"cannot read image {path}: it is not an image in a known format "
            "(JPEG, PNG, WebP, TIFF, BMP, …); for a video use `pam caption`"
        ) from None
    except ValueError as error:  # of text chunks, most of the time
        raise ImageError(
            f"cannot read image {path}: {why(error)}; save it again without its metadata"
        ) from error
    except Exception as error:  # Pillow's readers raise almost anything for a damaged file
        raise ImageError(f"cannot read image {path}: {why(error)}") from error


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """(H, W) bool → PNG, 255 inside and 0 outside. Raises OutputError."""
    with writing(path):
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """(H, W, 3) uint8 RGB → an image file in the format of its suffix. Raises OutputError."""
    with writing(path):
        Image.fromarray(image).save(path)


def fitted(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB scaled to another size, whole, with black bars if the shape differs."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(ImageOps.pad(Image.fromarray(image), (width, height)))


# --- files


def check_file(path: Path, kind: str) -> int:
    """Size in bytes of a regular file that is not empty. Raises ImageError that names another way."""
    name = str(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name):
            raise ImageError(
                f"{name.replace(':/', '://', 1)} is a URL, and only files are read; download it, or let a "
                "ROS driver publish the stream and start the node"
            ) from None
        if name.isdecimal() or name.startswith("/dev/"):
            raise _device_error(name) from None
        raise ImageError(f"no {kind} file at {path}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {kind} {path}: {why(error)}") from None
    if stat.S_ISDIR(found.st_mode):
        name = f"{path} (or an empty name)" if path == Path() else name
        raise ImageError(f"{name} is a folder; give one {kind} file")
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        raise _device_error(name)
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path} is a pipe or socket; give a regular {kind} file")
    if not found.st_size:
        raise ImageError(f"cannot read {kind} {path}: the file is empty (0 bytes)")
    return found.st_size


def _device_error(name: str) -> ImageError:
    return ImageError(
        f"{name} is a device, not a file; `pam view {name}` shows a webcam, and the node sees what a "
        "camera's ROS driver publishes"
    )


def why(error: Exception) -> str:
    """A library's error message, without error numbers and paths."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- cameras and written videos


def read_webcam(which: str) -> Iterator[Frame]:
    """Frames of a webcam as they come, by its number or device; stamps are nanoseconds since the first one.

    Raises ImageError if it cannot be opened or stops sending.
    """
    import cv2

    capture = cv2.VideoCapture(int(which) if which.isdecimal() else which)
    try:
        if not capture.isOpened():
            raise ImageError(f"cannot open webcam {which}; is it connected, and in no other program?")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # only the newest frame matters
        first_ns = time.monotonic_ns()
        while True:
            read, bgr = capture.read()
            if not read:
                raise ImageError(f"webcam {which} sends no more frames")
            picture = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(image=picture, stamp_ns=time.monotonic_ns() - first_ns)
    finally:
        capture.release()


class VideoWriter:
    """Writes H.264 in MP4 at the size of the first frame, scaled down to MAX_FILM_PX if it is larger.

    An odd width or height loses a pixel; one of 1 pixel is doubled. Frames of another size are scaled to
    the first one's. The MP4 is fragmented: what was written can be played, even if the process is killed.
    Methods raise OutputError, e.g. if the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size = (0, 0)  # (height, width) of the first frame
        self._last_pts = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: NDArray[np.uint8], stamp_ns: int) -> None:
        """Appends a (H, W, 3) uint8 RGB frame, visible from `stamp_ns` on; stamps must grow."""
        import av

        if self._container is None:
            self._open(image)
        assert self._container is not None and self._stream is not None
        image = fitted(image, *self._size)
        height, width = self._stream.height, self._stream.width
        if max(self._size) > MAX_FILM_PX:
            image = np.asarray(Image.fromarray(image).resize((width, height)))
        image = np.pad(image, [(0, int(size == 1)) for size in image.shape[:2]] + [(0, 0)], mode="edge")
        even = np.ascontiguousarray(image[:height, :width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts = self._last_pts = max(round(stamp_ns / 1e6), self._last_pts + 1)
        frame.time_base = Fraction(1, 1000)
        self._mux(frame)

    def _mux(self, frame: VideoFrame | None) -> None:
        """Encodes a frame, or what is left; packets go to the disk immediately."""
        import av.error

        assert self._container is not None and self._stream is not None
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, av.error.FFmpegError) as error:  # only some of PyAV's errors are an OSError
            self._container = self._stream = None
            raise cannot_write(self._path, error) from None

    def _open(self, image: NDArray[np.uint8]) -> None:
        import av
        import av.error

        self._size = image.shape[0], image.shape[1]
        try:
            self._container = av.open(str(self._path), "w", options=FRAGMENTED)
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self._path, error) from None
        options = {"crf": "23", "preset": "veryfast", "tune": "zerolatency", "g": str(FRAGMENT_FRAMES)}
        stream = self._container.add_stream("libx264", rate=Fraction(30), options=options)
        scale = min(1.0, MAX_FILM_PX / max(self._size))
        stream.height, stream.width = (max(2, int(size * scale) // 2 * 2) for size in self._size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.time_base = Fraction(1, 1000)
        self._stream = stream

    def close(self) -> None:
        """Finishes the file; without any frame there is no file. Idempotent."""
        import av.error

        if self._container is None:
            return
        container = self._container
        try:
            self._mux(None)
            container.close()
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self._path, error) from None
        finally:
            self._container = self._stream = None
