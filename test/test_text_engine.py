"""The text engine generates the tokens of transformers, whichever texts join the batch, and whenever."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from pam_ros.errors import CapacityError
from pam_ros.model.text.fast.decoder_weights import fuse
from pam_ros.model.text.fast.kv_cache import KeyValueCache
from pam_ros.model.text.fast.text_engine import Text, TextEngine

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, POSITIONS = 256, 4096
cuda_only = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")


def tiny_model(seed: int = 0) -> Qwen2ForCausalLM:
    """Random weights, large enough that tokens differ; biases and norms whose absence would show."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=999, hidden_size=WIDTH, intermediate_size=704, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=POSITIONS,
        initializer_range=0.08, rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval().to(DEVICE)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1, std=0.2)
    return model


@torch.inference_mode()
def greedy(
    model: Qwen2ForCausalLM, embeddings: Tensor, suffix: Sequence[int], count: int, window: int | None = None
) -> tuple[list[int], list[float]]:
    """Tokens and log probabilities by transformers, without a cache."""
    table = model.model.embed_tokens.weight
    x = torch.cat([embeddings, table[list(suffix)]])
    tokens, odds = [], []
    for _ in range(count):
        index = torch.arange(len(x), device=x.device)
        age = index[:, None] - index[None]
        mask = (age >= 0) & (age < (window or len(x)))
        hidden = model.model(inputs_embeds=x[None], attention_mask=mask[None, None], use_cache=False)
        logits = model.lm_head(hidden.last_hidden_state[0, -1]).float()
        tokens.append(int(logits.argmax()))
        odds.append(float(logits.log_softmax(-1)[tokens[-1]]))
        x = torch.cat([x, table[tokens[-1]][None]])
    return tokens, odds


def run(engine: TextEngine, tokens: int = 3) -> None:
    """Steps until nothing is left to do."""
    for _ in range(500):
        if engine.idle:
            return
        engine.step(tokens)
    raise AssertionError("the engine never becomes idle")


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("fast", "graphs"),
    [(False, False), pytest.param(True, False, marks=cuda_only), pytest.param(True, True, marks=cuda_only)],
)
def test_texts_that_share_prompts_and_join_late_equal_transformers(
    window: int | None, fast: bool, graphs: bool
) -> None:
    model = tiny_model()
    prompts = [torch.randn(length, WIDTH, device=DEVICE) * 0.3 for length in (37, 5, 64)]
    requests = [
        (0, [1, 2, 3], 12),
        (0, [7], 5),
        (1, [9, 8, 7, 6, 5], 9),
        (2, [11, 12], 20),
        (0, [3, 4, 5], 7),
    ]
    expected = [greedy(model, prompts[p], suffix, count, window) for p, suffix, count in requests]
    engine = TextEngine(
        fuse(model, positions=POSITIONS), stop_ids=[], cache_tokens=700, slots=4, window=window,
        chunk_tokens=32, fast=fast,
    )  # fmt: skip
    if graphs:
        engine.warm_up()
    opened = [engine.open(80) for _ in prompts]
    for prompt, embeddings in zip(opened, prompts, strict=True):
        for part in embeddings.split(len(embeddings) // 2 + 1):
            engine.extend(prompt, part)
    texts: list[Text] = []
    for number, (p, suffix, count) in enumerate(requests):
        texts.append(engine.generate(opened[p], suffix, max_new_tokens=count))
        if number == 2:
            for _ in range(4):
                engine.step(2)
    for prompt in opened:
        engine.release(prompt)
    run(engine)
    for text, (tokens, odds) in zip(texts, expected, strict=True):
        assert text.tokens == tokens
        assert text.log_probabilities == pytest.approx(odds, abs=1e-4)
    engine.step()
    assert engine.cache.free_tokens == 700


@cuda_only
def test_nothing_compiles_once_all_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that compiles while the camera runs holds up every text for half a second."""
    triton = pytest.importorskip("triton")
    model = tiny_model().bfloat16()
    engine = TextEngine(fuse(model, positions=POSITIONS), stop_ids=[], cache_tokens=3000, chunk_tokens=64)
    for piece in engine.preparations():
        piece()
    compiled: list[str] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: compiled.append(src.name))
    prompt = engine.open(100)
    engine.extend(prompt, torch.randn(90, WIDTH, device=DEVICE, dtype=torch.bfloat16))
    for count in range(1, 17):
        for text in range(count):
            engine.generate(prompt, [3, text], max_new_tokens=6)
        run(engine)
    engine.release(prompt)
    assert compiled == []


def test_a_prompt_may_grow_after_texts_branched_off() -> None:
    model = tiny_model(3)
    first, second = (torch.randn(length, WIDTH, device=DEVICE) * 0.3 for length in (20, 11))
    engine = TextEngine(fuse(model, positions=POSITIONS), stop_ids=[], cache_tokens=200)
    prompt = engine.open(40)
    engine.extend(prompt, first)
    early = engine.generate(prompt, [5], max_new_tokens=9)
    engine.extend(prompt, second)
    late = engine.generate(prompt, [5], max_new_tokens=9)
    run(engine)
    assert early.tokens == greedy(model, first, [5], 9)[0]
    assert late.tokens == greedy(model, torch.cat([first, second]), [5], 9)[0]


def test_a_stop_token_ends_a_text_and_is_not_part_of_it() -> None:
    model = tiny_model(1)
    embeddings = torch.randn(9, WIDTH, device=DEVICE)
    expected, _ = greedy(model, embeddings, [3], 10)
    engine = TextEngine(fuse(model, positions=POSITIONS), stop_ids=[expected[5], 998], cache_tokens=100)
    prompt = engine.open(20)
    engine.extend(prompt, embeddings)
    text = engine.generate(prompt, [3], max_new_tokens=40)
    run(engine)
    assert text.finished
    assert text.tokens == expected[: expected.index(expected[5])]


def test_cancelled_texts_leave_the_batch_and_others_go_on() -> None:
    model = tiny_model(2)
    embeddings = torch.randn(9, WIDTH, device=DEVICE)
    engine = TextEngine(fuse(model, positions=POSITIONS), stop_ids=[], cache_tokens=300, slots=2)
    prompt = engine.open(20)
    engine.extend(prompt, embeddings)
    running, kept, waiting = (engine.generate(prompt, [3], max_new_tokens=30) for _ in range(3))
    engine.step()
    engine.step(2)
    engine.cancel(running)
    engine.cancel(waiting)
    length = len(running.tokens)
    engine.release(prompt)
    run(engine)
    assert (len(running.tokens), len(waiting.tokens)) == (length, 0)
    assert kept.tokens == greedy(model, embeddings, [3], 30)[0]
    assert engine.cache.free_tokens == 300


def test_sampling_follows_the_probabilities() -> None:
    model = tiny_model(2)
    embeddings = torch.randn(9, WIDTH, device=DEVICE)
    engine = TextEngine(fuse(model, positions=POSITIONS), stop_ids=[], cache_tokens=4000)
    prompt = engine.open(20)
    engine.extend(prompt, embeddings)
    texts = [
        engine.generate(prompt, [3], max_new_tokens=1, temperature=1.0, seed=seed) for seed in range(400)
    ]
    run(engine)
    (best,), (odds,) = greedy(model, embeddings, [3], 1)
    fraction = sum(text.tokens == [best] for text in texts) / len(texts)
    assert fraction == pytest.approx(float(torch.tensor(odds).exp()), abs=0.1)
    assert len({text.tokens[0] for text in texts}) > 10


def test_the_cache_joins_what_is_freed() -> None:
    cache = KeyValueCache(
        layers=1, tokens=100, heads=1, width=4, dtype=torch.float32, device=torch.device("cpu")
    )
    spans = [cache.allocate(size) for size in (30, 20, 50)]
    with pytest.raises(CapacityError, match="1 tokens do not fit"):
        cache.allocate(1)
    for span in (spans[0], spans[2], spans[1]):
        cache.free(span)
    assert cache.largest_free == 100
