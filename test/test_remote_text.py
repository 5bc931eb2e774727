"""Texts from a server: equal to those generated here; every fault of a server leads to one clear status."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_text_server import Behaviour, free_port, text_server
from fakes import Recorder
from safetensors.torch import load_file, save_file
from text_runs import TextRun, Wanted
from tiny_models import (
    LANGUAGE,
    box,
    click,
    encoded,
    fill_by_rule,
    official_tensors,
    picture,
    sam2_tiny,
    tiny_pam,
    tiny_tokenizer,
    write_official,
)
from transformers import Qwen2ForCausalLM

from pam_ros.errors import (
    CapacityError,
    CheckpointError,
    InferenceError,
    InputError,
    StateError,
    TextServerError,
)
from pam_ros.evaluation.bench_text_server import bench_text_server
from pam_ros.model.fast_model import FastModel
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, TextDelta, TextRequest
from pam_ros.model.loading.checkpoint import architecture_of
from pam_ros.model.loading.device import needed_gib
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.language_export import export_language, served_name
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.openvino_network import openvino_is_installed
from pam_ros.model.pam import Pam, RegionEmbeddings
from pam_ros.model.remote_text import RemoteTextModel, load_with_text_server
from pam_ros.model.text.remote import RemoteGenerator
from pam_ros.model.text.text_server import KEY_VARIABLE, Patience, TextServer
from pam_ros.records import IMAGE_TASKS, Frame, Language, Prompt, Task
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest

NAME = "tiny-01234567"
QUICK = Patience(connect_s=10.0, silence_s=15.0, watch_s=0.1, retry_s=0.05)
IMPATIENT = Patience(connect_s=10.0, silence_s=1.5, watch_s=0.1, retry_s=0.05)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def pam() -> Pam:
    return tiny_pam()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends servers and clients after the test."""
    with ExitStack() as stack:
        yield stack


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until_s, "timed out"
        time.sleep(0.005)


def connect(
    stack: ExitStack, pam: Pam, url: str, *, patience: Patience = QUICK, key: str = ""
) -> RemoteGenerator:
    """A generator that has looked at the server once."""
    with torch.inference_mode():
        probe = pam.language.embed([1, 5])
    server = TextServer(
        url, NAME, stop_ids=sorted(pam.language.stop_ids), probe=probe, key=key, patience=patience
    )
    stack.callback(server.close)
    server.wait_checked()
    return RemoteGenerator(pam.language, pam.projector, server, max_new_tokens=512)


@pytest.mark.timeout(60)
def test_closing_is_not_lost_if_a_fault_is_reported_meanwhile() -> None:
    """`asyncio.wait_for` of Python before 3.12 swallows a cancellation that comes with its result."""
    server = TextServer(f"http://127.0.0.1:{free_port()}", NAME, stop_ids=[1], probe=torch.zeros(1, 4))
    server.wait_checked()
    time.sleep(0.1)  # it waits for a fault now

    def fault_and_close() -> None:
        server._doubt.set()
        server._loop.call_soon(server._closing.set)

    server._loop.call_soon_threadsafe(fault_and_close)
    server._thread.join(WAIT_S)
    assert not server._thread.is_alive()


def frames_of(pam: Pam, count: int) -> list[RegionEmbeddings]:
    """Embeddings of one region each."""
    prompts = [box(), click(60, 20), box(40, 10, 90, 60)][:count]
    memories = [pam.new_memory() for _ in prompts]
    observations = pam.segment(encoded(pam, 1)[0], prompts, memories)
    first = pam.embeddings(observations[:1], stride=FIRST_FRAME_STRIDE)
    return first + pam.embeddings(observations[1:], stride=LATER_FRAME_STRIDE)


def start(generator: RemoteGenerator, frame: RegionEmbeddings, tokens: int = 6) -> int:
    """Starts one label."""
    prompt_id = generator.open_prompt(clip=False)
    generator.extend_prompt(prompt_id, frame)
    (text_id,) = generator.generate(
        [(prompt_id, TextRequest(Task.LABEL, Language.EN, max_new_tokens=tokens))]
    )
    generator.release_prompt(prompt_id)
    return text_id


def collect(generator: RemoteGenerator) -> dict[int, list[TextDelta]]:
    """Every delta until no text is left, by text."""
    deltas: dict[int, list[TextDelta]] = defaultdict(list)

    def step() -> bool:
        for delta in generator.step():
            deltas[delta.text_id].append(delta)
        return not generator.busy

    wait_for(step)
    return deltas


def wanted_texts(pam: Pam) -> list[Wanted]:
    """Every task and language about one frame, and a clip with and without a previous caption."""
    first, second, third = frames_of(pam, 3)
    texts = [
        Wanted((first,), task, language, max_new_tokens=8) for task in IMAGE_TASKS for language in Language
    ]
    clip = (first, second, third)
    return [
        *texts,
        Wanted(clip, Task.CLIP, Language.EN, max_new_tokens=20),
        Wanted(clip, Task.CLIP, Language.ZH, "红色的杯子", max_new_tokens=5),
    ]


# ---- the same texts


def test_texts_equal_those_generated_here(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME])
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    wanted = wanted_texts(pam)
    expected = TextRun(pam, wanted).finish()
    prompts: dict[int, int] = {}
    requests = []
    for text in wanted:
        key = len(text.embeddings)
        if key not in prompts:
            prompts[key] = generator.open_prompt(clip=text.task is Task.CLIP)
            for frame in text.embeddings:
                generator.extend_prompt(prompts[key], frame)
        request = TextRequest(text.task, text.language, text.previous_caption, text.max_new_tokens)
        requests.append((prompts[key], request))
    ids = generator.generate(requests)
    for prompt_id in prompts.values():
        generator.release_prompt(prompt_id)
    found = collect(generator)
    for place, text_id in enumerate(ids):
        assert found[text_id][-1].final and found[text_id][-1].text == expected[place][-1].text
        sure = expected[place][-1].confidence
        assert sure is not None and found[text_id][-1].confidence == pytest.approx(sure, rel=1e-4)
        assert all(delta.confidence is None for delta in found[text_id][:-1])
        # A token that ends within a character is held back as a whole.
        assert {delta.text for delta in found[text_id]} <= {delta.text for delta in expected[place]} | {""}
        assert sum(delta.new_tokens for delta in found[text_id]) == len(expected[place])
    assert len({delta.text for delta in found[ids[-2]]}) > 2, "the text came in one piece"


def test_without_log_probabilities_a_confidence_is_not_known(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME], log_probabilities=False)
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    (frame,) = frames_of(pam, 1)
    text_id = start(generator, frame)
    final = collect(generator)[text_id][-1]
    assert final.final and final.text and final.confidence is None


def test_a_given_beginning_is_part_of_the_text_and_goes_before_what_is_generated(
    stack: ExitStack, pam: Pam
) -> None:
    """Here and by a server alike; what follows depends on it."""
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, Behaviour([NAME]))))
    (frame,) = frames_of(pam, 1)
    request = TextRequest(Task.BRIEF, Language.EN, max_new_tokens=6, beginning="A mug")
    texts = []
    for each in (pam.text, generator):
        prompt_id = each.open_prompt(clip=False)
        each.extend_prompt(prompt_id, frame)
        each.generate([(prompt_id, request), (prompt_id, replace(request, beginning=""))])
        each.release_prompt(prompt_id)
        finals: list[str] = []

        def step(each: Any = each, finals: list[str] = finals) -> bool:
            finals.extend(delta.text for delta in each.step() if delta.final)
            return not each.busy

        wait_for(step)
        texts.append(sorted(finals))
    assert texts[0] == texts[1]
    begun = [text for text in texts[0] if text.startswith("A mug")]
    assert len(begun) == 1 and len(begun[0]) > len("A mug")


def test_a_request_says_everything_that_a_servers_defaults_could_change(stack: ExitStack, pam: Pam) -> None:
    """And embeddings are sent in the model's dtype."""
    behaviour = Behaviour([NAME])
    url = stack.enter_context(text_server(pam.language, behaviour))
    half = tiny_pam()
    half.place(torch.device("cpu"), torch.bfloat16)
    generator = connect(stack, half, url)
    (frame,) = frames_of(half, 1)
    prompt_id = generator.open_prompt(clip=False)
    generator.extend_prompt(prompt_id, frame)
    generator.max_new_tokens = 7
    generator.generate([(prompt_id, TextRequest(Task.LABEL, Language.EN, temperature=0.5))])
    collect(generator)
    (body,) = behaviour.requests
    assert body["model"] == NAME and body["stream"] and body["return_token_ids"]
    assert body["max_tokens"] == 7 and body["temperature"] == 0.5
    assert set(body["stop_token_ids"]) == pam.language.stop_ids and body["ignore_eos"]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)
    prompt = body["prompt_embeds"]
    assert prompt.dtype == torch.bfloat16 and len(prompt) > len(frame)
    assert generator.server.sent_bytes > prompt.nbytes * 4 / 3


def test_cancelling_closes_the_stream(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME], token_s=0.02)
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    (frame,) = frames_of(pam, 1)
    gone, other = start(generator, frame, 500), start(generator, frame, 3)
    wait_for(lambda: len(behaviour.requests) == 2)
    generator.cancel(gone)
    generator.cancel(gone)
    assert list(collect(generator)) == [other]
    assert behaviour.disconnected.wait(WAIT_S)


def test_waking(stack: ExitStack, pam: Pam) -> None:
    """`notify` is called when, and only when, there is something to take."""
    behaviour = Behaviour([NAME])
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    woken: list[bool] = []
    generator.notify(lambda: woken.append(bool(generator.server._arrivals)))
    assert not woken and generator.step() == []
    start(generator, frames_of(pam, 1)[0], 3)
    wait_for(lambda: bool(woken))
    assert collect(generator) and all(woken)


# ---- faults


def test_a_server_that_is_gone_and_comes_back(stack: ExitStack, pam: Pam) -> None:
    port = free_port()
    generator = connect(stack, pam, f"http://127.0.0.1:{port}/v1")
    (frame,) = frames_of(pam, 1)
    assert f"127.0.0.1:{port} cannot be used" in generator.problem and "texts resume" in generator.problem
    with pytest.raises(TextServerError, match="masks continue"):
        start(generator, frame)
    assert not generator.busy
    for _ in range(2):
        with text_server(pam.language, Behaviour([NAME]), port):
            wait_for(lambda: not generator.problem)
            assert collect(generator) == {}
            text_id = start(generator, frame)
            assert collect(generator)[text_id][-1].final
        wait_for(lambda: bool(generator.problem))  # noticed without a text


def test_a_server_of_another_model(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour(["qwen", "pam-3b-76543210"])
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    assert f"serves qwen, pam-3b-76543210, not {NAME}" in generator.problem
    assert f"--served-model-name {NAME}" in generator.problem
    with pytest.raises(TextServerError, match=r"pam export-language"):
        start(generator, frames_of(pam, 1)[0])
    assert behaviour.requests == []
    behaviour.models = [NAME]
    wait_for(lambda: not generator.problem)
    behaviour.models = ["qwen"]
    wait_for(lambda: "not " + NAME in generator.problem)


def test_a_slow_server(stack: ExitStack, pam: Pam) -> None:
    """A text without a new token for too long ends; texts resume once the server answers in time."""
    behaviour = Behaviour([NAME])
    url = stack.enter_context(text_server(pam.language, behaviour))
    generator = connect(stack, pam, url, patience=IMPATIENT)
    assert generator.problem == ""
    behaviour.token_s = 4.0
    (frame,) = frames_of(pam, 1)
    text_id = start(generator, frame)
    (delta,) = collect(generator)[text_id]
    assert isinstance(delta.error, InferenceError) and "nothing came for 1.5 s" in str(delta.error)
    assert not delta.final and "nothing came for 1.5 s" in generator.problem
    behaviour.token_s = 0.0
    wait_for(lambda: not generator.problem)
    text_id = start(generator, frame)
    assert collect(generator)[text_id][-1].final


def test_a_stream_that_breaks_off(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME], break_after=2)
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    (frame,) = frames_of(pam, 1)
    text_id = start(generator, frame)
    last = collect(generator)[text_id][-1]
    assert not last.final and "broke off the text: the stream ended early" in str(last.error)
    wait_for(lambda: not generator.problem)  # a new look finds nothing wrong
    behaviour.break_after = None
    assert collect(generator) == {}
    text_id = start(generator, frame)
    assert collect(generator)[text_id][-1].final


def test_a_refused_request_does_not_stop_the_others(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME], status=400)
    patient = Patience(connect_s=10.0, silence_s=15.0, watch_s=60.0, retry_s=60.0)  # looks at it once
    generator = connect(
        stack, pam, stack.enter_context(text_server(pam.language, behaviour)), patience=patient
    )
    (frame,) = frames_of(pam, 1)
    text_id = start(generator, frame)
    assert "HTTP 400: it was told to refuse" in str(collect(generator)[text_id][-1].error)
    assert generator.problem == ""
    behaviour.status = 200
    text_id = start(generator, frame)
    assert collect(generator)[text_id][-1].final
    behaviour.status = 503
    text_id = start(generator, frame)
    assert "HTTP 503" in str(collect(generator)[text_id][-1].error)


def test_a_server_with_a_key(stack: ExitStack, pam: Pam) -> None:
    url = stack.enter_context(text_server(pam.language, Behaviour([NAME], key="secret")))
    assert f"HTTP 401: Unauthorized; set {KEY_VARIABLE}" in connect(stack, pam, url).problem
    assert connect(stack, pam, url, key="secret").problem == ""


def test_a_server_that_is_none(stack: ExitStack, pam: Pam) -> None:
    class NotVllm(Behaviour):
        @property
        def models(self) -> list[str]:
            return [{"nested": 1}]  # type: ignore[list-item]

        @models.setter
        def models(self, value: list[str]) -> None:
            pass

    url = stack.enter_context(text_server(pam.language, NotVllm([])))
    assert "its answer is not vLLM's (TypeError" in connect(stack, pam, url).problem


def test_the_servers_context_bounds_prompts(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME])
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    (frame,) = frames_of(pam, 1)
    text_id = start(generator, frame, 500)
    collect(generator)
    prompt_tokens = len(behaviour.requests[0]["prompt_embeds"])
    behaviour.context_length = prompt_tokens + 3
    wait_for(lambda: generator.server.context_length == prompt_tokens + 3)
    text_id = start(generator, frame, 500)
    assert sum(delta.new_tokens for delta in collect(generator)[text_id]) <= 3
    assert behaviour.requests[1]["max_tokens"] == 3
    behaviour.context_length = prompt_tokens
    wait_for(lambda: generator.server.context_length == prompt_tokens)
    with pytest.raises(CapacityError, match=f"context length {prompt_tokens}"):
        start(generator, frame)
    assert not generator.busy and len(generator._prompts) == 1  # its owner releases it


def test_closing_ends_everything(stack: ExitStack, pam: Pam) -> None:
    behaviour = Behaviour([NAME], token_s=0.02)
    generator = connect(stack, pam, stack.enter_context(text_server(pam.language, behaviour)))
    text_id = start(generator, frames_of(pam, 1)[0], 500)
    wait_for(lambda: bool(behaviour.requests))
    generator.server.close()
    generator.server.close()
    assert not generator.server._thread.is_alive()
    assert behaviour.disconnected.wait(WAIT_S)
    generator.cancel(text_id)


# ---- loading without a decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pam: Pam) -> Path:
    """A model in the official layout."""
    return write_official(tmp_path_factory.mktemp("model") / "tiny", official_tensors(pam), shards=3)


def test_a_robot_loads_no_decoder(stack: ExitStack, pam: Pam, folder: Path) -> None:
    name = served_name(find_files(str(folder), None))
    behaviour = Behaviour([name])
    url = stack.enter_context(text_server(pam.language, behaviour))
    lines: list[str] = []
    options = LoadOptions(str(folder), text_server=url, device="cpu")
    model = load_with_text_server(options, patience=QUICK, progress=lines.append)
    stack.callback(model.close)
    assert f"texts come from {url}, which serves {name}" in lines
    assert model.info.text_server == url
    loaded = model._sight.state_dict()
    kept = {key: value for key, value in pam.state_dict().items() if key in loaded}
    assert {key for key in loaded if key.startswith("language.")} == {
        "language.transformer.model.embed_tokens.weight"
    }
    assert {key for key in pam.state_dict() if not key.startswith("language.")} < loaded.keys()
    assert all(torch.equal(loaded[key], kept[key]) for key in loaded)
    files = find_files(str(folder), None)
    assert needed_gib(files, torch.float32, options) < needed_gib(files, torch.float32, LoadOptions())
    (frame,) = frames_of(pam, 1)
    (mine,) = frames_of(model._sight, 1)
    torch.testing.assert_close(mine.tensor, frame.tensor, rtol=1e-3, atol=1e-3)  # OpenVINO's, if it is here
    assert (model._sight.segmenter.inference is not None) == openvino_is_installed()
    text_id = start(model.text, mine)
    wanted = Wanted((frame,), Task.LABEL, Language.EN, max_new_tokens=6)
    assert collect(model.text)[text_id][-1].text == TextRun(pam, [wanted]).finish()[0][-1].text


def test_the_fast_vision_engine_goes_with_a_server(stack: ExitStack, pam: Pam) -> None:
    """It needs no decoder either; on a CPU it runs without graphs."""
    url = stack.enter_context(text_server(pam.language, Behaviour([NAME])))
    blind = Pam(architecture_of(LANGUAGE, sam2_tiny()), tiny_tokenizer(), decoder=False)
    fill_by_rule(blind, "")
    sight = FastModel(blind.requires_grad_(False), graphs=False, texts=False)
    model = RemoteTextModel(sight, connect(stack, pam, url))
    stack.callback(model.close)
    vision = model.vision
    observations = vision.segment(vision.encode(picture()), [box()], [vision.new_memory()])
    (frame,) = vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
    text_id = start(model.text, frame)
    (plain,) = frames_of(pam, 1)
    wanted = Wanted((plain,), Task.LABEL, Language.EN, max_new_tokens=6)
    assert collect(model.text)[text_id][-1].text == TextRun(pam, [wanted]).finish()[0][-1].text


def test_a_model_loads_although_its_server_is_gone(stack: ExitStack, pam: Pam, folder: Path) -> None:
    lines: list[str] = []
    url = f"http://127.0.0.1:{free_port()}"
    options = LoadOptions(str(folder), text_server=url, device="cpu")
    model = load_with_text_server(options, patience=QUICK, progress=lines.append)
    stack.callback(model.close)
    assert model.text.problem in lines and url in model.text.problem
    model.close()
    with pytest.raises(StateError, match="the model is closed"):
        model.text.generate([])


@pytest.mark.parametrize(
    "url",
    ["garbage", "http://", "http://[::1", "localhost:8000", "ftp://host", "http://host:99999", "http://a b"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"the text server's address is .*; give one like http://host:8000"):
        LoadOptions(text_server=url)


def test_a_key_that_no_header_can_hold(stack: ExitStack, pam: Pam) -> None:
    problem = connect(stack, pam, "http://[::1]:9/v1/", key="ключ").problem
    assert "the text server http://[::1]:9 cannot be used: " in problem
    assert "codec can't encode" in problem


# ---- the exported folder


def test_the_exported_folder_is_the_language_model(tmp_path: Path, pam: Pam, folder: Path) -> None:
    exported = export_language(str(folder), tmp_path)
    assert exported.served_name == served_name(find_files(str(folder), None))
    assert exported.served_name.startswith("tiny-")
    language = Qwen2ForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    embeddings = torch.randn(1, 40, LANGUAGE["hidden_size"], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = language(inputs_embeds=embeddings).logits[0, -1]
        expected = pam.language.logits(embeddings[0])[: pam.language.tokens]
    assert len(logits) == pam.language.tokens < LANGUAGE["vocab_size"]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert set(language.config.eos_token_id) == pam.language.stop_ids
    assert language.config.max_position_embeddings == pam.language.context_length


def test_other_weights_have_another_name(tmp_path: Path, pam: Pam, folder: Path) -> None:
    names = {served_name(find_files(str(folder), None)).rpartition("-")[2]}
    official = official_tensors(pam)
    for i, changed in enumerate(
        ("model.embed_tokens.weight", "model.mm_projector_img.0.weight", "model.norm.weight")
    ):
        tensors = {name: tensor.clone() for name, tensor in official.items()}
        tensors[changed].view(-1)[7] += 1
        write_official(tmp_path / str(i), tensors)
        names.add(served_name(find_files(str(tmp_path / str(i)), None)).rpartition("-")[2])
    assert len(names) == 4
    same = write_official(tmp_path / "same", official, shards=1, tower=True, sam2_file=False)
    assert served_name(find_files(str(same), None)).rpartition("-")[2] in names


@pytest.mark.parametrize(
    ("config", "missing", "why"),
    [
        ({"sliding_window": 40}, "", "reaches 41 tokens back, the context has 2048"),
        ({}, "model.layers.1.mlp.up_proj.weight", r"mis-shaped: model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"num_hidden_layers": 1}, "", r"mis-shaped: model\.layers\.1\."),
        ({}, "tokenizer", "has no tokenizer"),
    ],
)
def test_what_cannot_be_exported(
    tmp_path: Path, pam: Pam, config: dict[str, int], missing: str, why: str
) -> None:
    tensors = {name: tensor for name, tensor in official_tensors(pam).items() if name != missing}
    write_official(tmp_path / "model", tensors, config=LANGUAGE | config)
    if missing == "tokenizer":
        (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=why):
        export_language(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        ("model.safetensors", float("nan"), "values that are not finite: model.norm.weight"),
        ("stray.safetensors", 1.0, "two files in .* hold model.norm.weight"),
    ],
)
def test_weights_that_would_not_load_are_not_exported(
    tmp_path: Path, pam: Pam, file: str, value: float, why: str
) -> None:
    write_official(tmp_path / "model", official_tensors(pam))
    path, name = tmp_path / "model" / file, "model.norm.weight"
    known = load_file(path) if path.exists() else {name: torch.ones(LANGUAGE["hidden_size"])}
    known[name][3] = value
    save_file(known, path)
    with pytest.raises(CheckpointError, match=why):
        export_language(str(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what it costs


def test_figures_of_a_server(stack: ExitStack, pam: Pam) -> None:
    url = stack.enter_context(text_server(pam.language, Behaviour([NAME])))
    generator = connect(stack, pam, url)
    generator.max_new_tokens = 3
    model = RemoteTextModel(pam, generator)
    figures = {each.name: each for each in bench_text_server(model, repeats=1, progress=lambda line: None)}
    label, again, tasks = (figures[name] for name in ("label", "label again", "four tasks of a region"))
    clip = figures["caption of 16 frames"]
    (frame,) = frames_of(pam, 1)
    assert label.prompt_tokens == len(frame) and clip.prompt_tokens > 3 * len(frame)
    assert (label.texts, label.tokens) == (1, 3) and (tasks.texts, tasks.tokens) == (4, 12)
    assert tasks.prompt_tokens == 4 * label.prompt_tokens
    assert label.sent_bytes == again.sent_bytes > label.prompt_tokens * pam.language.width * 4 * 4 / 3
    assert all(0 < each.first_token_ms <= each.done_ms for each in figures.values())


def test_no_figures_without_a_server(stack: ExitStack, pam: Pam) -> None:
    generator = connect(stack, pam, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TextServerError, match="cannot be used"):
        bench_text_server(RemoteTextModel(pam, generator), repeats=1, progress=lambda line: None)


# ---- in the engine


def test_masks_go_on_and_captions_resume(stack: ExitStack, pam: Pam) -> None:
    port = free_port()
    generator = connect(stack, pam, f"http://127.0.0.1:{port}")
    events = Recorder()
    engine = Engine(
        model=RemoteTextModel(pam, generator),
        cameras=("front",),
        options=EngineOptions(streaming=True, caption_period_s=0.5, clip_frames=3, max_new_tokens=3),
        listener=events,
    )
    stack.callback(engine.stop)
    engine.start()
    pictures = [picture(step) for step in range(4)]
    sent = 0

    def send(count: int) -> None:
        """Frames at 10 Hz of stream time, each awaited."""
        nonlocal sent
        for _ in range(count):
            seen = len(events.frames)
            engine.submit_frame(Frame(pictures[sent % len(pictures)], sent * 100_000_000, "optical", "front"))
            events.wait_for(lambda seen=seen: len(events.frames) > seen)
            sent += 1

    def finals() -> list[str]:
        return [event.text for event in events.captions if event.final]

    send(1)
    failed = engine.perceive("front", PromptRequest(prompt=Prompt.from_clicks([(40, 30)])))
    assert isinstance(failed.future.exception(WAIT_S), TextServerError)
    send(15)
    assert finals() == [] and events.warnings == [], "its status is reported once, not for every caption"
    assert engine.statistics().text_problem == generator.problem != ""
    with text_server(pam.language, Behaviour([NAME]), port):
        wait_for(lambda: not generator.problem)
        assert engine.statistics().text_problem == ""
        send(12)
        events.wait_for(lambda: bool(finals()))
        answered = engine.perceive("front", PromptRequest(prompt=None, region_id=1))
        assert answered.future.result(WAIT_S).texts
    wait_for(lambda: bool(generator.problem))
    before = len(events.frames)
    send(6)
    assert len(events.frames) == before + 6
