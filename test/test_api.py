"""The Python interface: the examples of docs/python.md print what the page shows; plain values, errors."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel

from pam_ros import api, media, videos
from pam_ros.errors import (
    CheckpointError,
    ImageError,
    InputError,
    NothingFoundError,
    PamError,
    PromptError,
    StateError,
)

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "config" / "demo" / "clip.mp4"
IMAGE = np.full((48, 64, 3), 7, np.uint8)
BOX = (4, 4, 20, 20)
BARRIER = "-- next block --"


def printed(program: str, folder: Path) -> str:
    """What a program prints in a folder that has the demo's clip, and its first picture as frame.png."""
    (folder / "config").symlink_to(ROOT / "config")
    media.write_image(folder / "frame.png", next(videos.read_video(CLIP)).image)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_the_examples_print_what_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") == 5
    program = f"print({BARRIER!r})\n".join(code for code, _ in blocks)
    shown = f"{BARRIER}\n".join(output for _, output in blocks)
    # Kernels differ between processors: numbers may by a little, words may not.
    number = re.compile(r"\d+(?:\.\d+)?")
    out = printed(program, tmp_path)
    assert number.sub("#", out) == number.sub("#", shown)
    expected = [float(each) for each in number.findall(shown)]
    assert [float(each) for each in number.findall(out)] == pytest.approx(expected, rel=0.02, abs=0.03)


def test_importing_it_loads_neither_torch_nor_video_libraries() -> None:
    probe = (
        "import sys, pam_ros.api; print(*sorted({'torch', 'transformers', 'av', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_version_is_that_of_the_manifest() -> None:
    assert f"<version>{api.__version__}</version>" in (ROOT / "package.xml").read_text()


def test_masks_have_the_size_of_the_image_and_texts_plain_keys() -> None:
    grown = []
    results = api.perceive(
        FakeModel(), IMAGE, boxes=[BOX, (30, 10, 50, 40)], tasks=["label", "brief"], languages=["zh"],
        on_text=lambda *event: grown.append(event),
    )  # fmt: skip
    assert [result.region.region_id for result in results] == [1, 2]
    for result in results:
        assert result.found
        assert (result.mask.shape, result.mask.dtype) == ((48, 64), np.bool_)
        ys, xs = np.nonzero(result.mask)
        assert result.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert list(result.texts) == [("label", "zh"), ("brief", "zh")]
        assert result.label == result.texts["label", "zh"].text != ""
        last = {event[1]: event[3] for event in grown if event[0] == result.region.region_id}
        assert last == {task: text.text for (task, _), text in result.texts.items()}


def test_masks_and_files_are_prompts_and_images(tmp_path: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 30:40] = 255
    media.write_image(tmp_path / "image.png", IMAGE)
    media.write_mask(tmp_path / "mask.png", mask > 0)
    model, path = FakeModel(), tmp_path / "image.png"
    (of_array,) = api.perceive(model, IMAGE, masks=[mask], tasks=[])
    (of_file,) = api.perceive(model, str(path), masks=[tmp_path / "mask.png"], tasks=[])
    assert of_array.mask.any()
    assert (of_file.mask == of_array.mask).all()
    assert of_file.texts == {}
    assert (of_file.label, of_file.confidence) == ("", None)


def test_everything_in_given_boxes_is_described_and_judged() -> None:
    model = FakeModel()
    results = api.perceive_all(model, IMAGE, boxes=[BOX, (30, 10, 50, 40)])
    assert len(results) == 2
    assert all(result.mask.any() and result.label and result.score is None for result in results)
    assert api.perceive_all(model, IMAGE, boxes=[]) == []
    scores = [result.score for result in api.find(model, IMAGE, "something", boxes=[BOX], min_score=0.0)]
    assert len(scores) == 1
    assert api.find(model, IMAGE, "something", boxes=[BOX], min_score=1.0) == []


def frames(count: int):
    return ((i / 10, np.full((48, 64, 3), i + 1, np.uint8)) for i in range(count))


def test_frames_are_captioned_while_they_come() -> None:
    source = frames(10_000_000)  # never read to its end
    first, second = islice(api.caption(FakeModel(), source, boxes=[BOX], every_s=2.0), 2)
    assert (first.clip_start_ns, first.clip_end_ns, second.clip_end_ns) == (0, 2 * 10**9, 4 * 10**9)
    assert first.text


def test_decode_timestamps_and_summaries() -> None:
    events = list(api.caption(FakeModel(), frames(40), boxes=[BOX], at_s=[1.0, 2.5], summary=True))
    assert [event.clip_end_ns / 1e9 for event in events if not event.summary] == [1.0, 2.5]
    assert sum(event.summary for event in events) == 1
    assert len(list(api.caption(FakeModel(), frames(40), boxes=[BOX], at_s=[1.0, 2.5]))) == 2


def test_decode_timestamps_of_a_live_source_need_its_frames_up_to_the_last_only() -> None:
    read = []

    def live():
        for frame in frames(2000):
            read.append(frame[0])
            yield frame

    events = api.caption(FakeModel(), live(), boxes=[BOX], at_s=[1.0, 2.5])
    assert read[-1] == 2.6
    assert [event.clip_end_ns / 1e9 for event in islice(events, 2)] == [1.0, 2.5]
    assert read[-1] == 2.6


def test_an_abandoned_video_leaves_nothing_in_the_model() -> None:
    model = FakeModel()
    for _ in api.caption(model, frames(100), boxes=[BOX], every_s=1.0):
        assert model.prompts
        break
    assert (model.prompts, len(model.held)) == ({}, 0)
    model.hidden = {3}
    with pytest.raises(NothingFoundError) as failed:  # whose traceback holds everything
        next(api.caption(model, frames(100), boxes=[BOX, BOX]))
    assert (model.prompts, len(model.held)) == ({}, 0), failed


def test_256_regions_of_an_image_need_no_room_for_256_memories(caplog: pytest.LogCaptureFixture) -> None:
    model, image = FakeModel(max_regions=16), np.full((64, 64, 3), 7, np.uint8)
    boxes = [(4 * (i % 16), 4 * (i // 16), 4 * (i % 16) + 3, 4 * (i // 16) + 3) for i in range(256)]
    assert [result.box for result in api.perceive(model, image, boxes=boxes)] == boxes
    assert len(api.perceive_all(model, image, boxes=boxes, max_regions=256)) == 256
    assert len(api.find(model, image, "it", boxes=boxes, max_regions=256, min_score=0.0)) == 256
    assert not caplog.records
    assert len(api.perceive_all(model, image, boxes=boxes)) == 24
    assert "256 regions were found, at most 24 are listed; those with the lowest" in caplog.text


def test_a_video_may_have_as_many_regions_as_the_model_was_loaded_for() -> None:
    with pytest.raises(
        InputError, match=r"17 regions are given to track; .* at most 16 at a time.*regions=17"
    ):
        api.caption(FakeModel(max_regions=16), frames(9), boxes=[BOX] * 17)
    (event,) = api.caption(FakeModel(max_regions=1), frames(9), boxes=[BOX])
    assert event.region_id == 1
    with pytest.raises(InputError, match="regions is 0; allowed: an integer from 1 to 256"):
        api.load_model("pam-tiny", regions=0)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for path in (ROOT / "models" / "pam-tiny").iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match=r"has no tokenizer \(tokenizer.json\); texts need one"):
        api.load_model(str(tmp_path), device="cpu")


def test_a_prompt_that_finds_nothing_is_said() -> None:
    model, black = FakeModel(), np.zeros((48, 64, 3), np.uint8)  # a black frame shows nothing
    (result,) = api.perceive(model, black, boxes=[BOX])
    assert (result.found, result.mask.any(), result.mask.shape, result.texts) == (False, False, (48, 64), {})
    with pytest.raises(NothingFoundError, match="at prompt 1 of the first frame"):
        next(api.caption(model, [(0.0, black)], boxes=[BOX]))


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.4], [0.0, 0.5, 0.5]])
def test_frames_out_of_order_are_refused(times: list[float]) -> None:
    with pytest.raises(ImageError, match=r"the time of frame 3 is 0\.. s; it must be after .* 0\.5 s"):
        list(api.caption(FakeModel(), [(time_s, IMAGE) for time_s in times], boxes=[BOX]))


def test_results_can_be_copied_and_pickled() -> None:
    (result,) = api.perceive(FakeModel(), IMAGE, boxes=[BOX])
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert (copied.box, copied.label, copied.texts) == (result.box, result.label, result.texts)
        np.testing.assert_array_equal(copied.mask, result.mask)


def test_threads_that_share_a_model_take_turns() -> None:
    model, at_work, most = FakeModel(), [], []
    segment = model.vision.segment

    def watched(*given):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()
        return segment(*given)

    model.vision.segment = watched
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: api.perceive(model, IMAGE, boxes=[(i, i, 20, 20)]), range(12)))
    assert (len(found), max(most)) == (12, 1)


def test_a_function_that_the_model_calls_must_not_use_it() -> None:
    model, errors = FakeModel(), []

    def on_text(*_: object) -> None:
        with pytest.raises(StateError) as failed:
            api.perceive(model, IMAGE, boxes=[BOX])
        errors.append(str(failed.value))

    (result,) = api.perceive(model, IMAGE, boxes=[BOX], on_text=on_text)
    assert result.label
    assert "on_text, must not use it" in errors[0]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: api.perceive(m, IMAGE), PromptError, "no region given"),
        (lambda m: api.perceive(m, IMAGE, clicks=(3, 4)), PromptError, r"list of \(x, y\) in pixels"),
        (lambda m: api.perceive(m, IMAGE, boxes=BOX), PromptError, r"list of \(x1, y1, x2, y2\)"),
        (lambda m: api.perceive(m, IMAGE, boxes=["no"]), PromptError, "boxes must be a list"),
        (lambda m: api.perceive(m, IMAGE, clicks=[(1, 1)], boxes=[BOX] * 2), PromptError, "one box, not 2"),
        (lambda m: api.perceive(m, IMAGE, clicks=[(64, 4)]), PromptError, "outside the 64x48 image"),
        (lambda m: api.perceive(m, IMAGE, not_clicks=[(6, 4)]), PromptError, "needs a positive click"),
        (lambda m: api.perceive(m, IMAGE, boxes=[BOX], tasks="label"), InputError, r"such as \['label'\]"),
        (lambda m: api.perceive(m, IMAGE, boxes=[BOX], tasks=["sing"]), InputError, "unknown task 'sing'"),
        (lambda m: api.perceive(m, IMAGE, boxes=[BOX], languages=["fr"]), InputError, "allowed: en, zh"),
        (lambda m: api.perceive(m, IMAGE / 255, boxes=[BOX]), ImageError, r"uint8 RGB array, not \(48"),
        (lambda m: api.perceive(m, "none.png", boxes=[BOX]), ImageError, "no image file at none.png"),
        (lambda m: api.perceive_all(m, IMAGE, max_regions=999), InputError, "max_regions is 999"),
        (lambda m: api.find(m, IMAGE, " "), PromptError, "the request is empty"),
        (lambda m: api.caption(m, frames(0), boxes=[BOX]), ImageError, "the video has no frames"),
        (lambda m: api.caption(m, "none.mp4", boxes=[BOX]), ImageError, "no video file at none.mp4"),
        (lambda m: api.caption(m, frames(3), clicks=[(64, 4)]), PromptError, "outside the 64x48 image"),
        (lambda m: api.caption(m, frames(3), boxes=[BOX], every_s=-1), InputError, "every_s is -1; allowed"),
        (lambda m: api.caption(m, frames(3), boxes=[BOX], at_s=[9]), InputError, "at most 0.300 s"),
        (lambda m: api.caption(m, frames(3), boxes=[BOX], at_s=[0.2], every_s=1), InputError, "not both"),
        (lambda m: api.perceive(m, IMAGE, masks=IMAGE[..., 0]), PromptError, r"one mask.*a list of masks"),
        (lambda m: api.find(m, IMAGE, "cut \udcff"), PromptError, "not valid Unicode"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, error: type[PamError], words: str) -> None:
    with pytest.raises(error, match=words):
        call(FakeModel())
