"""Image layouts: messages ↔ numpy pictures and masks, and the errors of bad ones."""

from __future__ import annotations

import array
import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from rvl_encoder import encode_rvl
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros import errors, media
from pam_ros.nodes.images import (
    ImageReader,
    depth_from_compressed,
    depth_from_image,
    image_message,
    jpeg_message,
    mask_from_image,
    rgb_from_image,
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
    read = rgb_from_image(raw_message(sent, encoding, padding))
    np.testing.assert_array_equal(read, picture())
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous


def test_rgb8_is_not_copied() -> None:
    message = raw_message(picture(), "rgb8")
    assert np.shares_memory(rgb_from_image(message), np.frombuffer(message.data, np.uint8))


def test_grey_encodings() -> None:
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(rgb_from_image(raw_message(grey, "mono8", 3)), expected)
    wide = grey.astype(np.uint16) * 256 + 17
    np.testing.assert_array_equal(rgb_from_image(raw_message(wide, "mono16", 4)), expected)
    np.testing.assert_array_equal(rgb_from_image(raw_message(wide, "mono16", 4, bigendian=True)), expected)


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"])
def test_bayer_encodings(encoding: str) -> None:
    letters = encoding.split("_")[1][:4]
    colour = (200, 100, 30)
    mosaic = np.zeros((16, 16), np.uint8)
    for place, letter in enumerate(letters):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour["rgb".index(letter)]
    read = rgb_from_image(raw_message(mosaic, encoding, 2))
    np.testing.assert_array_equal(read[4:-4, 4:-4], np.full((8, 8, 3), colour, np.uint8))


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("yuv422_yuy2", "yuyv")])
def test_yuv_encodings(encoding: str, order: str) -> None:
    luma, blue, red = 120, 90, 200
    values = {"y": luma, "u": blue, "v": red}
    packed = np.zeros((4, 8, 2), np.uint8)
    packed.reshape(4, 4, 4)[:] = [values[letter] for letter in order]
    read = rgb_from_image(raw_message(packed, encoding))
    expected = [
        1.164 * (luma - 16) + 1.596 * (red - 128),
        1.164 * (luma - 16) - 0.813 * (red - 128) - 0.391 * (blue - 128),
        1.164 * (luma - 16) + 2.018 * (blue - 128),
    ]
    np.testing.assert_allclose(read[1, 1], np.clip(expected, 0, 255), atol=2)


def test_depth_in_metres_is_no_picture() -> None:
    with pytest.raises(errors.ImageError, match="depth encoding"):
        rgb_from_image(raw_message(np.ones((HEIGHT, WIDTH), np.float32), "32FC1"))


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", "uyvy"), ("yuyv", "yuyv")])
@pytest.mark.parametrize("width", [1, 7])
def test_yuv_of_odd_width_has_all_its_columns(encoding: str, order: str, width: int) -> None:
    values = {"y": 120, "u": 90, "v": 200}
    packed = np.array([values[letter] for letter in order * 4], np.uint8).reshape(8, 2)[:width]
    read = rgb_from_image(raw_message(np.tile(packed, (4, 1, 1)), encoding, padding=3))
    assert read.shape == (4, width, 3)
    red = 200 if width > 1 else 128  # one pixel has only the first chroma value
    expected = [
        1.164 * (120 - 16) + 1.596 * (red - 128),
        1.164 * (120 - 16) - 0.813 * (red - 128) + 0.391 * 38,
        1.164 * (120 - 16) - 2.018 * 38,
    ]
    np.testing.assert_allclose(read, np.broadcast_to(np.clip(expected, 0, 255), read.shape), atol=2)


def planar(encoding: str, height: int, width: int, padding: int) -> Image:
    """Y rises along x and y; chroma is the same everywhere, so that every pixel's colour is known."""
    step = width + padding
    luma = np.full((height, step), 0xEE, np.uint8)
    luma[:, :width] = (40 + 5 * np.arange(width) + 3 * np.arange(height)[:, None]).astype(np.uint8)
    rows, pairs = (height, width) if encoding == "nv24" else (-(-height // 2), -(-width // 2))
    chroma_step = 2 * step if encoding == "nv24" else max(step, 2 * pairs)
    chroma = np.full((rows, chroma_step), 0xEE, np.uint8)
    chroma[:, : 2 * pairs] = [200, 90] * pairs if encoding == "nv21" else [90, 200] * pairs
    data = luma.tobytes() + chroma.tobytes()
    return Image(height=height, width=width, encoding=encoding, step=step, data=array.array("B", data))


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
def test_planar_encodings(encoding: str, size: tuple[int, int], padding: int) -> None:
    read = rgb_from_image(planar(encoding, *size, padding)).astype(float)
    luma = 1.164 * (40 + 5 * np.arange(size[1]) + 3 * np.arange(size[0])[:, None] - 16)
    expected = np.stack([luma + 1.596 * 72, luma - 0.813 * 72 + 0.391 * 38, luma - 2.018 * 38], axis=2)
    np.testing.assert_allclose(read, np.clip(expected, 0, 255), atol=2)


def test_a_short_planar_image_says_what_is_missing() -> None:
    message = planar("nv12", 4, 6, 0)
    message.data = message.data[:-1]
    with pytest.raises(errors.ImageError, match=r"truncated: 35 bytes, expected step 6 x height 4 and 6 x 2"):
        rgb_from_image(message)


@pytest.mark.parametrize(
    ("encoding", "channels"),
    [
        ("8UC1", [0]), ("8UC3", [2, 1, 0]), ("8UC4", [2, 1, 0, 0]), ("rgb16", [0, 1, 2]),
        ("bgr16", [2, 1, 0]), ("rgba16", [0, 1, 2, 0]), ("bgra16", [2, 1, 0, 0]), ("16UC3", [2, 1, 0]),
        ("16UC1", [0]),
    ],
)  # fmt: skip
def test_encodings_of_opencv_and_of_16_bits(encoding: str, channels: list[int]) -> None:
    sent = picture()[..., channels]
    if "16" in encoding:
        sent = sent.astype(np.uint16) * 257
    read = rgb_from_image(raw_message(sent, encoding, padding=4))
    expected = picture() if len(channels) > 1 else picture()[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_a_ten_bit_sensor_is_no_black_picture_and_its_range_stays(encoding: str) -> None:
    grey = picture()[..., 0].astype(np.uint16) * 4
    assert grey.max() < 1024
    pictures = ImageReader()
    expected = picture()[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(pictures.from_image(raw_message(grey, encoding)), expected)
    np.testing.assert_array_equal(pictures.from_image(raw_message(grey // 8, encoding)), expected // 8)


def test_one_image_of_16_bits_does_not_darken_another_mode_or_a_new_activation() -> None:
    grey = picture()[..., 0].astype(np.uint16) * 4  # 10 bits
    expected = picture()[..., :1].repeat(3, axis=2)
    lines: list[str] = []
    pictures = ImageReader(lines.append)
    pictures.from_image(raw_message(grey, "mono16"))
    pictures.from_image(raw_message(grey * 64, "mono16"))
    pictures.from_image(raw_message(grey * 64, "mono16"))
    (line,) = lines
    assert line.startswith("an image has values of 16 bits, those before it had 10; images look darker")
    np.testing.assert_array_equal(pictures.from_image(raw_message(grey, "mono16")), expected // 64)
    for mode in (raw_message(grey, "16UC1"), raw_message(grey[:-1], "16UC1")):
        np.testing.assert_array_equal(pictures.from_image(mode), expected[: mode.height])
        pictures.from_image(raw_message(grey[: mode.height] * 64, "16UC1"))
    pictures.forget()
    np.testing.assert_array_equal(pictures.from_image(raw_message(grey[:-1], "16UC1")), expected[:-1])
    assert len(lines) == 3


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_compressed_bayer_is_demosaiced(pattern: str, bits: int) -> None:
    colour = (200, 100, 30)
    mosaic = np.zeros((16, 16), np.uint16)
    for place, letter in enumerate(pattern):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour["rgb".index(letter)]
    mosaic = mosaic.astype(np.uint8) if bits == 8 else mosaic << 8
    encoding = f"bayer_{pattern}{bits}"
    data = cv2.imencode(".png", mosaic)[1].tobytes()
    for read in (
        rgb_from_image(raw_message(mosaic, encoding)),
        ImageReader().from_compressed(compressed_message(data, f"{encoding}; png compressed {encoding}")),
    ):
        np.testing.assert_array_equal(read[4:-4, 4:-4], np.full((8, 8, 3), colour, np.uint8))
    with pytest.raises(errors.ImageError, match="2x2 pixels cannot be demosaiced"):
        rgb_from_image(raw_message(mosaic[:2, :2], encoding))


def test_the_format_says_in_which_order_channels_were_compressed() -> None:
    smooth = np.full((16, 24, 3), (200, 100, 30), np.uint8)
    for extension, form in ((".jpg", "jpeg"), (".png", "png")):
        swapped = cv2.imencode(extension, smooth)[1].tobytes()  # RGB, taken for BGR
        right = cv2.imencode(extension, smooth[..., ::-1])[1].tobytes()
        for data, description in [
            (swapped, f"rgb8; {form} compressed rgb8"),
            (right, f"rgb8; {form} compressed bgr8"),
            (right, f"bgr8; {form} compressed bgr8"),
            (right, f"rgb8; {form} compressed"),
            (right, form),
        ]:
            read = ImageReader().from_compressed(compressed_message(data, description))
            np.testing.assert_allclose(read, smooth, atol=3)


def test_compressed_pictures_of_16_bits_grey_and_alpha() -> None:
    grey = picture()[..., 0].astype(np.uint16) * 4
    data = cv2.imencode(".png", grey)[1].tobytes()
    read = ImageReader().from_compressed(compressed_message(data, "mono16; png compressed "))
    np.testing.assert_array_equal(read, picture()[..., :1].repeat(3, axis=2))
    data = cv2.imencode(".png", picture()[..., ::-1].astype(np.uint16) * 16)[1].tobytes()
    read = ImageReader().from_compressed(compressed_message(data, "rgb16; png compressed bgr16"))
    np.testing.assert_array_equal(read, picture())
    data = cv2.imencode(".png", cv2.cvtColor(picture(), cv2.COLOR_RGB2BGRA))[1].tobytes()
    np.testing.assert_array_equal(
        ImageReader().from_compressed(compressed_message(data, "rgba8; png")), picture()
    )
    data = cv2.imencode(".jpg", np.full((16, 16), 77, np.uint8))[1].tobytes()
    assert (ImageReader().from_compressed(compressed_message(data, "mono8; jpeg compressed")) == 77).all()


def test_a_depth_image_compressed_as_a_picture_is_depth() -> None:
    millimetres = np.arange(24, dtype=np.uint16).reshape(4, 6) * 100
    message = compressed_message(cv2.imencode(".png", millimetres)[1].tobytes(), "16UC1; png compressed")
    with pytest.raises(errors.ImageError, match="depth format"):
        ImageReader().from_compressed(message)
    np.testing.assert_allclose(depth_from_compressed(message), millimetres / 1000)


def test_pictures_larger_than_the_limits_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = io.BytesIO()
    PillowImage.new("1", (20000, 20000)).save(huge, "PNG")
    with pytest.raises(errors.ImageError, match=r"20000x20000 = 400 megapixels; at most 100"):
        ImageReader().from_compressed(compressed_message(huge.getvalue(), "png"))
    message = Image(
        width=100_000, height=100_000, step=100_000, encoding="mono8", data=array.array("B", b"x")
    )
    with pytest.raises(errors.ImageError, match="10000 megapixels; at most 100"):
        rgb_from_image(message)
    monkeypatch.setattr(media, "MAX_BYTES", 50)
    with pytest.raises(errors.ImageError, match="at most 0 MiB"):
        rgb_from_image(raw_message(picture(), "rgb8"))


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


def compressed_depth(metres: np.ndarray, encoding: str, codec: str) -> CompressedImage:
    """As compressed_depth_image_transport writes it: a header, then 16-bit pixels."""
    if encoding == "16UC1":
        header, pixels = struct.pack("<iff", 0, 0.0, 0.0), (metres * 1000).round()
    else:
        a = 100.0 * 101.0  # its default quantisation
        b = 1.0 - a / 10.0  # and largest depth
        header = struct.pack("<iff", 1, a, b)
        pixels = np.where(metres > 0, a / np.maximum(metres, 1e-3) + b, 0)
    pixels = pixels.astype(np.uint16)
    data = encode_rvl(pixels) if codec == "rvl" else cv2.imencode(".png", pixels)[1].tobytes()
    return compressed_message(header + data, f"{encoding}; compressedDepth {codec}".strip())


@pytest.mark.parametrize("codec", ["", "png", "rvl"])
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_compressed_depth_is_read_in_metres(encoding: str, codec: str) -> None:
    metres = np.linspace(0.5, 3.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    metres[1, 2] = 0
    np.testing.assert_allclose(
        depth_from_compressed(compressed_depth(metres, encoding, codec)), metres, atol=0.002
    )


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [
        (b"x" * 40, "16UC1; compressedDepth png", "cannot decompress .* neither JPEG nor PNG"),
        (b"x", "16UC1; compressedDepth", "has no data"),
        (b"x" * 40, "16UC1; compressedDepth zstd", "compressedDepth png' or .*, or rvl for png"),
        (b"x" * 16, "16UC1; compressedDepth rvl", "the depth image .*16 bytes.* is truncated"),
        (b"x" * 40, "16UC1; compressedDepth rvl", "at most 100 megapixels"),
        (b"x" * 40, "rgb8; jpeg compressed bgr8", "not 'rgb8; jpeg"),
        (b"h" * 12 + cv2.imencode(".png", picture())[1].tobytes(), "16UC1; compressedDepth", "16-bit PNG"),
    ],
)
def test_unusable_compressed_depth_says_why(data: bytes, form: str, words: str) -> None:
    with pytest.raises(errors.ImageError, match=words):
        depth_from_compressed(compressed_message(data, form))


def test_unusable_images_say_why() -> None:
    with pytest.raises(errors.ImageError, match="empty"):
        rgb_from_image(Image(encoding="rgb8"))
    truncated = raw_message(picture(), "rgb8")
    truncated.data = truncated.data[:-1]
    with pytest.raises(errors.ImageError, match="truncated: 71 bytes, expected step 18 x height 4 = 72"):
        rgb_from_image(truncated)
    narrow = raw_message(picture(), "rgb8")
    narrow.step = 6
    with pytest.raises(errors.ImageError, match="step is 6 bytes, a row of 6 rgb8 pixels has 18"):
        rgb_from_image(narrow)
    wide = raw_message(picture(), "rgb8")
    wide.step = 19
    with pytest.raises(errors.ImageError, match="truncated"):
        rgb_from_image(wide)
    long = raw_message(picture(), "rgb8")
    long.data.extend(b"x")
    with pytest.raises(errors.ImageError, match="too long"):
        rgb_from_image(long)
    for encoding in ("banana", "", "32SC4"):
        with pytest.raises(errors.ImageError, match=r"encoding .* is not supported \(supported: rgb8, bgr8"):
            rgb_from_image(raw_message(picture(), encoding))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_images(extension: str) -> None:
    smooth = np.full((16, 24, 3), (200, 100, 30), np.uint8)
    data = cv2.imencode(extension, cv2.cvtColor(smooth, cv2.COLOR_RGB2BGR))[1].tobytes()
    read = ImageReader().from_compressed(compressed_message(data, f"rgb8; {extension[1:]} compressed bgr8"))
    np.testing.assert_allclose(read, smooth, atol=3)


def test_unusable_compressed_images_say_why() -> None:
    with pytest.raises(errors.ImageError, match="no data"):
        ImageReader().from_compressed(compressed_message(b""))
    with pytest.raises(errors.ImageError, match="cannot decompress"):
        ImageReader().from_compressed(compressed_message(b"this is no picture"))
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(errors.ImageError, match="truncated"):
        ImageReader().from_compressed(compressed_message(data[: len(data) // 2]))
    data = cv2.imencode(".jpg", picture())[1].tobytes()
    assert (
        ImageReader().from_compressed(compressed_message(data[:-2])).shape == picture().shape
    )  # no end marker
    with pytest.raises(errors.ImageError, match="depth"):
        ImageReader().from_compressed(compressed_message(b"1234", "16UC1; compressedDepth"))


def test_written_images_read_back() -> None:
    np.testing.assert_array_equal(rgb_from_image(image_message(picture(), "rgb8", Header())), picture())
    mirrored = image_message(picture()[:, ::-1], "rgb8", Header())
    np.testing.assert_array_equal(rgb_from_image(mirrored), picture()[:, ::-1])
    smooth = np.full((16, 24, 3), (200, 100, 30), np.uint8)
    np.testing.assert_allclose(
        ImageReader().from_compressed(jpeg_message(smooth, 90, Header())), smooth, atol=4
    )


def test_masks() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1, 2] = 1
    np.testing.assert_array_equal(mask_from_image(raw_message(mask, "mono8", 3)), mask != 0)
    with pytest.raises(errors.ImageError, match="mono8 or 8UC1"):
        mask_from_image(raw_message(picture(), "rgb8"))
