"""`pam view` without a browser: the board, and a video that plays through the engine."""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import FakeModel

from pam_ros import media, videos
from pam_ros.cli.view import view
from pam_ros.errors import ImageError, PromptError, StateError
from pam_ros.geometry import crop_mask
from pam_ros.records import Frame, Language, Prompt, Region, RegionState, Task, Text
from pam_ros.runtime.events import TextEvent
from pam_ros.runtime.requests import PromptRequest
from pam_ros.viewer import board as board_module
from pam_ros.viewer.board import MOST_CAPTIONS, Board
from pam_ros.viewer.video_source import VideoSource

CLIP = Path(__file__).resolve().parents[1] / "config" / "demo" / "clip.mp4"
LABEL = (Task.LABEL, Language.EN)


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.005)


def region(region_id: int = 1, box: tuple[int, int, int, int] = (10, 10, 30, 20)) -> Region:
    mask = np.zeros((48, 64), np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    box_xyxy, cropped = crop_mask(mask)
    return Region(region_id, RegionState.TRACKED, box_xyxy, cropped, 1.0, 1.0, {}, 0, 0)


def text_event(text: str, language: Language = Language.EN, **fields: object) -> TextEvent:
    """A label of region 1, which grows unless `final`."""
    known = {"final": False, "stamp_ns": 1, "latency_s": 0.0} | fields
    return TextEvent("front", 1, Task.LABEL, language, text, **known)


def image_of(board: Board) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(board.jpeg(), np.uint8), cv2.IMREAD_COLOR)


# --- the board


def test_a_picture_is_drawn_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = board_module.draw_overlay
    monkeypatch.setattr(board_module, "draw_overlay", lambda *a, **k: drawn.append(1) or real(*a, **k))
    board = Board()
    assert (board.serial, board.jpeg()) == (0, b"")
    for stamp_ns in (1, 2, 3):
        board.show_frame(np.full((48, 64, 3), 100, np.uint8), [region()], stamp_ns)
    assert not drawn
    assert board.jpeg() == board.jpeg()
    assert (len(drawn), board.serial, board.stamp_ns) == (1, 3, 3)
    assert image_of(board).shape == (48, 64, 3)


def test_growing_texts_become_texts_of_their_region() -> None:
    board = Board()
    board.show_frame(np.full((48, 64, 3), 100, np.uint8), [region()], 1)
    board.show_text(text_event("ket"))
    (shown,) = board.regions()
    assert (shown.growing, shown.region.texts, shown.captions) == ({LABEL: "ket"}, {}, ())
    serial = board.serial
    board.show_text(text_event("kettle", final=True, confidence=0.9))
    (shown,) = board.regions()
    assert (shown.growing, shown.region.texts) == ({}, {LABEL: Text("kettle", 1, 0.9)})
    assert board.serial > serial, "the label is drawn"


def test_the_first_language_names_a_region_whichever_text_ends_first() -> None:
    asked = (LABEL, (Task.LABEL, Language.ZH))
    board = Board()
    board.show_frame(np.full((48, 64, 3), 100, np.uint8), [region()], 1)
    board.show_text(text_event("ket", asked=asked))
    board.show_text(text_event("水壶", Language.ZH, final=True, asked=asked))
    (shown,) = board.regions()
    assert shown.region.name == ""
    assert [line[:2] for line in shown.texts()] == [("Label (en)", "ket"), ("Label (zh)", "水壶")]
    board.show_text(text_event("kettle", final=True, asked=asked))
    (shown,) = board.regions()
    assert (shown.region.name, list(shown.region.texts)) == ("kettle", list(asked))


def test_texts_of_regions_that_are_gone_are_forgotten() -> None:
    board, image = Board(), np.full((48, 64, 3), 100, np.uint8)
    board.show_frame(image, [region()], 1)
    board.show_text(text_event("ket"))
    board.show_caption(1, "It boils", (0, 2), final=False)
    board.show_frame(image, [region(2)], 2)
    board.show_frame(image, [replace(region(1)), region(2)], 3)
    assert [(it.growing, it.captions) for it in board.regions()] == [({}, ()), ({}, ())]


def test_captions_are_listed_with_the_times_of_their_clips() -> None:
    board = Board()
    board.show_regions([region(1)])
    begin_ns = 1_700_000_000_000_000_000
    board.show_caption(1, "It is", (begin_ns, begin_ns + 3 * 10**9), final=False)
    board.show_caption(1, "It is lifted.", (begin_ns, begin_ns + 3 * 10**9), final=True)
    board.show_caption(1, "It falls", (begin_ns + 3 * 10**9, begin_ns + 6 * 10**9), final=False)
    assert board.regions()[0].texts() == [
        ("Caption, 0.0-3.0 s", "It is lifted.", False),
        ("Caption, 3.0-6.0 s", "It falls", True),
    ]
    for second in range(6, 99):
        board.show_caption(1, "On.", (begin_ns + second * 10**9, begin_ns + (second + 1) * 10**9), final=True)
    assert len(board.regions()[0].captions) == MOST_CAPTIONS


def test_a_picture_that_is_drawn_already_is_passed_on() -> None:
    board = Board()
    board.show_picture(b"jpeg", 7)
    board.show_regions([region(2), region(1)])
    assert (board.jpeg(), board.stamp_ns, board.serial) == (b"jpeg", 7, 1)
    assert [it.region.region_id for it in board.regions()] == [1, 2]


# --- a video


def frames(count: int = 4) -> Iterator[Frame]:
    for number in range(count):
        yield Frame(np.full((48, 64, 3), 100 + number, np.uint8), stamp_ns=number * 20_000_000)


@contextmanager
def played(
    source_frames: Callable[[], Iterator[Frame]] = frames, *, live: bool = False
) -> Iterator[tuple[VideoSource, Board, FakeModel]]:
    board, model = Board(), FakeModel()
    source = VideoSource(model, source_frames, board, title="test", live=live)
    try:
        yield source, board, model
    finally:
        source.close()
        source.close()
    assert model.closed


def shade(board: Board) -> int:
    return round(float(image_of(board)[0, 0].mean()))


def ask(
    source: VideoSource, board: Board, prompt: Prompt, region_id: int = 0, **more: tuple[Task, ...]
) -> Region:
    request = PromptRequest(prompt, region_id=region_id, stamp_ns=board.stamp_ns, **more)
    return source.perceive(request).result(10.0)


def test_a_video_waits_on_its_first_frame_and_starts_again_at_its_end() -> None:
    with played() as (source, board, _):
        wait_until(lambda: board.serial)
        time.sleep(0.2)
        assert (board.serial, shade(board), source.playing) == (1, 100, False)
        for _ in range(2):
            source.play_or_pause()
            assert source.playing
            wait_until(lambda: not source.playing)
            wait_until(lambda: shade(board) == 103)


def test_prompts_on_a_waiting_video_are_answered_and_refined() -> None:
    with played() as (source, board, _):
        wait_until(lambda: board.serial)
        made = ask(source, board, Prompt.from_clicks(box_xyxy=(10, 10, 30, 20)))
        assert made.texts[LABEL].text
        wait_until(lambda: board.regions() and LABEL in board.regions()[0].region.texts)
        refined = ask(source, board, Prompt.from_clicks([(25, 15)], [0]), made.region_id)
        assert refined.region_id == made.region_id
        with pytest.raises(PromptError, match="negative clicks only"):
            ask(source, board, Prompt.from_clicks([(25, 15)], [0]))
        with pytest.raises(PromptError, match="outside"):
            ask(source, board, Prompt.from_clicks([(500, 5)]))
        source.remove(made.region_id)
        wait_until(lambda: not board.regions())


def test_rolling_captions_stream_once_they_are_switched_on() -> None:
    with played(lambda: frames(400)) as (source, board, _):
        source._engine.options = replace(source._engine.options, caption_period_s=0.2)
        wait_until(lambda: board.serial)
        ask(source, board, Prompt.from_clicks(box_xyxy=(10, 10, 30, 20)))
        source.stream_captions(True, Language.ZH).result(1.0)
        source.play_or_pause()
        wait_until(lambda: board.regions()[0].captions)
        assert "zh" in board.regions()[0].captions[0].text


@pytest.mark.parametrize("how", ["removed", "failed"])
def test_a_caption_that_never_ends_does_not_stop_the_video(how: str) -> None:
    def fault(name: str, details: Sequence[object]) -> None:
        if failing and name == "step":
            raise RuntimeError("no words")

    failing = False
    with played(lambda: frames(400)) as (source, board, model):
        model.words, model.fault = 10**6, fault
        source._engine.options = replace(source._engine.options, caption_period_s=0.2)
        wait_until(lambda: board.serial)
        made = ask(source, board, Prompt.from_clicks(box_xyxy=(10, 10, 30, 20)), tasks=())
        source.stream_captions(True, Language.EN).result(1.0)
        source.play_or_pause()
        wait_until(lambda: source._pace._captions)
        if how == "removed":
            source.remove(made.region_id)
        else:
            source.stream_captions(False, Language.EN).result(1.0)
            failing = True
        wait_until(lambda: not source._pace._captions)


def test_live_pictures_need_no_start_and_their_end_is_reported() -> None:
    def webcam() -> Iterator[Frame]:
        yield from frames(3)
        raise ImageError("webcam 0 sends no more frames")

    with played(webcam, live=True) as (source, board, _):
        assert source.playing is None
        wait_until(lambda: source.notice)
        assert source.notice == "webcam 0 sends no more frames"
        wait_until(lambda: board.serial and shade(board) == 102)


def test_a_webcam_is_read_with_the_time_of_its_pictures() -> None:
    clip = media.read_webcam(str(CLIP))  # OpenCV reads a file as it reads a device
    taken = list(itertools.islice(clip, 3))
    clip.close()
    assert all(one.stamp_ns < other.stamp_ns for one, other in itertools.pairwise(taken))
    np.testing.assert_allclose(taken[0].image, next(videos.read_video(CLIP)).image, atol=12)
    with pytest.raises(ImageError, match="cannot open webcam 97"):
        next(media.read_webcam("97"))


# --- the command


def test_mistakes_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("nicegui", reason="needs NiceGUI")
    with pytest.raises(ImageError, match="no video file"):
        view(str(tmp_path / "missing.mp4"), port=0)
    with pytest.raises(ImageError, match="cannot open webcam /dev/none"):
        view("/dev/none", port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StateError, match=f"cannot use port {port}.*choose another one with --port"):
            view(str(CLIP), port=port)


def test_without_nicegui_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pam_ros.viewer.page", None)  # importing it fails
    monkeypatch.delattr("pam_ros.viewer.page", raising=False)
    with pytest.raises(StateError, match=r"pip install -r .setup/view.txt"):
        view(str(CLIP))
