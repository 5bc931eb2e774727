"""Image messages ↔ numpy pictures, masks and depth; an image that cannot be read raises ImageError.

Pictures are `(H, W, 3)` uint8 RGB, masks `(H, W)` bool, depth `(H, W)` float32 metres; H and W are pixels.
"""

from __future__ import annotations

import array
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros.errors import ImageError


@dataclass(frozen=True, slots=True)
class _Layout:
    """One plain encoding: interleaved channels in rows of `step` bytes."""

    dtype: str  # numpy type without byte order
    channels: int
    to_rgb: int | None  # OpenCV conversion code; None for RGB


_LAYOUTS = {
    "rgb8": _Layout("u1", 3, None),
    "bgr8": _Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "8UC1": _Layout("u1", 1, cv2.COLOR_GRAY2RGB),
    "mono16": _Layout("u2", 1, cv2.COLOR_GRAY2RGB),
    # Read here, as cv_bridge from PyPI ignores `step` and fails on YUV.
    # OpenCV names a Bayer pattern by its second row and column, ROS by its first: RGGB is OpenCV's BG.
    "bayer_rggb8": _Layout("u1", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Layout("u1", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Layout("u1", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Layout("u1", 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": _Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
}
# As REP 118 defines them: metres per unit.
_DEPTH_UNITS_M = {"16UC1": 1e-3, "32FC1": 1.0}
_DEPTH_LAYOUTS = {"16UC1": _Layout("u2", 1, None), "32FC1": _Layout("f4", 1, None)}
_DEPTH_HEADER = struct.Struct("<iff")  # of compressedDepth: format, and two numbers of the inverse depth
_MASK_ENCODINGS = ("mono8", "8UC1")


def picture_from_image(message: Image) -> NDArray[np.uint8]:
    """Reads a camera image, unpadded rgb8 without a copy; mono16 becomes 8 bits, depth images are refused."""
    _check_extent(message)
    if message.encoding in _DEPTH_LAYOUTS:
        raise ImageError(
            f"{message.encoding!r} is a depth encoding; "
            "send colour (rgb8, bgr8, …) or grey (mono8, mono16) images"
        )
    layout = _LAYOUTS.get(message.encoding)
    if layout is None:
        return _picture_through_cv_bridge(message)
    pixels = _pixels(message, layout)
    if pixels.dtype.itemsize == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    if layout.to_rgb is None:
        return np.ascontiguousarray(pixels)
    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), layout.to_rgb), np.uint8)
    except cv2.error as error:
        raise ImageError(
            f"cannot read a {message.width}x{message.height} image as {message.encoding!r}: {error}"
        ) from None


def picture_from_compressed(message: CompressedImage) -> NDArray[np.uint8]:
    """Decompresses a JPEG, PNG, … image as stored: ignores EXIF orientation, as camera_info does."""
    data = np.frombuffer(message.data, np.uint8)
    if not data.size:
        raise ImageError(f"the compressed image ({message.format!r}) has no data")
    if "compressedDepth" in message.format:
        raise ImageError(f"{message.format!r} is a depth format; send JPEG or PNG colour images")
    # OpenCV fills the missing part of a truncated JPEG with grey and calls that success.
    if data[:2].tobytes() == b"\xff\xd8" and data.tobytes().rfind(b"\xff\xd9") < 0:
        raise ImageError(f"truncated JPEG: {data.size} bytes without an end marker")
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImageError(f"cannot decompress {data.size} bytes of format {message.format!r}; use JPEG or PNG")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


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
    """Reads what compressed_depth_image_transport sends as PNG; 0 and NaN mean not measured.

    Behind a header of 12 bytes lies a 16-bit PNG: of millimetres for 16UC1, for 32FC1 of a / depth + b with
    a and b of the header.
    """
    encoding, _, transport = message.format.partition(";")
    if "compressedDepth" not in transport or encoding not in _DEPTH_UNITS_M or transport.endswith("rvl"):
        raise ImageError(
            f"depth must have format '16UC1; compressedDepth png' or '32FC1; compressedDepth png', "
            f"not {message.format!r}"
        )
    data = bytes(message.data)
    pixels = None
    if len(data) > _DEPTH_HEADER.size:
        png = np.frombuffer(data, np.uint8, offset=_DEPTH_HEADER.size)
        pixels = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 2:
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
    """RGB picture → JPEG; quality 1..100."""
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


def _pixels(message: Image, layout: _Layout) -> NDArray[Any]:
    """A view of the message's data, (H, W) or (H, W, C), in the machine's byte order."""
    dtype = np.dtype(layout.dtype).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = message.width * layout.channels * dtype.itemsize
    if message.step < row_bytes:
        row = f"{message.width} {message.encoding} pixels"
        raise ImageError(f"step is {message.step} bytes, a row of {row} has {row_bytes}")
    needed = message.step * message.height
    if len(message.data) != needed:
        problem = "truncated" if len(message.data) < needed else "too long"
        raise ImageError(
            f"the image data is {problem}: {len(message.data)} bytes, "
            f"expected step {message.step} x height {message.height} = {needed}"
        )
    shape, strides = [message.height, message.width], [message.step, layout.channels * dtype.itemsize]
    if layout.channels > 1:
        shape.append(layout.channels)
        strides.append(dtype.itemsize)
    view: NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=message.data, strides=tuple(strides))
    return view if dtype.isnative else view.astype(dtype.newbyteorder("="))


def _picture_through_cv_bridge(message: Image) -> NDArray[np.uint8]:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise _unknown_encoding(
            message, "and cv_bridge, which converts more encodings, is not installed"
        ) from None
    try:
        picture = np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except Exception as error:  # CvBridgeError, KeyError, ImportError, …
        raise _unknown_encoding(message, f"and cv_bridge cannot read it: {error}") from None
    if picture.shape != (message.height, message.width, 3) or picture.dtype != np.uint8:
        raise _unknown_encoding(message, f"and cv_bridge converted it to {picture.shape} {picture.dtype}")
    return picture


def _unknown_encoding(message: Image, why: str) -> ImageError:
    return ImageError(
        f"encoding {message.encoding!r} is not supported (supported: {', '.join(_LAYOUTS)}), {why}"
    )
