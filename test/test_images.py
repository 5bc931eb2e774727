"""Image layouts: messages ↔ numpy pictures and masks, and the errors of bad ones."""

from __future__ import annotations

import array
import struct

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros import errors
from pam_ros.nodes.images import (
    depth_from_compressed,
    depth_from_image,
    image_message,
    jpeg_message,
    mask_from_image,
    picture_from_compressed,
    picture_from_image,
)

HEIGHT, WIDTH = 4, 6


def picture() -> np.ndarray:
    """(4, 6, 3) uint8, every value different from its neighbours'."""
    return (np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3) * 3 % 256).astype(np.uint8)


def raw_message(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False) -> Image:
    """A message with `padding` bytes behind every row."""
    rows = pixels.reshape(pixels.shape[0], -1)
    if bigendian:
        rows = rows.astype(rows.dtype.newbyteorder(">"))
    data = b"".join(row.tobytes() + b"\xee" * padding for row in rows)
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(bigendian),
        step=rows.shape[1] * rows.itemsize + padding,
        data=array.array("B", data),
    )


def compressed_message(data: bytes, form: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=form, data=array.array("B", data))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "convert"),
    [
        ("rgb8", None),
        ("bgr8", cv2.COLOR_RGB2BGR),
        ("rgba8", cv2.COLOR_RGB2RGBA),
        ("bgra8", cv2.COLOR_RGB2BGRA),
    ],
)
def test_colour_encodings_with_and_without_padding(encoding: str, convert: int | None, padding: int) -> None:
    sent = picture() if convert is None else cv2.cvtColor(picture(), convert)
    read = picture_from_image(raw_message(sent, encoding, padding))
    np.testing.assert_array_equal(read, picture())
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous


def test_rgb8_is_not_copied() -> None:
    message = raw_message(picture(), "rgb8")
    assert np.shares_memory(picture_from_image(message), np.frombuffer(message.data, np.uint8))


def test_grey_encodings() -> None:
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(picture_from_image(raw_message(grey, "mono8", 3)), expected)
    wide = grey.astype(np.uint16) * 256 + 17
    np.testing.assert_array_equal(picture_from_image(raw_message(wide, "mono16", 4)), expected)
    np.testing.assert_array_equal(
        picture_from_image(raw_message(wide, "mono16", 4, bigendian=True)), expected
    )


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"])
def test_bayer_encodings(encoding: str) -> None:
    letters = encoding.split("_")[1][:4]
    colour = (200, 100, 30)
    mosaic = np.zeros((16, 16), np.uint8)
    for place, letter in enumerate(letters):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour["rgb".index(letter)]
    read = picture_from_image(raw_message(mosaic, encoding, 2))
    np.testing.assert_array_equal(read[4:-4, 4:-4], np.full((8, 8, 3), colour, np.uint8))


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("yuv422_yuy2", "yuyv")])
def test_yuv_encodings(encoding: str, order: str) -> None:
    luma, blue, red = 120, 90, 200
    values = {"y": luma, "u": blue, "v": red}
    packed = np.zeros((4, 8, 2), np.uint8)
    packed.reshape(4, 4, 4)[:] = [values[letter] for letter in order]
    read = picture_from_image(raw_message(packed, encoding))
    expected = [
        1.164 * (luma - 16) + 1.596 * (red - 128),
        1.164 * (luma - 16) - 0.813 * (red - 128) - 0.391 * (blue - 128),
        1.164 * (luma - 16) + 2.018 * (blue - 128),
    ]
    np.testing.assert_allclose(read[1, 1], np.clip(expected, 0, 255), atol=2)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_images_are_no_pictures(encoding: str) -> None:
    depth = np.ones((HEIGHT, WIDTH), np.uint16 if encoding == "16UC1" else np.float32)
    with pytest.raises(errors.ImageError, match="depth encoding"):
        picture_from_image(raw_message(depth, encoding))


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize(("encoding", "unit_m"), [("16UC1", 0.001), ("32FC1", 1.0)])
def test_depth_is_read_in_metres(encoding: str, unit_m: float, bigendian: bool) -> None:
    metres = np.linspace(0.5, 3.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    metres[1, 2] = 0
    pixels = (metres / unit_m).round(6).astype(np.uint16 if encoding == "16UC1" else np.float32)
    read = depth_from_image(raw_message(pixels, encoding, padding=4, bigendian=bigendian))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, metres, atol=0.001)


def test_depth_of_another_encoding_says_what_is_allowed() -> None:
    with pytest.raises(errors.ImageError, match=r"32FC1 \(metres\) or 16UC1 \(millimetres\), not 'rgb8'"):
        depth_from_image(raw_message(picture(), "rgb8"))


def compressed_depth(metres: np.ndarray, encoding: str) -> CompressedImage:
    """As compressed_depth_image_transport writes it: a header, then a 16-bit PNG."""
    if encoding == "16UC1":
        header, pixels = struct.pack("<iff", 0, 0.0, 0.0), (metres * 1000).round()
    else:
        a = 100.0 * 101.0  # its default quantisation
        b = 1.0 - a / 10.0  # and largest depth
        header = struct.pack("<iff", 1, a, b)
        pixels = np.where(metres > 0, a / np.maximum(metres, 1e-3) + b, 0)
    png = cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes()
    return compressed_message(header + png, f"{encoding}; compressedDepth png")


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_compressed_depth_is_read_in_metres(encoding: str) -> None:
    metres = np.linspace(0.5, 3.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    metres[1, 2] = 0
    np.testing.assert_allclose(depth_from_compressed(compressed_depth(metres, encoding)), metres, atol=0.002)


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [
        (b"x" * 40, "16UC1; compressedDepth png", "cannot decompress 40 bytes"),
        (b"x", "16UC1; compressedDepth", "cannot decompress 1 bytes"),
        (b"x" * 40, "16UC1; compressedDepth rvl", "compressedDepth png' or"),
        (b"x" * 40, "rgb8; jpeg compressed bgr8", "not 'rgb8; jpeg"),
        (b"h" * 12 + cv2.imencode(".png", picture())[1].tobytes(), "16UC1; compressedDepth", "16-bit PNG"),
    ],
)
def test_unusable_compressed_depth_says_why(data: bytes, form: str, words: str) -> None:
    with pytest.raises(errors.ImageError, match=words):
        depth_from_compressed(compressed_message(data, form))


def test_unusable_images_say_why() -> None:
    with pytest.raises(errors.ImageError, match="empty"):
        picture_from_image(Image(encoding="rgb8"))
    truncated = raw_message(picture(), "rgb8")
    truncated.data = truncated.data[:-1]
    with pytest.raises(errors.ImageError, match="truncated: 71 bytes, expected step 18 x height 4 = 72"):
        picture_from_image(truncated)
    narrow = raw_message(picture(), "rgb8")
    narrow.step = 6
    with pytest.raises(errors.ImageError, match="step is 6 bytes, a row of 6 rgb8 pixels has 18"):
        picture_from_image(narrow)
    wide = raw_message(picture(), "rgb8")
    wide.step = 19
    with pytest.raises(errors.ImageError, match="truncated"):
        picture_from_image(wide)
    long = raw_message(picture(), "rgb8")
    long.data.extend(b"x")
    with pytest.raises(errors.ImageError, match="too long"):
        picture_from_image(long)
    for encoding in ("banana", "", "32SC4"):
        with pytest.raises(errors.ImageError, match=r"encoding .* is not supported \(supported: rgb8, bgr8"):
            picture_from_image(raw_message(picture(), encoding))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_images(extension: str) -> None:
    smooth = np.full((16, 24, 3), (200, 100, 30), np.uint8)
    data = cv2.imencode(extension, cv2.cvtColor(smooth, cv2.COLOR_RGB2BGR))[1].tobytes()
    read = picture_from_compressed(compressed_message(data, f"rgb8; {extension[1:]} compressed bgr8"))
    np.testing.assert_allclose(read, smooth, atol=3)


def test_unusable_compressed_images_say_why() -> None:
    with pytest.raises(errors.ImageError, match="no data"):
        picture_from_compressed(compressed_message(b""))
    with pytest.raises(errors.ImageError, match="cannot decompress"):
        picture_from_compressed(compressed_message(b"this is no picture"))
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(errors.ImageError, match="truncated"):
        picture_from_compressed(compressed_message(data[: len(data) // 2]))
    with pytest.raises(errors.ImageError, match="depth"):
        picture_from_compressed(compressed_message(b"1234", "16UC1; compressedDepth"))


def test_written_images_read_back() -> None:
    np.testing.assert_array_equal(picture_from_image(image_message(picture(), "rgb8", Header())), picture())
    mirrored = image_message(picture()[:, ::-1], "rgb8", Header())
    np.testing.assert_array_equal(picture_from_image(mirrored), picture()[:, ::-1])
    smooth = np.full((16, 24, 3), (200, 100, 30), np.uint8)
    np.testing.assert_allclose(picture_from_compressed(jpeg_message(smooth, 90, Header())), smooth, atol=4)


def test_masks() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1, 2] = 1
    np.testing.assert_array_equal(mask_from_image(raw_message(mask, "mono8", 3)), mask != 0)
    with pytest.raises(errors.ImageError, match="mono8 or 8UC1"):
        mask_from_image(raw_message(picture(), "rgb8"))
