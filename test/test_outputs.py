"""What one camera publishes, through publishers that the test can block; no DDS, a fake model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeModel

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from pam_ros.geometry import crop_mask
from pam_ros.nodes import sink
from pam_ros.nodes.outputs import camera_outputs, diagnostics, labels, markers, overlay
from pam_ros.nodes.outputs.camera_outputs import CameraOutputs
from pam_ros.nodes.outputs.captions import CaptionsOutput
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.requests import PromptDefaults
from pam_ros.records import CameraModel, Frame, Language, Prompt, Region, RegionState, Task, Text
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.overlay import OverlayStyle
from pam_ros.runtime.requests import PromptRequest

SIZE = (720, 1280)  # (height, width), pixels


class Publisher:
    """Keeps what is published; blocks while its node's gate is closed."""

    def __init__(self, gate: threading.Event) -> None:
        self.messages: list[Any] = []
        self.entered = threading.Event()
        self._gate = gate

    def publish(self, message: Any) -> None:
        self.entered.set()
        self._gate.wait()
        self.messages.append(message)

    def get_subscription_count(self) -> int:
        return 1


class Node:
    """Makes publishers, as rclpy's node does."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.publishers: dict[str, Publisher] = {}

    def create_publisher(self, kind: type, topic: str, profile: object, **options: object) -> Publisher:
        self.publishers[topic] = Publisher(self.gate)
        return self.publishers[topic]

    def messages(self, topic: str) -> list[Any]:
        return self.publishers[topic].messages


class Log:
    """A ThrottledLog that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)

    warn_once = warn


SETTINGS = PerceptionSettings(
    defaults=PromptDefaults((Task.LABEL,), (Language.EN,)),
    depth_tolerance_s=0.05,
    overlay=OverlayStyle(),
    jpeg_quality=80,
)


class NoDepth:
    """Surfaces of a camera without depth."""

    has_depth = False

    def of_frame(self, result: FrameResult) -> FrameResult:
        return result

    def camera_of(self, size: tuple[int, int]) -> CameraModel:
        return CameraModel(size, 1000.0, 1000.0, size[1] / 2, size[0] / 2)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.gate.set()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def outputs(node: Node, log: Log) -> Iterator[CameraOutputs]:
    outputs = CameraOutputs(node, log, lambda: SETTINGS, NoDepth())  # type: ignore[arg-type]
    yield outputs
    node.gate.set()
    outputs.close()
    assert outputs.join()


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.002)


def stamps_of(node: Node, topic: str) -> list[int]:
    return [message.header.stamp.nanosec for message in node.messages(topic)]


LABELS = ((Task.LABEL, Language.EN), (Task.LABEL, Language.ZH))  # as asked for


def region(region_id: int = 1, texts: dict | None = None, asked: tuple = ()) -> Region:
    mask = np.zeros(SIZE, np.bool_)
    mask[100:600, 100:1100] = True
    box, cropped = crop_mask(mask)
    return Region(region_id, RegionState.TRACKED, box, cropped, 0.9, 0.9, texts or {}, 0, 0, asked=asked)


def frame_result(stamp_ns: int, *regions: Region) -> FrameResult:
    picture = np.zeros((*SIZE, 3), np.uint8)
    return FrameResult("camera", stamp_ns, "optical", SIZE, regions or (region(),), picture, 0.0)


def text_event(language: Language, text: str, *, final: bool, task: Task = Task.LABEL) -> TextEvent:
    return TextEvent("camera", 1, task, language, text, final, 1, 0.0, LABELS)


def caption_event(region_id: int, sequence: int, text: str, *, final: bool) -> CaptionEvent:
    return CaptionEvent(
        "camera", region_id, "optical", 0, 1, sequence, 4, text, final, Language.EN, latency_s=0.0
    )


def test_frames_are_taken_at_once_while_every_subscriber_blocks(node: Node, outputs: CameraOutputs) -> None:
    node.gate.clear()
    begun_s = time.monotonic()
    for stamp_ns in range(1, 201):
        outputs.on_frame(frame_result(stamp_ns))
    assert time.monotonic() - begun_s < 5.0
    assert all(it.sink.waiting <= 5 for it in outputs._of_frames)
    node.gate.set()
    for topic in ("~/regions", "~/detections", "~/label_image", "~/overlay"):
        wait_until(lambda topic=topic: stamps_of(node, topic)[-1:] == [200])
        stamps = stamps_of(node, topic)
        assert stamps == sorted(stamps)
        assert len(stamps) < 10, topic


def test_messages_are_made_on_the_sinks_threads(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = labels.label_image

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(labels, "label_image", noted)
    outputs.on_frame(frame_result(1))
    wait_until(lambda: node.messages("~/label_image"))
    assert [thread.name for thread in threads] == ["~/label_image"]


def test_the_engine_goes_on_while_every_subscriber_blocks(node: Node, outputs: CameraOutputs) -> None:
    class Listener:
        on_frame = staticmethod(outputs.on_frame)
        on_text = staticmethod(outputs.on_text)
        on_caption = staticmethod(outputs.on_caption)

        @staticmethod
        def on_warning(camera: str, message: str) -> None:
            raise AssertionError(message)

    engine = Engine(
        model=FakeModel(words=5), cameras=("camera",), options=EngineOptions(), listener=Listener()
    )
    engine.start()
    node.gate.clear()
    picture = np.full((*SIZE, 3), 100, np.uint8)
    engine.submit_frame(Frame(picture, stamp_ns=1, camera="camera"))
    prompt = Prompt.from_clicks(box_xyxy=(10, 10, 1200, 700))
    answer = engine.perceive("camera", PromptRequest(prompt)).future.result(10.0)
    assert answer.texts
    for stamp_ns in range(2, 42):
        engine.submit_frame(Frame(picture, stamp_ns=stamp_ns, camera="camera"))
        wait_until(lambda stamp_ns=stamp_ns: engine.statistics().cameras[0].processed == stamp_ns)
    assert not node.messages("~/regions")
    assert node.publishers["~/regions"].entered.is_set(), "nothing was held up"
    engine.stop()
    node.gate.set()


def test_no_caption_is_lost_or_reordered_by_a_slow_subscriber(node: Node, outputs: CameraOutputs) -> None:
    node.gate.clear()
    for sequence in range(50):
        for region_id in (1, 2, 3):
            for words in range(1, 6):
                text = " ".join(["word"] * words)
                outputs.on_caption(caption_event(region_id, sequence, text, final=words == 5))
    node.gate.set()
    messages = node.messages("~/streaming_captions")
    wait_until(lambda: sum(message.final for message in messages) == 150)
    finals = [(message.sequence, message.region_id) for message in messages if message.final]
    assert finals == [(sequence, region_id) for sequence in range(50) for region_id in (1, 2, 3)]
    assert outputs.dropped == 0
    assert len(messages) < 160, "growing texts that a newer state replaced were published"


def test_captions_that_do_not_fit_are_counted_and_reported(node: Node, log: Log) -> None:
    node.gate.clear()
    output = CaptionsOutput(node, log)  # type: ignore[arg-type]
    output.on_caption(caption_event(1, 0, "x", final=True))
    assert node.publishers["~/streaming_captions"].entered.wait(10.0)
    for sequence in range(1, 1027):
        output.on_caption(caption_event(1, sequence, "x", final=True))
    assert (output.sink.waiting, output.sink.dropped) == (1024, 2)
    (line,) = log.lines
    assert "~/streaming_captions: 1 messages were lost" in line


def test_what_waits_goes_out_before_the_end(node: Node, log: Log) -> None:
    outputs = CameraOutputs(node, log, lambda: SETTINGS, NoDepth())  # type: ignore[arg-type]
    node.gate.clear()
    for sequence in range(20):
        outputs.on_caption(caption_event(1, sequence, "x", final=True))
    outputs.clear()
    threading.Timer(0.2, node.gate.set).start()
    outputs.close()
    assert outputs.join()
    assert [m.sequence for m in node.messages("~/streaming_captions")] == list(range(20))


def test_a_subscriber_that_never_returns_does_not_hold_up_the_end(
    node: Node, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "DRAIN_S", 0.3)
    outputs = CameraOutputs(node, log, lambda: SETTINGS, NoDepth())  # type: ignore[arg-type]
    node.gate.clear()
    outputs.on_frame(frame_result(1))
    wait_until(lambda: node.publishers["~/regions"].entered.is_set())
    begun_s = time.monotonic()
    outputs.close()
    assert not outputs.join()
    assert time.monotonic() - begun_s < 2.0


def test_the_language_asked_for_first_names_a_region_whichever_ends_first(
    node: Node, outputs: CameraOutputs
) -> None:
    outputs.on_frame(frame_result(1))
    outputs.on_text(text_event(Language.ZH, "水壶", final=True))
    chinese = {(Task.LABEL, Language.ZH): Text("水壶", 1)}
    outputs.on_frame(frame_result(2, region(texts=chinese, asked=LABELS)))
    wait_until(lambda: stamps_of(node, "~/detections")[-1:] == [2])
    outputs.on_text(text_event(Language.EN, "kettle", final=True))
    both = {(Task.LABEL, Language.EN): Text("kettle", 1), **chinese}
    outputs.on_frame(frame_result(3, region(texts=both, asked=LABELS)))
    for topic in ("~/regions", "~/detections"):
        wait_until(lambda topic=topic: stamps_of(node, topic)[-1:] == [3])
    wait_until(lambda: node.messages("~/label_info"))
    infos = [{it.class_id: it.class_name for it in m.class_map} for m in node.messages("~/label_info")]
    assert infos == [{1: "kettle"}]
    names = [m.detections[0].results[0].hypothesis.class_id for m in node.messages("~/detections")]
    assert set(names) == {"", "kettle"}
    texts = node.messages("~/regions")[-1].regions[0].texts
    assert [text.language for text in texts] == ["en", "zh"]


def test_a_finished_text_is_sent_with_the_newest_frame(node: Node, outputs: CameraOutputs) -> None:
    outputs.on_frame(frame_result(7))
    outputs.on_text(text_event(Language.EN, "A kettle.", final=True, task=Task.BRIEF))
    wait_until(lambda: node.messages("~/regions") and node.messages("~/regions")[-1].regions[0].texts)
    message = node.messages("~/regions")[-1]
    assert message.header.stamp.nanosec == 7
    assert message.regions[0].texts[0].brief_caption == "A kettle."


def test_a_growing_caption_replaces_the_last_one_on_the_overlay_without_a_new_frame(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[dict[int, str], set[int]]] = []

    def noted(image: Any, regions: Any, *, captions: Any, growing: Any, **rest: Any) -> Any:
        drawn.append((captions, growing))
        return image

    monkeypatch.setattr(overlay, "draw_overlay", noted)
    monkeypatch.setattr(camera_outputs, "_REDRAW_S", 0.0)
    outputs.on_frame(frame_result(1))
    outputs.on_caption(caption_event(1, 0, "It boils.", final=True))
    wait_until(lambda: drawn and drawn[-1] == ({1: "It boils."}, set()))
    for text in ("It", "It slides"):
        outputs.on_caption(caption_event(1, 1, text, final=False))
        wait_until(lambda text=text: drawn[-1] == ({1: text}, {1}))
    outputs.on_frame(frame_result(2))
    wait_until(lambda: stamps_of(node, "~/overlay")[-1:] == [2])
    assert drawn[-1] == ({1: "It slides"}, {1})
    outputs.on_caption(caption_event(1, 1, "It slides away.", final=True))
    wait_until(lambda: drawn[-1] == ({1: "It slides away."}, set()))


def test_nothing_is_drawn_without_a_subscriber(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(overlay, "draw_overlay", lambda *a, **k: drawn.append(a) or a[0])
    monkeypatch.setattr(Publisher, "get_subscription_count", lambda self: 0)
    outputs.on_frame(frame_result(1))
    outputs.on_caption(caption_event(1, 0, "It boils.", final=True))
    outputs.on_text(text_event(Language.EN, "kettle", final=True))
    wait_until(lambda: node.messages("~/regions") and node.messages("~/regions")[-1].regions[0].texts)
    assert outputs._overlay.sink.waiting == 0
    assert not drawn
    assert not node.messages("~/overlay")


def test_a_gpu_that_fails_is_an_error_in_the_diagnostics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def fail(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    model = replace(FakeModel().info, device="cuda:0")
    health = diagnostics.Health(diagnostics.Phase.ACTIVE, "", "", model)
    (status,) = diagnostics.report("/pam_manager", health, None, (), Header()).status
    assert status.level == DiagnosticStatus.ERROR
    words = "the GPU fails, restart the process: CUDA error: an illegal memory access was encountered"
    assert status.message == f"active; {words}"


def test_names_are_withdrawn_when_the_engine_stops(node: Node, outputs: CameraOutputs) -> None:
    outputs.on_frame(frame_result(1, region(texts={(Task.LABEL, Language.EN): Text("kettle", 1)})))
    wait_until(lambda: node.messages("~/label_info"))
    outputs.clear()
    wait_until(lambda: not node.messages("~/label_info")[-1].class_map)


def test_regions_that_are_cleared_while_they_are_repeated_stay_cleared(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.on_frame(frame_result(1))
    wait_until(lambda: node.messages("~/markers"))
    monkeypatch.setattr(markers, "REPEAT_S", 0.0)
    monkeypatch.setattr(markers, "PERIOD_S", 0.0)
    repeating, go_on = threading.Event(), threading.Event()

    def count() -> int:
        repeating.set()
        assert go_on.wait(10.0)
        return 1

    monkeypatch.setattr(node.publishers["~/markers"], "get_subscription_count", count, raising=False)
    repeat = threading.Thread(target=outputs.repeat)
    repeat.start()
    assert repeating.wait(10.0)
    clear = threading.Thread(target=outputs.clear)
    clear.start()
    clear.join(0.2)
    go_on.set()
    for thread in (repeat, clear):
        thread.join(10.0)
    outputs.repeat()
    outputs.close()
    assert outputs.join()
    assert {it.action for it in node.messages("~/markers")[-1].markers} == {Marker.DELETE}


def test_a_new_subscriber_sees_the_frame_of_a_camera_that_stands_still(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = ("~/regions", "~/detections", "~/label_image", "~/overlay", "~/overlay/compressed")
    subscribers = dict.fromkeys(topics, 0)
    for topic in topics:
        publisher = node.publishers[topic]
        monkeypatch.setattr(
            publisher, "get_subscription_count", lambda topic=topic: subscribers[topic], raising=False
        )
    outputs.on_frame(frame_result(7))
    outputs.repeat()
    wait_until(lambda: stamps_of(node, "~/regions") == [7])
    monkeypatch.setattr(camera_outputs, "_STILL_S", 0.0)
    for topic in topics:
        before = len(node.messages(topic))
        subscribers[topic] = 1
        outputs.repeat()
        wait_until(lambda topic=topic, before=before: len(node.messages(topic)) == before + 1)
        assert stamps_of(node, topic)[-1] == 7
    sent = {topic: len(node.messages(topic)) for topic in topics}
    outputs.repeat()
    subscribers = dict.fromkeys(topics, 0)
    outputs.repeat()
    outputs.close()
    assert outputs.join()
    assert {topic: len(node.messages(topic)) for topic in topics} == sent


def test_a_frame_serves_a_new_subscriber_while_the_camera_runs(
    node: Node, outputs: CameraOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.on_frame(frame_result(1))
    outputs.repeat()  # its subscribers are new
    outputs.on_frame(frame_result(2))
    monkeypatch.setattr(camera_outputs, "_STILL_S", 0.0)
    outputs.repeat()
    outputs.close()
    assert outputs.join()
    assert stamps_of(node, "~/regions") == [1, 2]
