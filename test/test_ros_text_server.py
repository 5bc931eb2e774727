"""The real `pam_node` with texts from a server: masks continue without it, texts resume when it comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from diagnostic_msgs.msg import DiagnosticStatus
from fake_text_server import Behaviour, free_port, text_server
from ros_harness import REAL_NODE, Camera, Client, Diagnostics, Process, new_frames, pam, wait_until
from tiny_models import shipped_model

from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.language_export import served_name
from pam_ros.model.pam import Pam
from pam_ros.msg import Prompt, RegionArray, Status, StreamingCaption

SLOW_S = 120.0  # to load a model on a busy machine
BOX = [40.0, 30.0, 100.0, 90.0]


@pytest.fixture(scope="module")
def shipped() -> Iterator[Pam]:
    with shipped_model() as model:
        yield model


def of_model(robot: Client, *, usable: bool) -> DiagnosticStatus:
    """The manager's next status with, or without, the possibility of texts."""
    level = DiagnosticStatus.OK if usable else DiagnosticStatus.WARN
    return Diagnostics.of(robot).wait_for(
        "pam_manager: model", lambda it: it.level == level and it.message.startswith("active"), SLOW_S
    )


def lines_with(process: Process, words: str) -> int:
    return sum(words in line for line in process.lines)


def test_masks_go_on_without_the_server_and_texts_resume(shipped: Pam) -> None:
    name = served_name(find_files("pam-tiny", None))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = ["model:=pam-tiny", "device:=cpu", f"texts.server:={url}", "texts.max_new_tokens:=6"]
    streaming = ["streaming.enabled:=true", "streaming.period_s:=1.0", "autostart:=true"]
    with pam(*settings, *streaming, script=REAL_NODE) as (robot, process):
        status = of_model(robot, usable=False)
        assert f"without texts: the text server {url} cannot be used" in status.message
        assert Diagnostics.values(status)["text server"] == url
        messages = robot.collect(RegionArray, "/pam/regions")
        captions = robot.collect(StreamingCaption, "/pam/streaming_captions")
        with Camera(robot, rate_hz=4, size=(120, 160), block_xyxy=(40, 30, 100, 90)):
            wait_until(lambda: messages, "results", SLOW_S)
            answer = robot.perceive(Prompt(box=BOX, tasks=["label"]), timeout_s=SLOW_S)
            assert (answer.status.code, url in answer.status.message) == (Status.TEXT_SERVER, True)
            seen = len(messages)
            wait_until(lambda: len(new_frames(messages, seen)) > 8, "masks", SLOW_S)
            assert messages[-1].regions and captions == []
            assert lines_with(process, "no texts: ") == 1  # one status, and none for every caption
            assert lines_with(process, "gets no") == 0
            behaviour = Behaviour(["another"])
            with text_server(shipped.language, behaviour, port):
                Diagnostics.of(robot).wait_for(
                    "pam_manager: model", lambda it: f"serves another, not {name}" in it.message, SLOW_S
                )
                behaviour.models = [name]
                of_model(robot, usable=True)
                region_id = messages[-1].regions[0].id
                answer = robot.perceive(Prompt(region_id=region_id, tasks=["label"]), timeout_s=SLOW_S)
                assert answer.status.code == Status.OK, answer.status
                assert answer.region.texts[0].label
                wait_until(lambda: any(caption.final for caption in captions), "a caption", SLOW_S)
            of_model(robot, usable=False)
            seen = len(messages)
            wait_until(lambda: len(new_frames(messages, seen)) > 3, "masks", SLOW_S)
        assert process.end() == 0
        assert "Traceback" not in process.log()
        assert lines_with(process, "text generation works again") == 1
