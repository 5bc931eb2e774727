"""The language model: prefill, sequences off shared prefixes, batches, windows, streaming, limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from text_runs import TextRun, Wanted
from tiny_models import HIDDEN, box, click, encoded, tiny_pam, tiny_tokenizer
from torch import Tensor

import pam_ros.model.text.batch as batch_module
from pam_ros.errors import CapacityError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, TextDelta, TextRequest
from pam_ros.model.pam import Pam, RegionEmbeddings, attention_window
from pam_ros.model.text.batch import GenerationBatch, TextSequence
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE
from pam_ros.records import IMAGE_TASKS, Language, Task


@pytest.fixture(scope="module")
def pam() -> Pam:
    return tiny_pam()


@pytest.fixture(scope="module")
def windowed() -> Pam:
    """A model that attends to 41 tokens, the current one included."""
    return tiny_pam(sliding_window=40)


def prefixes(count: int, length: int) -> Tensor:
    return torch.randn(count, length, HIDDEN, generator=torch.Generator().manual_seed(3))


def greedy_tokens(pam: Pam, prefix: Tensor, suffix: Sequence[int], count: int) -> list[int]:
    """Greedy tokens without cache or batch: the whole text is computed again for every token."""
    ids = list(suffix)
    out: list[int] = []
    for _ in range(count):
        with torch.inference_mode():
            logits = pam.language.logits(torch.cat([prefix, pam.language.embed(ids)]))
        out.append(int(logits[: pam.language.tokens].argmax()))
        ids.append(out[-1])
    return out


def run(batch: GenerationBatch) -> None:
    for _ in range(10_000):
        if not batch.running or all(sequence.finished for sequence in batch.running):
            return
        batch.step()
    pytest.fail("the batch does not end")


def finish(texts: TextRun) -> dict[int, list[TextDelta]]:
    """Every delta of every text, in order."""
    return texts.finish()


def frame_embeddings(pam: Pam, count: int = 3) -> list[RegionEmbeddings]:
    frames = encoded(pam, 1)
    prompts = [box(), click(60, 20), box(40, 10, 90, 60)][:count]
    return pam.embeddings(
        pam.segment(frames[0], prompts, [pam.new_memory() for _ in prompts]), stride=FIRST_FRAME_STRIDE
    )


# ---- prefill, cache, window


def test_window_by_position(windowed: Pam) -> None:
    assert attention_window({"sliding_window": 40}) == 41
    assert attention_window({"sliding_window": None}) is None
    assert attention_window({}) == 4097
    model = windowed.language
    positions = torch.arange(100)[None]
    seen = model.mask(positions, positions)
    assert seen is not None
    for query in (0, 39, 40, 41, 99):
        assert seen[0, 0, query].nonzero().flatten().tolist() == list(range(max(0, query - 40), query + 1))
    short = torch.arange(41)[None]
    assert model.mask(short, short) is None  # causal is enough


def test_window_reaches_the_logits(pam: Pam, windowed: Pam) -> None:
    """Two layers reach twice 40 tokens back: farther tokens have no effect, nearer ones do."""
    (embeddings,) = prefixes(1, 100)
    changed_far, changed_near = embeddings.clone(), embeddings.clone()
    changed_far[:19] += 1
    changed_near[:20] += 1
    with torch.inference_mode():
        logits = windowed.language.logits(embeddings)
        assert torch.equal(logits, windowed.language.logits(changed_far))
        assert not torch.equal(logits, windowed.language.logits(changed_near))
        assert not torch.equal(pam.language.logits(embeddings), pam.language.logits(changed_far))


@pytest.mark.parametrize("which", ["pam", "windowed"])
@pytest.mark.parametrize("chunk", [7, 64, 100_000])
def test_prefill_in_chunks_equals_one_shot(
    which: str, chunk: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pam: Pam = request.getfixturevalue(which)
    monkeypatch.setitem(batch_module.PREFILL_TOKENS, "cpu", chunk)
    prefix = prefixes(1, 150)
    sequence = TextSequence(text_id=0, prompt=0, suffix=[5, 6, 7], max_new_tokens=12)
    batch = GenerationBatch(pam.language, prefix, [sequence], stop_ids=())
    steps = 0
    while not sequence.finished:
        batch.step()
        steps += 1
    assert steps == -(-150 // chunk) + 12
    assert sequence.tokens == greedy_tokens(pam, prefix[0], [5, 6, 7], 12)


@pytest.mark.parametrize("which", ["pam", "windowed"])
def test_a_batch_of_sequences_equals_one_by_one(which: str, request: pytest.FixtureRequest) -> None:
    """Suffixes and texts of different lengths on three prefixes; two texts stop early."""
    pam: Pam = request.getfixturevalue(which)
    shared = prefixes(3, 90)
    suffixes = [[11, 12, 13], [21], list(range(100, 160)), [31, 32], [41, 42, 43, 44]]
    parents = [0, 0, 1, 2, 1]
    lengths = [10, 25, 17, 20, 1]
    expected = [
        greedy_tokens(pam, shared[parent], suffix, length)
        for parent, suffix, length in zip(parents, suffixes, lengths, strict=True)
    ]
    # A stop token that ends the second and the fourth text early.
    stop = expected[1][9]
    ended = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in expected]
    assert len(ended[1]) < lengths[1]
    sequences = [
        TextSequence(text_id=i, prompt=parents[i], suffix=suffixes[i], max_new_tokens=lengths[i])
        for i in range(5)
    ]
    run(GenerationBatch(pam.language, shared, sequences, stop_ids=[stop]))
    assert [sequence.tokens for sequence in sequences] == ended
    assert all(sequence.finished for sequence in sequences)


def test_cancelling_a_text_leaves_the_others_unchanged(pam: Pam) -> None:
    (embeddings,) = frame_embeddings(pam, 1)
    tasks = [Wanted((embeddings,), task, Language.EN, max_new_tokens=15) for task in IMAGE_TASKS[:3]]
    alone = [TextRun(pam, [each]).finish()[0][-1].text for each in tasks]
    texts = TextRun(pam, tasks)
    deltas = [each for _ in range(8) for each in texts.step()]
    assert {place for place, _ in deltas} == {0, 1, 2}
    texts.cancel(1)
    texts.cancel(1)
    assert 1 not in [place for _ in range(3) for place, _ in texts.step()]
    (batch,) = pam.text._batches
    assert len(batch.running) == 2  # a cancelled text costs nothing more
    rest = texts.finish()
    assert [rest[place][-1].text for place in (0, 2)] == [alone[0], alone[2]]
    assert not pam.text.busy


def test_a_step_that_fails_ends_the_texts_of_its_batch_only(
    pam: Pam, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = frame_embeddings(pam, 2)
    broken = TextRun(pam, [Wanted((first,), task, Language.EN) for task in IMAGE_TASKS[:2]])
    batch = pam.text._batches[0]
    monkeypatch.setattr(batch, "step", lambda: 1 / 0)
    whole = TextRun(pam, [Wanted((second,), Task.LABEL, Language.EN, max_new_tokens=3)])
    deltas = []
    while pam.text.busy:
        deltas += pam.text.step()
    failed = [delta for delta in deltas if delta.error is not None]
    assert [delta.text_id for delta in failed] == broken.ids
    assert all(isinstance(delta.error, ZeroDivisionError) and not delta.final for delta in failed)
    others = [delta for delta in deltas if delta.error is None]
    assert [(delta.text_id, delta.final) for delta in others] == [(whole.ids[0], k == 2) for k in range(3)]


def test_a_prompt_grows_frame_by_frame_until_its_release(pam: Pam) -> None:
    frames = frame_embeddings(pam, 3)
    wanted = Wanted(tuple(frames), Task.CLIP, Language.EN, max_new_tokens=5)
    together = TextRun(pam, [wanted]).finish()[0][-1].text
    prompt_id = pam.text.open_prompt(clip=True)
    other_id = pam.text.open_prompt(clip=False)
    for frame in frames:
        pam.text.extend_prompt(prompt_id, frame)
        assert pam.text.step() == []  # nothing to do before a text starts
    (text_id,) = pam.text.generate([(prompt_id, TextRequest(Task.CLIP, Language.EN, max_new_tokens=5))])
    pam.text.release_prompt(prompt_id)
    pam.text.release_prompt(other_id)
    deltas = []
    while pam.text.busy:
        deltas += pam.text.step()
    assert {delta.text_id for delta in deltas} == {text_id}
    assert deltas[-1].text == together
    assert len(pam.text._prompts) == 0


def test_cancelling_every_text_ends_the_work(pam: Pam) -> None:
    (embeddings,) = frame_embeddings(pam, 1)
    texts = TextRun(pam, [Wanted((embeddings,), task, Language.EN) for task in IMAGE_TASKS])
    texts.step()
    for place in range(len(IMAGE_TASKS)):
        texts.cancel(place)
    assert texts.done
    assert not pam.text.busy
    assert texts.step() == []


# ---- whole requests


def test_tasks_and_languages_from_one_prefill_equal_one_by_one(pam: Pam) -> None:
    embeddings = frame_embeddings(pam, 2)
    requests = [
        Wanted((each,), task, language, max_new_tokens=6 + 3 * i)
        for each in embeddings
        for language in Language
        for i, task in enumerate(IMAGE_TASKS)
    ]
    together = finish(TextRun(pam, requests))
    for i, request in enumerate(requests):
        alone = finish(TextRun(pam, [request]))[0]
        assert together[i][-1].text == alone[-1].text
        assert together[i][-1].final
    assert len({deltas[-1].text for deltas in together.values()}) > 8  # tasks and regions differ


def test_texts_of_one_region_share_one_prefill(pam: Pam, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = frame_embeddings(pam, 2)
    prefilled: list[tuple[int, ...]] = []
    chunk = GenerationBatch._prefill_chunk

    def counting(batch: GenerationBatch) -> None:
        before = batch._prefilled
        chunk(batch)
        prefilled.append((len(batch._prompts), batch._prefilled - before))

    monkeypatch.setattr(GenerationBatch, "_prefill_chunk", counting)
    tasks = [Wanted((first,), task, Language.EN, max_new_tokens=2) for task in IMAGE_TASKS]
    finish(TextRun(pam, tasks))
    length = len(first) + len(pam.language.encode_text(TEXT_BEFORE_IMAGE))
    assert sum(count * tokens for count, tokens in prefilled) == length
    prefilled.clear()
    finish(TextRun(pam, [*tasks, Wanted((second,), Task.LABEL, Language.ZH, max_new_tokens=2)]))
    assert sum(count * tokens for count, tokens in prefilled) == 2 * length


def test_an_image_and_clips_of_different_lengths_run_together(pam: Pam) -> None:
    frames = encoded(pam, 5)
    memory = pam.new_memory()
    observations = pam.segment(frames[0], [box()], [memory])
    observations += [pam.track(frame, [memory])[0] for frame in frames[1:]]
    embeddings = pam.embeddings(observations[:1], stride=FIRST_FRAME_STRIDE) + pam.embeddings(
        observations[1:], stride=LATER_FRAME_STRIDE
    )
    requests = [
        Wanted(tuple(embeddings[:1]), Task.LABEL, Language.EN, max_new_tokens=4),
        Wanted(tuple(embeddings), Task.CLIP, Language.EN, "A cup moves.", max_new_tokens=9),
        Wanted(tuple(embeddings[:1]), Task.CLIP, Language.ZH, max_new_tokens=6),
        Wanted(tuple(embeddings[:3]), Task.CLIP, Language.EN, max_new_tokens=5),
    ]
    texts = TextRun(pam, requests)
    # An image and a clip of the same frame differ by the frame separator.
    assert len(pam.text._batches) == 4
    together = finish(texts)
    for i, request in enumerate(requests):
        assert together[i][-1].text == finish(TextRun(pam, [request]))[0][-1].text


@pytest.mark.parametrize("count", range(1, 16))
def test_clips_of_one_to_fifteen_frames(pam: Pam, count: int) -> None:
    frames = encoded(pam, count)
    memory = pam.new_memory()
    observations = pam.segment(frames[0], [click()], [memory])
    for frame in frames[1:]:
        observations += pam.track(frame, [memory])
    embeddings = pam.embeddings(observations[:1], stride=FIRST_FRAME_STRIDE) + pam.embeddings(
        observations[1:], stride=LATER_FRAME_STRIDE
    )
    stride_2, stride_4 = 16 + 1 + 4 + 1, 4 + 1 + 4 + 1  # visual, newline, semantic, newline
    assert pam.projector.prompt_embeddings([each.tensor for each in embeddings], clip=True).shape == (
        stride_2 + 1 + (count - 1) * (stride_4 + 1),
        HIDDEN,
    )
    deltas = finish(TextRun(pam, [Wanted(tuple(embeddings), Task.CLIP, Language.EN, max_new_tokens=3)]))
    assert deltas[0][-1].final


def test_previous_caption_reaches_the_model(pam: Pam) -> None:
    embeddings = tuple(frame_embeddings(pam, 1))
    texts = {
        finish(TextRun(pam, [Wanted(embeddings, Task.CLIP, Language.EN, caption, max_new_tokens=8)]))[0][
            -1
        ].text
        for caption in (None, "A dog runs.", "A cat sleeps.")
    }
    assert len(texts) == 3


# ---- limits


def test_max_new_tokens_of_request_and_model() -> None:
    pam = tiny_pam()
    embeddings = tuple(frame_embeddings(pam, 1))
    pam.text.max_new_tokens = 5
    for wanted, expected in ((3, 3), (50, 5)):
        texts = TextRun(pam, [Wanted(embeddings, Task.LABEL, Language.EN, max_new_tokens=wanted)])
        deltas = finish(texts)[0]
        assert len(deltas) == expected
        assert [delta.final for delta in deltas] == [False] * (expected - 1) + [True]


def test_long_prompts_are_refused_and_texts_are_cut_to_the_context_length() -> None:
    pam = tiny_pam(tokenizer_model_max_length=300)
    assert pam.language.context_length == 300
    embeddings = tuple(frame_embeddings(pam, 1))
    with pytest.raises(CapacityError, match=r"has \d+ tokens.*context length 300.*fewer frames"):
        TextRun(pam, [Wanted(embeddings * 20, Task.CLIP, Language.EN)])
    with pytest.raises(CapacityError, match="shorter previous caption"):
        TextRun(pam, [Wanted(embeddings, Task.CLIP, Language.EN, "word " * 400)])
    texts = TextRun(pam, [Wanted(embeddings * 9, Task.CLIP, Language.EN)])
    sequence = pam.text._unfinished[texts.ids[0]].sequence
    prompt = (
        9 * (len(embeddings[0]) + 1) + len(pam.language.encode_text(TEXT_BEFORE_IMAGE)) + len(sequence.suffix)
    )
    assert sequence.max_new_tokens == 300 - prompt
    assert finish(texts)[0][-1].final


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(pam: Pam) -> None:
    vocabulary = tiny_tokenizer().get_vocab()
    assert pam.language.stop_ids == {vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]}
    embeddings = tuple(frame_embeddings(pam, 1))
    request = Wanted(embeddings, Task.DETAIL, Language.EN, max_new_tokens=20)
    texts = TextRun(pam, [request])
    sequence = pam.text._unfinished[texts.ids[0]].sequence
    finish(texts)
    stop = sequence.tokens[7]
    texts = TextRun(pam, [request])
    pam.text._batches[0]._stop_ids = frozenset([stop])
    stopped = pam.text._unfinished[texts.ids[0]]
    deltas = finish(texts)[0]
    assert stopped.sequence.tokens == sequence.tokens[: sequence.tokens.index(stop)]
    assert deltas[-1].final
    assert not any(delta.final for delta in deltas[:-1])


def test_unused_rows_of_the_vocabulary_are_never_chosen() -> None:
    pam = tiny_pam()
    known = len(tiny_tokenizer())
    assert pam.language.tokens == known < 4096
    pam.language.transformer.lm_head.weight[known:] *= 100
    embeddings = tuple(frame_embeddings(pam, 1))
    texts = TextRun(
        pam, [Wanted(embeddings, Task.LABEL, Language.EN, max_new_tokens=20, temperature=t) for t in (0, 1)]
    )
    sequences = [pam.text._unfinished[text_id].sequence for text_id in texts.ids]
    finish(texts)
    assert max(token for sequence in sequences for token in sequence.tokens) < known


def test_temperature(pam: Pam) -> None:
    embeddings = tuple(frame_embeddings(pam, 1))

    def text(temperature: float, seed: int) -> str:
        torch.manual_seed(seed)
        request = Wanted(embeddings, Task.BRIEF, Language.EN, max_new_tokens=10, temperature=temperature)
        return finish(TextRun(pam, [request]))[0][-1].text

    assert len({text(0.0, seed) for seed in range(4)}) == 1  # greedy generation draws nothing
    assert len({text(3.0, seed) for seed in range(4)}) == 4
    assert text(3.0, 1) == text(3.0, 1)
    assert text(1e-4, 1) == text(0.0, 1)


def test_a_sampled_text_does_not_disturb_a_greedy_one(pam: Pam) -> None:
    embeddings = tuple(frame_embeddings(pam, 1))
    greedy = Wanted(embeddings, Task.BRIEF, Language.EN, max_new_tokens=10)
    sampled = Wanted(embeddings, Task.BRIEF, Language.EN, max_new_tokens=10, temperature=2.0)
    assert finish(TextRun(pam, [sampled, greedy]))[1][-1].text == finish(TextRun(pam, [greedy]))[0][-1].text


# ---- streaming


def test_partial_texts_are_prefixes_of_the_final_one(pam: Pam) -> None:
    embeddings = frame_embeddings(pam, 2)
    requests = [
        Wanted((each,), Task.DETAIL, language, max_new_tokens=30)
        for each in embeddings
        for language in Language
    ]
    for deltas in finish(TextRun(pam, requests)).values():
        assert len(deltas) == 30
        final = deltas[-1].text
        assert len({delta.text for delta in deltas}) > 10
        for delta in deltas:
            assert final.startswith(delta.text.rstrip("\ufffd"))


@pytest.mark.parametrize(
    "text", ["这是一个红色的饕餮纹杯子，放在桌子上。", "a cup ☕ and a 龘 sign", "emoji 👩‍🚀 end"]
)
def test_unfinished_characters_are_held_back(pam: Pam, text: str) -> None:
    tokens = pam.language.encode_text(text)
    partial = [pam.language.decode_text(tokens[:count]) for count in range(len(tokens) + 1)]
    assert not any("\ufffd" in each for each in partial)
    assert all(text.startswith(each) for each in partial)
    assert partial[0] == ""
    assert partial[-1] == text
    # the test reaches characters of several tokens: some steps show nothing new
    assert len(set(partial)) < len(partial)


def test_special_tokens_are_parsed_in_prompts_and_hidden_in_answers(pam: Pam) -> None:
    end = tiny_tokenizer().get_vocab()["<|im_end|>"]
    assert pam.language.encode_text("<|im_end|>") == [end]
    assert pam.language.decode_text([*pam.language.encode_text(" a cup "), end]) == "a cup"
