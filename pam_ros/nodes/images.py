"""Image messages ↔ arrays: images, masks and depth; an image that cannot be read raises ImageError.

Images are `(H, W, 3)` uint8 RGB, masks `(H, W)` bool, depth `(H, W)` float32 metres; H and W are pixels.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros.errors import ImageError
from pam_ros.media import (
    JPEG_END,
    check_image_size,
    eight_bits,
    load_image,
    open_image,
    range_bits,
    why,
)
from pam_ros.nodes.rvl import decode_rvl


@dataclass(frozen=True, slots=True)
class _Layout:
    """One encoding: interleaved channels in rows of `step` bytes; 8-bit planes of chroma may follow."""

    dtype: str  # numpy type without byte order
    channels: int
    to_rgb: int | None  # OpenCV conversion code, of 8-bit pixels; None for RGB
    chroma_step: int = 0  # columns and rows of Y per pair of chroma in the second plane; 0 without one


# OpenCV names a Bayer pattern by its second row and column, ROS by its first: RGGB is OpenCV's BG.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
_UYVY, _YUYV = cv2.COLOR_YUV2RGB_UYVY, cv2.COLOR_YUV2RGB_YUY2
# Of raw and compressed images: what an encoding of sensor_msgs/image_encodings.hpp holds. OpenCV's own names
# (8UC3, …) are in its order of channels, BGR.
_LAYOUTS = {
    "rgb8": _Layout("u1", 3, None),
    "bgr8": _Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "8UC1": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "8UC3": _Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "8UC4": _Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "rgb16": _Layout("u2", 3, None),
    "bgr16": _Layout("u2", 3, cv2.COLOR_BGR2RGB),
    "rgba16": _Layout("u2", 4, cv2.COLOR_RGBA2RGB),
    "bgra16": _Layout("u2", 4, cv2.COLOR_BGRA2RGB),
    "mono16": _Layout("u2", 1, cv2.COLOR_GRAY2RGB),
    "16UC1": _Layout("u2", 1, cv2.COLOR_GRAY2RGB),
    "16UC3": _Layout("u2", 3, cv2.COLOR_BGR2RGB),
    "16UC4": _Layout("u2", 4, cv2.COLOR_BGRA2RGB),
    **{f"bayer_{pattern}8": _Layout("u1", 1, code) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": _Layout("u2", 1, code) for pattern, code in _BAYER.items()},
    "yuv422": _Layout("u1", 2, _UYVY),
    "uyvy": _Layout("u1", 2, _UYVY),
    "yuv422_yuy2": _Layout("u1", 2, _YUYV),
    "yuyv": _Layout("u1", 2, _YUYV),
    "nv12": _Layout("u1", 1, cv2.COLOR_YUV2RGB_NV12, chroma_step=2),
    "nv21": _Layout("u1", 1, cv2.COLOR_YUV2RGB_NV21, chroma_step=2),
    "nv24": _Layout("u1", 1, cv2.COLOR_YUV2RGB_NV12, chroma_step=1),
}
# As REP 118 defines them: metres per unit.
_DEPTH_UNITS_M = {"16UC1": 1e-3, "32FC1": 1.0}
_DEPTH_LAYOUTS = {"16UC1": _Layout("u2", 1, None), "32FC1": _Layout("f4", 1, None)}
_DEPTH_TRANSPORTS = ("compressedDepth", "compressedDepth png", "compressedDepth rvl")  # the first sends PNG
_DEPTH_HEADER = struct.Struct("<iff")  # of compressedDepth: format, and two numbers of the inverse depth
_MASK_ENCODINGS = ("mono8", "8UC1")
_JPEG_START = b"\xff\xd8"
_PNG_DEPTH = 24  # the byte of a PNG that holds the bits of a channel
_COMPRESSED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # of Pillow's, those that are sent


class ImageReader:
    """Image messages of one camera → arrays `(H, W, 3)` uint8 RGB.

    16-bit pixels lose the bits below the upper eight of the camera's range: 8, 10, 12, 14 or 16 bits, the
    smallest that holds every value so far. So a dark frame after a bright one stays dark. Another encoding or
    size is another mode of the camera, with a range of its own.
    """

    def __init__(self, report: Callable[[str], None] = lambda line: None) -> None:
        """`report` gets a line when the range of a mode grows."""
        self._report = report
        self._mode: tuple[str, tuple[int, ...]] | None = None  # encoding and shape of the last image
        self._bits = 0  # the mode's range; 0 before its first image

    def forget(self) -> None:
        """The range is measured anew."""
        self._mode = None

    def from_image(self, message: Image) -> NDArray[np.uint8]:
        """Reads a raw image in an encoding of the table above, unpadded rgb8 without a copy.

        Raises ImageError for others, depth as metres included, and for data that does not fit the header.
        """
        _check_extent(message)
        layout = _LAYOUTS.get(message.encoding)
        if layout is None:
            raise _unknown_encoding(message.encoding)
        pixels = _pixels(message, layout)
        if layout.chroma_step:
            return _planes_to_rgb(pixels, message, layout)
        return self._to_rgb(pixels, layout, message.encoding)

    def from_compressed(self, message: CompressedImage) -> NDArray[np.uint8]:
        """Decompresses a JPEG, PNG, … image as stored: ignores EXIF orientation, as camera_info does.

        `format` is that of compressed_image_transport: "<encoding>; jpeg compressed <stored order>". A Bayer
        pattern stored in grey is demosaiced; channels stored in the order RGB are swapped back. Raises
        ImageError for depth, and for data that cannot be decoded.
        """
        encoding, _, transport = (part.strip() for part in message.format.partition(";"))
        if "compressedDepth" in transport or (transport and encoding in _DEPTH_UNITS_M):
            raise ImageError(f"{message.format!r} is a depth format; send JPEG or PNG colour images")
        pixels = _decompressed(message)
        if pixels.ndim == 2:
            bayer = encoding in _LAYOUTS and encoding.startswith("bayer_")
            return self._to_rgb(pixels, _LAYOUTS[encoding if bayer else "mono8"], message.format)
        # A publisher that compresses RGB as if it were BGR declares it.
        layout = _LAYOUTS["bgr8" if "compressed rgb" in transport else "rgb8"]
        return self._to_rgb(pixels, layout, message.format)

    def _to_rgb(self, pixels: NDArray[Any], layout: _Layout, encoding: str) -> NDArray[np.uint8]:
        """(H, W) or (H, W, C), 8 or 16 bits → (H, W, 3) uint8 RGB."""
        if (mode := (encoding, pixels.shape)) != self._mode:
            self._mode, self._bits = mode, 0
        if pixels.dtype == np.uint16:
            bits, before = range_bits(pixels, self._bits), self._bits
            if 0 < before < bits:
                self._report(
                    f"an image has values of {bits} bits, those before it had {before}; images look darker "
                    "from now on, until their encoding or size changes or the node is activated anew"
                )
            self._bits = bits
            pixels = eight_bits(pixels, bits)
        pixels = np.ascontiguousarray(pixels)
        if layout.to_rgb is None:
            return pixels
        if layout.to_rgb in _BAYER.values() and min(pixels.shape[:2]) < 3:
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise ImageError(f"a Bayer image of {size} pixels cannot be demosaiced; it needs at least 3x3")
        width = pixels.shape[1]
        if layout.channels == 2 and width % 2:  # the last pixel lacks one chroma value: its neighbour's
            neighbour = pixels[:, -2:-1] if width > 1 else np.full_like(pixels, 128)
            pixels = np.concatenate([pixels, neighbour], axis=1)
        return np.ascontiguousarray(cv2.cvtColor(pixels, layout.to_rgb)[:, :width], np.uint8)


def rgb_from_image(message: Image) -> NDArray[np.uint8]:
    """One image of a camera whose range is not known from others; see ImageReader."""
    return ImageReader().from_image(message)


def _decompressed(message: CompressedImage) -> NDArray[Any]:
    """(H, W), or (H, W, 3) in the order RGB, 8 or 16 bits, as stored; alpha is dropped."""
    data = bytes(message.data)
    if not data:
        raise ImageError(f"the compressed image ({message.format!r}) has no data")
    what = f"the compressed image ({message.format!r}, {len(data)} bytes)"
    try:
        if data.startswith(_JPEG_START) and data.endswith(JPEG_END):
            open_image(data, what, _COMPRESSED_FORMATS)  # checks the size
            return _rgb_of_opencv(data)
        # Not by OpenCV, though it is faster: it fills the missing part of a truncated JPEG with grey.
        picture = load_image(data, what, _COMPRESSED_FORMATS)
        if picture.mode == "1":
            picture = picture.convert("L")
        if picture.mode == "L" or picture.mode.startswith("I;16"):
            pixels = np.asarray(picture)
            return pixels if pixels.dtype.isnative else pixels.astype(np.uint16)
        if picture.format == "PNG" and data[_PNG_DEPTH] == 16:  # Pillow reduces 16-bit colour to 8 bits
            return _rgb_of_opencv(data)
        if picture.mode in ("I", "F"):
            raise ImageError(f"{what} has 32-bit pixels; send JPEG or PNG of 8 or 16 bits")
        return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise ImageError(f"cannot decompress {what}: it is neither JPEG nor PNG; send one of them") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything for damaged data
        raise ImageError(f"cannot decompress {what}: {why(error)}") from None


def _rgb_of_opencv(data: bytes) -> NDArray[Any]:
    """An image in memory → (H, W), or (H, W, 3) in the order RGB. Raises ValueError if it is damaged."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the data is damaged")
    if pixels.ndim == 2:
        return np.asarray(pixels)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB))


def mask_from_image(message: Image) -> NDArray[np.bool_]:
    """Reads a mono8 or 8UC1 mask; nonzero is inside."""
    _check_extent(message)
    if message.encoding not in _MASK_ENCODINGS:
        raise ImageError(f"a mask must have encoding mono8 or 8UC1, not {message.encoding!r}")
    return np.asarray(_pixels(message, _LAYOUTS[message.encoding]) != 0)


def depth_from_image(message: Image) -> NDArray[np.float32]:
    """Reads a depth image: 32FC1 is metres, 16UC1 millimetres (REP 118); 0 and NaN mean not measured."""
    _check_extent(message)
    layout = _DEPTH_LAYOUTS.get(message.encoding)
    if layout is None:
        raise ImageError(
            f"depth must have encoding 32FC1 (metres) or 16UC1 (millimetres), not {message.encoding!r}"
        )
    pixels = _pixels(message, layout)
    metres: NDArray[np.float32] = np.multiply(pixels, _DEPTH_UNITS_M[message.encoding], dtype=np.float32)
    return metres


def depth_from_compressed(message: CompressedImage) -> NDArray[np.float32]:
    """Reads what compressed_depth_image_transport sends, PNG or RVL; 0 and NaN mean not measured.

    Behind a header of 12 bytes lie 16-bit pixels: millimetres for 16UC1, for 32FC1 a / depth + b with a and b
    of the header. "16UC1; png compressed", as compressed_image_transport sends it, has no header.
    """
    encoding, _, transport = (part.strip() for part in message.format.partition(";"))
    plain = encoding == "16UC1" and transport.startswith("png compressed")
    if not plain and (transport not in _DEPTH_TRANSPORTS or encoding not in _DEPTH_UNITS_M):
        raise ImageError(
            f"depth must have format '16UC1; compressedDepth png' or '32FC1; compressedDepth png', "
            f"or rvl for png, not {message.format!r}"
        )
    data = bytes(message.data)
    packed = data if plain else data[_DEPTH_HEADER.size :]
    if transport.endswith("rvl"):
        pixels: NDArray[Any] = decode_rvl(packed, f"the depth image ({message.format!r}, {len(data)} bytes)")
    else:
        pixels = _decompressed(CompressedImage(format=message.format, data=_byte_array(packed)))
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise ImageError(
            f"cannot decompress {len(data)} bytes of format {message.format!r}; publish 16-bit PNG"
        )
    values: NDArray[np.float32] = pixels.astype(np.float32)
    if encoding == "16UC1":
        return values * np.float32(_DEPTH_UNITS_M[encoding])
    _, a, b = _DEPTH_HEADER.unpack_from(data)
    with np.errstate(divide="ignore"):
        return np.where(values > 0, np.float32(a) / (values - np.float32(b)), np.float32(0))


def image_message(pixels: NDArray[np.uint8] | NDArray[np.uint16], encoding: str, header: Header) -> Image:
    """(H, W) or (H, W, C) pixels → message; `encoding` must fit their type and channels."""
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0] if pixels.flags.c_contiguous else pixels[0].size * pixels.itemsize,
        data=_byte_array(pixels.tobytes()),
    )


def jpeg_message(picture: NDArray[np.uint8], quality: int, header: Header) -> CompressedImage:
    """RGB image → JPEG; quality 1..100."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return CompressedImage(
        header=header, format="rgb8; jpeg compressed bgr8", data=_byte_array(data.tobytes())
    )


def _byte_array(data: bytes) -> array.array[int]:
    """Message classes check every element of anything else, which takes seconds for an image."""
    return array.array("B", data)


def _check_extent(message: Image) -> None:
    if not message.width or not message.height or not message.data:
        raise ImageError(
            f"the image is empty: {message.width}x{message.height} pixels, {len(message.data)} bytes of data"
        )
    check_image_size("the image", message.width, message.height, len(message.data))


def _pixels(message: Image, layout: _Layout) -> NDArray[Any]:
    """A view of the message's data, (H, W) or (H, W, C), in the machine's byte order."""
    dtype = np.dtype(layout.dtype).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = message.width * layout.channels * dtype.itemsize
    if message.step < row_bytes:
        row = f"{message.width} {message.encoding} pixels"
        raise ImageError(f"step is {message.step} bytes, a row of {row} has {row_bytes}")
    planes, needed = "", message.step * message.height
    if layout.chroma_step:
        rows, _, step = _chroma_extent(message, layout)
        planes, needed = f" and {step} x {rows} of chroma", needed + rows * step
    if len(message.data) != needed:
        problem = "truncated" if len(message.data) < needed else "too long"
        raise ImageError(
            f"the image data is {problem}: {len(message.data)} bytes, "
            f"expected step {message.step} x height {message.height}{planes} = {needed}"
        )
    shape, strides = [message.height, message.width], [message.step, layout.channels * dtype.itemsize]
    if layout.channels > 1:
        shape.append(layout.channels)
        strides.append(dtype.itemsize)
    view: NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=message.data, strides=tuple(strides))
    return view if dtype.isnative else view.astype(dtype.newbyteorder("="))


def _chroma_extent(message: Image, layout: _Layout) -> tuple[int, int, int]:
    """Rows and pairs per row of the second plane, and bytes from row to row."""
    rows, pairs = (-(-extent // layout.chroma_step) for extent in (message.height, message.width))
    return rows, pairs, max(2 * pairs, 2 * message.step // layout.chroma_step)


def _planes_to_rgb(luma: NDArray[np.uint8], message: Image, layout: _Layout) -> NDArray[np.uint8]:
    """(H, W) of Y and the plane behind it → (H, W, 3) uint8 RGB."""
    rows, pairs, step = _chroma_extent(message, layout)
    assert layout.to_rgb is not None
    start = message.step * message.height
    chroma: NDArray[np.uint8] = np.ndarray((rows, pairs, 2), np.uint8, message.data, start, (step, 2, 1))
    # OpenCV wants two columns and rows of Y per pair of chroma: Y is repeated, at odd edges or everywhere.
    if layout.chroma_step == 1:
        filled = luma.repeat(2, axis=0).repeat(2, axis=1)
    else:
        filled = np.pad(luma, ((0, luma.shape[0] % 2), (0, luma.shape[1] % 2)), "edge")
    rgb = cv2.cvtColorTwoPlane(filled, np.ascontiguousarray(chroma), layout.to_rgb)
    stride = 3 - layout.chroma_step  # 1 or 2 columns and rows of Y to a pixel
    return np.ascontiguousarray(
        rgb[: stride * luma.shape[0] : stride, : stride * luma.shape[1] : stride], np.uint8
    )


def _unknown_encoding(encoding: str) -> ImageError:
    if encoding in _DEPTH_LAYOUTS:
        return ImageError(
            f"{encoding!r} is a depth encoding; send colour (rgb8, bgr8, …) or grey (mono8, mono16) images"
        )
    return ImageError(f"encoding {encoding!r} is not supported (supported: {', '.join(_LAYOUTS)})")
