"""`FastModel` gives the masks and texts of the plain path, through the runtime; it makes room by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tiny_models import box, click, picture, tiny_pam

from pam_ros.errors import CapacityError, InputError
from pam_ros.geometry import mask_iou
from pam_ros.model.config import PerceiverInput
from pam_ros.model.fast_model import FastModel, accelerated, why_plain
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, TextDelta, TextRequest
from pam_ros.model.pam import Pam
from pam_ros.model.text.language_model import TextStream
from pam_ros.records import Frame, Language, Prompt, Task
from pam_ros.runtime.offline import caption_video, perceive_image

pytestmark = pytest.mark.cuda
CUDA = torch.cuda.is_available()
LANGUAGES = [Language.EN, Language.ZH]


def placed(pam: Pam) -> Pam:
    if CUDA:
        pam.place(torch.device("cuda"), torch.float32)
    return pam


@pytest.fixture
def pam() -> Pam:
    model = placed(tiny_pam())
    model.text.max_new_tokens = 24
    return model


@pytest.fixture
def fast() -> Iterator[FastModel]:
    model = placed(tiny_pam())
    model.text.max_new_tokens = 24
    fast = FastModel(model, cache_tokens=1200, graphs=CUDA)
    if CUDA:
        fast.prepare()
    yield fast
    fast.close()


def finished(fast: FastModel, until: Callable[[], bool] | None = None) -> dict[int, TextDelta]:
    """The last report of every text, once all are final."""
    deltas: dict[int, TextDelta] = {}
    end_s = time.monotonic() + 60
    while fast.text.busy if until is None else not until():
        assert time.monotonic() < end_s, "texts do not end"
        for delta in fast.text.step():
            deltas[delta.text_id] = delta
        time.sleep(0.001)
    return deltas


def frames(count: int) -> list[Frame]:
    return [Frame(picture(step), int(step * 1e8), "file") for step in range(count)]


@pytest.mark.parametrize("chunk_tokens", [1088, 23])
def test_an_image_gets_the_masks_and_texts_of_the_plain_path(
    pam: Pam, fast: FastModel, chunk_tokens: int
) -> None:
    fast._engines.text.chunk_tokens = chunk_tokens
    mask = np.zeros(picture().shape[:2], bool)
    mask[20:50, 30:60] = True
    prompts = [click(), box(), Prompt(mask=mask), click(70, 20)]
    tasks = [Task.LABEL, Task.EXPLAIN, Task.BRIEF, Task.DETAIL]
    plain = perceive_image(pam, picture(), prompts, tasks, LANGUAGES)
    found = perceive_image(fast, picture(), prompts, tasks, LANGUAGES)
    for one, other in zip(plain, found, strict=True):
        assert mask_iou(one.mask, other.mask) >= 0.999
        assert other.mask_score == pytest.approx(one.mask_score, abs=1e-4)
        assert other.presence_score == pytest.approx(one.presence_score, abs=1e-4)
        assert {key: text.text for key, text in other.texts.items()} == {
            key: text.text for key, text in one.texts.items()
        }
        for key, text in one.texts.items():  # raw: the model has no calibration
            assert text.confidence is not None and 0 < text.confidence < 1
            assert other.texts[key].confidence == pytest.approx(text.confidence, rel=1e-3)
        assert len(one.texts) == 8
        assert any(len(text.text) > 20 for text in one.texts.values())


def test_an_image_may_have_more_regions_than_the_memory_bank_has_slots(pam: Pam) -> None:
    pam.text.max_new_tokens = 2
    fast = FastModel(pam, regions=1, cache_tokens=1200, graphs=False)
    prompts = [click(30 + 2 * i, 30) for i in range(12)]
    found = perceive_image(fast, picture(), prompts, [Task.LABEL], [Language.EN])
    assert [region.region_id for region in found] == list(range(1, 13))
    with pytest.raises(InputError, match=r"2 regions are given to track; .* at most 1 at a time"):
        caption_video(fast, frames(2), prompts[:2], every_s=1.0, language=Language.EN)
    fast.close()


@pytest.mark.parametrize("carry_over", [True, False])
def test_a_video_gets_the_captions_of_the_plain_path(pam: Pam, fast: FastModel, carry_over: bool) -> None:
    def captions(model: Pam | FastModel) -> list[tuple[object, ...]]:
        steps = caption_video(
            model, frames(25), [click(), box()], every_s=0.8, language=Language.EN,
            carry_over=carry_over, clip_frames=5,
        )  # fmt: skip
        return [
            (each.region_id, each.sequence, each.frame_count, each.text)
            for step in steps
            for each in step.captions
            if each.final
        ]

    plain = captions(pam)
    assert len(plain) >= 6
    assert sorted(captions(fast)) == sorted(plain)


def test_points_get_the_candidates_of_the_plain_path(pam: Pam, fast: FastModel) -> None:
    points = np.array([[30, 30], [70, 20], [5, 60]], np.float32)
    plain = pam.candidates(pam.encode(picture()), points)
    found = fast.vision.candidates(fast.vision.encode(picture()), points)
    for name in ("boxes_xyxy", "ious", "stabilities", "areas"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-3, atol=1e-3)


def test_clips_that_wait_make_room_for_texts(fast: FastModel) -> None:
    observations = fast.vision.segment(fast.vision.encode(picture()), [click()], [fast.vision.new_memory()])
    (first,) = fast.vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
    (later,) = fast.vision.embeddings(observations, stride=LATER_FRAME_STRIDE)
    clips = []
    for _ in range(20):  # together they would take several times the cache
        clips.append(fast.text.open_prompt(clip=True, frames=16))
        for each in (first, *[later] * 15):
            fast.text.extend_prompt(clips[-1], each)
    request = TextRequest(Task.CLIP, Language.EN, max_new_tokens=8)
    text_ids = fast.text.generate([(clip, request) for clip in clips])
    image = fast.text.open_prompt(clip=False)
    fast.text.extend_prompt(image, first)
    text_ids += fast.text.generate([(image, TextRequest(Task.LABEL, Language.ZH, max_new_tokens=8))])
    for prompt in (*clips, image):
        fast.text.release_prompt(prompt)
    deltas = finished(fast)
    assert sorted(deltas) == text_ids
    assert all(delta.final and delta.error is None for delta in deltas.values())
    texts = {deltas[text_id].text for text_id in text_ids[:20]}
    assert len(texts) == 1, "equal clips get equal captions, whether they were evicted or not"
    assert fast._engines.text.cache.free_tokens == fast._engines.text.cache.tokens


def test_a_prompt_larger_than_the_cache_is_refused(fast: FastModel) -> None:
    observations = fast.vision.segment(fast.vision.encode(picture()), [click()], [fast.vision.new_memory()])
    (first,) = fast.vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
    prompt = fast.text.open_prompt(clip=True, frames=64)
    for _ in range(64):
        fast.text.extend_prompt(prompt, first)
    with pytest.raises(CapacityError, match="use fewer frames or a shorter previous caption"):
        fast.text.generate([(prompt, TextRequest(Task.CLIP, Language.EN))])
    assert not fast.text.busy


def test_a_failed_step_ends_its_texts_and_nothing_else(fast: FastModel) -> None:
    observations = fast.vision.segment(fast.vision.encode(picture()), [click()], [fast.vision.new_memory()])
    (first,) = fast.vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)

    def start() -> list[int]:
        prompt = fast.text.open_prompt(clip=False)
        fast.text.extend_prompt(prompt, first)
        text_ids = fast.text.generate([(prompt, TextRequest(Task.LABEL, Language.EN, max_new_tokens=6))])
        fast.text.release_prompt(prompt)
        return text_ids

    runner = fast._engines.text._runner
    decode = runner.decode

    def broken(batch: int, steps: int) -> None:
        runner.decode = decode  # type: ignore[method-assign]
        raise RuntimeError("a planted fault")

    runner.decode = broken  # type: ignore[method-assign]
    (failed,) = start()
    assert "planted" in str(finished(fast)[failed].error)
    (text,) = start()
    assert finished(fast)[text].final


def test_a_text_that_fails_to_start_ends_and_nothing_else(
    fast: FastModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = fast.vision.segment(fast.vision.encode(picture()), [click()], [fast.vision.new_memory()])
    (first,) = fast.vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
    prompt = fast.text.open_prompt(clip=False)
    fast.text.extend_prompt(prompt, first)
    request = TextRequest(Task.LABEL, Language.EN, max_new_tokens=6)

    def broken(frames: object) -> None:
        raise torch.OutOfMemoryError("a planted fault")

    with monkeypatch.context() as patch:
        patch.setattr(fast.text.confidence, "looks", broken)
        (failed,) = fast.text.generate([(prompt, request)])
        assert "planted" in str(finished(fast)[failed].error)
    (text,) = fast.text.generate([(prompt, request)])
    fast.text.release_prompt(prompt)
    assert finished(fast)[text].final
    finished(fast, lambda: fast._engines.text.cache.free_tokens == fast._engines.text.cache.tokens)


def test_cancelled_texts_are_not_reported_and_give_back_their_room(fast: FastModel) -> None:
    observations = fast.vision.segment(fast.vision.encode(picture()), [click()], [fast.vision.new_memory()])
    (first,) = fast.vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
    prompt = fast.text.open_prompt(clip=False)
    fast.text.extend_prompt(prompt, first)
    gone, kept = fast.text.generate([(prompt, TextRequest(Task.BRIEF, Language.EN, max_new_tokens=24))] * 2)
    fast.text.release_prompt(prompt)
    fast.text.cancel(gone)
    assert set(finished(fast)) == {kept}
    finished(fast, lambda: fast._engines.text.cache.free_tokens == fast._engines.text.cache.tokens)


def test_memories_are_given_back_when_nobody_holds_them(fast: FastModel) -> None:
    bank = fast._engines.vision.bank
    before = len(bank._free)
    memories = [fast.vision.new_memory() for _ in range(before)]
    with pytest.raises(CapacityError, match="remove a region"):
        fast.vision.new_memory()
    memories.clear()
    assert len(bank._free) == before


def test_growing_text_equals_the_decoded_tokens() -> None:
    language = tiny_pam().language
    said = "A kettle: 水壶 😀 for boiling."
    tokens = language.encode_text(said)
    stream = TextStream(language)
    grown = [stream.add([token]) for token in tokens]
    assert grown[-1] == language.decode_text(tokens) == said
    assert all(later.startswith(earlier) for earlier, later in zip(grown, grown[1:], strict=False))
    assert "\ufffd" not in "".join(grown)


def test_why_the_plain_path_runs_is_reported() -> None:
    pam, lines = tiny_pam(), []
    pam.segmenter.half()  # OpenVINO takes float32
    assert accelerated(pam, report=lines.append) is pam
    assert lines == ["running without the CUDA engines (no CUDA device)"]


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_model_that_reads_other_features_keeps_the_plain_path() -> None:
    pam = placed(tiny_pam())
    assert why_plain(pam) is None
    pam.segmenter.perceiver_input = PerceiverInput.BEFORE
    assert "other decoder features" in str(why_plain(pam))
