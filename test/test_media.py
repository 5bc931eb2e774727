"""Files as viewers show them: orientation, range, masks, limits, damage, time stamps."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from pam_ros import media, videos
from pam_ros.errors import ImageError, OutputError

HEIGHT, WIDTH = 48, 64


def picture(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, smooth, whose four corners differ: red right, green below, blue left."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([200 * x, 200 * y, 200 * (1 - x)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def refused(read: Callable[[Path], object], path: Path) -> str:
    """The sentence that refuses a file."""
    with pytest.raises(ImageError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said and "Errno" not in said and ".cpp" not in said and ".py" not in said
    return said


# ---- pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(picture())
    # How a camera stores what viewers turn back.
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.jpg"
    stored.save(path, quality=95, exif=exif)
    np.testing.assert_allclose(media.read_image(path), picture(), atol=12)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_grey_is_scaled_by_its_range(tmp_path: Path, bits: int) -> None:
    grey = picture()[..., 0] + np.uint8(55)
    path = tmp_path / "grey.png"
    Image.fromarray(grey.astype(np.uint16) << (bits - 8)).save(path)
    np.testing.assert_array_equal(media.read_image(path), grey[..., None].repeat(3, axis=2))


def test_floats_and_negative_values_are_scaled_from_least_to_most() -> None:
    np.testing.assert_array_equal(media.eight_bits(np.array([-1.0, np.nan, 1.0])), [0, 128, 255])
    np.testing.assert_array_equal(media.eight_bits(np.array([-5, 46, 250])), [0, 51, 255])
    np.testing.assert_array_equal(media.eight_bits(np.zeros((2, 2), np.float32)), np.zeros((2, 2)))


def test_transparent_pixels_lie_on_white_and_palettes_have_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "alpha.png"
    layer = np.dstack([picture(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    layer[:10, :, 3] = 0
    Image.fromarray(layer).save(path)
    read = media.read_image(path)
    assert (read[:10] == 255).all()
    np.testing.assert_array_equal(read[10:], picture()[10:])
    few = Image.fromarray(picture()).quantize(32)
    few.save(path, transparency=few.getpixel((0, 0)))
    read = media.read_image(path)
    assert (read[0, 0] == 255).all()
    np.testing.assert_allclose(read[20:], picture()[20:], atol=40)


def test_a_jpeg_that_lacks_only_its_end_marker_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    whole = encoded(Image.fromarray(picture()), "JPEG", quality=95)
    path.write_bytes(whole[:-2])
    np.testing.assert_allclose(media.read_image(path), picture(), atol=12)
    path.write_bytes(whole[:-60])
    assert "truncated" in refused(media.read_image, path)


def test_a_picture_that_is_too_large_says_how_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    said = refused(media.read_image, path)
    assert "20000x20000 = 400 megapixels" in said and "at most 100 megapixels" in said
    assert Image.MAX_IMAGE_PIXELS is not None  # other users of Pillow keep its limit
    monkeypatch.setattr(media, "MAX_BYTES", 1 << 20)
    path.write_bytes(b"x" * (3 << 20))
    assert "has 3 MiB; at most 1 MiB" in refused(media.read_image, path)


def test_a_picture_without_a_finite_value_says_so(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    assert "none of its values is finite" in refused(media.read_image, tmp_path / "nan.tif")


def test_files_that_are_no_pictures_get_one_sentence(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    good = encoded(Image.fromarray(picture()))
    for name, data, words in [
        ("text.png", encoded(Image.fromarray(picture()), pnginfo=text), "without its metadata"),
        ("empty.png", b"", "is empty"),
        ("half.png", good[: len(good) // 2], "cannot read image"),
        ("noise.png", good[:60] + b"\0" * 40 + good[100:], "cannot read image"),
        ("words.png", b"no picture at all", "not an image in a known format"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert words in refused(media.read_image, tmp_path / name)


@pytest.mark.parametrize(
    "read", [media.read_image, videos.video_stamps_ns, lambda p: next(videos.read_video(p))]
)
def test_what_is_no_file_names_another_way(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a folder" in refused(read, tmp_path)
    assert "is a pipe" in refused(read, tmp_path / "pipe")
    assert "rtsp://camera/1 is a URL" in refused(read, Path("rtsp://camera/1"))
    for device in ("/dev/video97", "97", "/dev/null"):
        assert f"`pam view {device}`" in refused(read, Path(device))
    assert "file name too long" in refused(read, tmp_path / ("x" * 300)).lower()


# ---- masks


def disc() -> NDArray[np.bool_]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.asarray((x - 30) ** 2 + (y - 22) ** 2 < 15**2)


def drawn_masks() -> dict[str, Image.Image]:
    inside = disc()
    black = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    black[..., 3] = 255 * inside
    opaque = np.dstack([np.uint8(255) * inside] * 3 + [np.full_like(inside, 255, np.uint8)])
    palette = Image.fromarray(inside.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 90])
    return {
        "255": Image.fromarray(np.uint8(255) * inside),
        "ids": Image.fromarray(np.uint8(1) * inside + np.uint8(2) * (inside & (np.arange(WIDTH) > 30))),
        "bits": Image.fromarray(inside),
        "16 bits": Image.fromarray(inside.astype(np.uint16)),
        "alpha": Image.fromarray(black),
        "opaque": Image.fromarray(opaque),
        "palette": palette,
    }


@pytest.mark.parametrize("kind", list(drawn_masks()))
def test_masks_are_read_as_they_were_drawn(tmp_path: Path, kind: str) -> None:
    drawn_masks()[kind].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(media.read_mask(tmp_path / "mask.png"), disc())


def test_a_mask_saved_as_jpeg_keeps_its_edge(tmp_path: Path) -> None:
    drawn_masks()["255"].save(tmp_path / "mask.jpg", quality=60)
    assert (media.read_mask(tmp_path / "mask.jpg") != disc()).sum() < 0.05 * disc().sum()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_masks_of_other_colour_spaces_are_white_on_the_object(tmp_path: Path, mode: str) -> None:
    mask = drawn_masks()["255"].convert("RGB")
    if mode == "LAB":
        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        mask = ImageCms.profileToProfile(mask, *profiles, outputMode="LAB")
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(media.read_mask(tmp_path / "mask.tif"), disc())


def test_a_mask_with_nan_is_refused(tmp_path: Path) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = np.nan
    Image.fromarray(values).save(tmp_path / "mask.tif")
    with pytest.raises(ImageError, match="it has values that are NaN or infinite"):
        media.read_mask(tmp_path / "mask.tif")


def test_a_photo_is_no_mask(tmp_path: Path) -> None:
    media.write_image(tmp_path / "photo.png", picture())
    assert "looks like a photo" in refused(media.read_mask, tmp_path / "photo.png")


# ---- videos


def write_clip(
    path: Path, count: int = 6, rotation: int = 0, form: str | None = None, **tracks: object
) -> None:
    """A clip at 10 Hz whose pictures get darker; `tracks` are attributes of its stream."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "g": "3", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for name, value in tracks.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture() - picture() // 20 * np.uint8(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(("rotation", "quarters"), [(0, 0), (-90, -1), (90, 1), (180, 2)])
def test_the_display_matrix_is_applied(tmp_path: Path, rotation: int, quarters: int) -> None:
    write_clip(tmp_path / "phone.mp4", rotation=rotation)
    first = next(videos.read_video(tmp_path / "phone.mp4"))
    np.testing.assert_allclose(first.image, np.rot90(picture(), quarters), atol=20)


def test_pixels_that_are_not_square_are_shown_square(tmp_path: Path) -> None:
    write_clip(tmp_path / "wide.mp4", sample_aspect_ratio=Fraction(2, 1))
    assert next(videos.read_video(tmp_path / "wide.mp4")).size == (HEIGHT, 2 * WIDTH)


def test_frames_that_an_edit_list_hides_are_left_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                assert packet.pts is not None and packet.time_base is not None
                tenths = round(packet.pts * packet.time_base * 10) - 2  # the cut lies behind two frames
                packet.time_base, packet.pts, packet.dts, packet.stream = (
                    Fraction(1, 10),
                    tenths,
                    tenths,
                    stream,
                )
                packet.duration = 1
                cut.mux(packet)
    frames = list(videos.read_video(tmp_path / "cut.mp4"))
    assert [frame.stamp_ns for frame in frames] == videos.video_stamps_ns(tmp_path / "cut.mp4")
    assert [round(frame.stamp_ns / 1e8) for frame in frames] == [0, 1, 2, 3]


def test_a_stream_without_time_stamps_has_its_nominal_rate(tmp_path: Path) -> None:
    write_clip(tmp_path / "raw.h264", form="h264")
    notes: list[str] = []
    frames = list(videos.read_video(tmp_path / "raw.h264", notes.append))
    assert [frame.stamp_ns for frame in frames] == [i * 100_000_000 for i in range(6)]
    assert videos.video_stamps_ns(tmp_path / "raw.h264") == [frame.stamp_ns for frame in frames]
    assert len(notes) == 1 and "no time stamps; it is read at 10 frames/s" in notes[0]


def test_another_size_is_scaled_to_the_first_and_time_that_starts_over_goes_on(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.ts", count=3)
    write_clip(tmp_path / "b.ts", count=3, width=2 * WIDTH, height=2 * HEIGHT)
    (tmp_path / "grow.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    notes: list[str] = []
    frames = list(videos.read_video(tmp_path / "grow.ts", notes.append))
    assert [frame.stamp_ns for frame in frames] == [i * 100_000_000 for i in range(6)]
    assert videos.video_stamps_ns(tmp_path / "grow.ts") == [frame.stamp_ns for frame in frames]
    np.testing.assert_allclose(frames[3].image, picture(), atol=20)
    assert any("changes its size from 64x48 to 128x96" in line for line in notes)


def test_a_written_video_shows_whole_pictures_of_any_size(tmp_path: Path) -> None:
    with media.VideoWriter(tmp_path / "film.mp4") as film:
        film.write(picture(), 0)
        film.write(picture(2 * HEIGHT, 2 * WIDTH), 100_000_000)
    last = list(videos.read_video(tmp_path / "film.mp4"))[-1]
    np.testing.assert_allclose(last.image, picture(), atol=20)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (2, 2)),
        ((1, 100), (2, 100)),
        ((101, 1), (100, 2)),
        ((16, 20000), (12, 16384)),
        ((1, 70000), (2, 16384)),
    ],
)
def test_a_written_video_has_a_size_that_the_encoder_takes(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    with media.VideoWriter(tmp_path / "film.mp4") as film:
        for number in range(2):
            film.write(np.full((*size, 3), 90, np.uint8), number * 100_000_000)
    frames = [frame.image for frame in videos.read_video(tmp_path / "film.mp4")]
    assert [frame.shape for frame in frames] == [(*shown, 3)] * 2
    assert frames[0].min() >= 85 and frames[0].max() <= 95


def test_what_the_encoder_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_FILM_PX", 10**6)
    film = media.VideoWriter(tmp_path / "film.mp4")
    with pytest.raises(OutputError, match=r"cannot write .*film\.mp4: "):
        film.write(np.zeros((2, 17000, 3), np.uint8), 0)


def test_a_video_is_as_large_as_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of pixels counts square ones."""
    write_clip(tmp_path / "wide.mp4", sample_aspect_ratio=Fraction(10, 1))
    monkeypatch.setattr(media, "MAX_PIXELS", 9 * WIDTH * HEIGHT)
    said = refused(lambda path: next(videos.read_video(path)), tmp_path / "wide.mp4")
    assert f"is {10 * WIDTH}x{HEIGHT}" in said


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", count=9)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    start, size = places[3]  # a key frame
    assert start is not None
    data[start : start + size] = b"\xff" * size
    (tmp_path / "bad.mp4").write_bytes(data)
    notes: list[str] = []
    frames = list(videos.read_video(tmp_path / "bad.mp4", notes.append))
    stamps = [round(frame.stamp_ns / 1e8) for frame in frames]
    assert stamps[:3] == [0, 1, 2] and stamps[-3:] == [6, 7, 8] and 3 not in stamps
    assert any(line.startswith("skipped ") and "damaged" in line for line in notes)
    for start, size in places:
        assert start is not None
        data[start : start + size] = b"\xff" * size
    (tmp_path / "bad.mp4").write_bytes(data)
    assert "no frame can be decoded" in refused(
        lambda path: list(videos.read_video(path)), tmp_path / "bad.mp4"
    )


def test_a_video_that_ends_early_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        noise = np.random.default_rng(0)
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(
                noise.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: len(data) * 2 // 3])
    notes: list[str] = []
    frames = list(videos.read_video(tmp_path / "clip.mp4", notes.append))
    assert 3 <= len(frames) <= 6
    assert any("ends early" in line and "of 8 frames" in line for line in notes)


def test_a_matroska_file_without_its_end_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "bgr0")))
        container.mux(stream.encode())
    notes: list[str] = []
    assert (len(list(videos.read_video(path, notes.append))), notes) == (8, [])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert 1 <= len(list(videos.read_video(path, notes.append))) < 6
    assert any("ends early" in line and "of 4.0 s" in line for line in notes)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_data_that_pyav_does_not_know_leaves_a_video_readable(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = (200, 30, 30)
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # quarters that the stored picture is turned by
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns))).save(path, exif=exif)
    (frame,) = videos.read_video(path)
    assert frame.size == (64, 96)
    assert np.abs(frame.image.astype(int) - upright).mean() < 4


def test_a_file_without_video_says_what_it_holds(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for read in (videos.video_stamps_ns, lambda path: list(videos.read_video(path))):
        assert "has no video stream, only audio" in refused(read, tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "is empty" in refused(videos.video_stamps_ns, tmp_path / "empty.mp4")


# ---- anything


def damaged(data: bytes, random: Random) -> bytes:
    """Cut, or with some bytes changed, most of them in the header."""
    if random.random() < 0.25:
        return data[: random.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(random.choice((1, 3, 20, 200))):
        changed[random.randrange(min(len(data), random.choice((64, len(data)))))] = random.randrange(256)
    return bytes(changed)


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """Why a file is refused; "" if it is read."""
    try:
        read(path)
    except ImageError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "TGA"])
def test_a_damaged_picture_is_read_or_refused(tmp_path: Path, form: str) -> None:
    random, good = Random(form), encoded(Image.fromarray(picture()), form)
    said = set()
    for _ in range(60):
        (tmp_path / "damaged").write_bytes(damaged(good, random))
        said |= {refusal(read, tmp_path / "damaged") for read in (media.read_image, media.read_mask)}
    assert len(said) > 1
    assert not [words for words in said if "\n" in words or "Errno" in words or ".py" in words]


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv", "avi"])
def test_a_damaged_video_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    random, path = Random(suffix), tmp_path / f"clip.{suffix}"
    write_clip(path)
    good = path.read_bytes()
    said = set()
    for _ in range(30):
        path.write_bytes(damaged(good, random))
        said |= {refusal(lambda path: list(videos.read_video(path)), path)}
        said |= {refusal(videos.video_stamps_ns, path)}
    assert "" in said and len(said) > 1
    assert not [words for words in said if "\n" in words or "Errno" in words]
