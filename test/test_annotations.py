"""`~/image_annotations`: what Foxglove draws; and the layout that shows it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from pam_ros.geometry import crop_mask
from pam_ros.nodes.outputs import annotations
from pam_ros.nodes.outputs.snapshot import Caption, Snapshot
from pam_ros.records import Language, Region, RegionState
from pam_ros.runtime.events import FrameResult
from pam_ros.runtime.overlay import region_colour

LAYOUT = json.loads(
    (Path(__file__).resolve().parents[1] / "config" / "foxglove.json").read_text(encoding="utf-8")
)
SIZE = (240, 320)


def region(region_id: int, state: RegionState = RegionState.TRACKED) -> Region:
    mask = cv2.circle(np.zeros(SIZE, np.uint8), (100, 120), 30, 1, -1) > 0
    box, cropped = crop_mask(mask)
    if state is RegionState.LOST:
        box, cropped = np.zeros(4, np.float32), cropped[:0, :0]
    return Region(region_id, state, box, cropped, 1.0, 1.0, {}, 0, 0)


def message_of(*regions: Region, last_seen: dict | None = None, captions: dict | None = None) -> Any:
    messages = pytest.importorskip("foxglove_msgs.msg", reason="foxglove_msgs is not installed")
    result = FrameResult("camera", 7, "optical", SIZE, regions, np.zeros((*SIZE, 3), np.uint8), 0.0)
    captions = captions or {1: (Caption("It boils", Language.EN, False),)}
    return annotations.annotations_message(
        messages, Snapshot(result, {1: "kettle"}, captions, last_seen or {})
    )


def test_a_region_has_outline_label_and_growing_caption() -> None:
    message = message_of(region(1))
    (points,), (text, caption) = message.points, message.texts
    assert message.timestamp.nanosec == points.timestamp.nanosec == text.timestamp.nanosec == 7
    assert points.type == points.LINE_LOOP
    places = np.array([(it.x, it.y) for it in points.points])
    # From the centre of pixel (100, 120), which is (100.5, 120.5) for Foxglove.
    np.testing.assert_allclose(np.hypot(*(places - (100.5, 120.5)).T), 30, atol=1.5)
    colour = points.outline_color
    np.testing.assert_allclose(
        (colour.r, colour.g, colour.b, colour.a), (*np.array(region_colour(1)) / 255, 1)
    )
    assert (text.text, text.position.x, text.position.y) == ("#1 kettle", 70, 90)
    assert (caption.text, caption.position.x, caption.position.y) == ("#1 It boils", 0, 240)


def test_a_long_caption_is_wrapped_and_a_label_at_the_edge_moves_in() -> None:
    mask = np.zeros(SIZE, np.bool_)
    mask[100:150, 290:315] = True
    box, cropped = crop_mask(mask)
    at_edge = replace(region(1), box_xyxy=box, mask=cropped)
    long = "Then the kettle is put down beside the toaster and a hand lifts the mug"
    label, *lines = message_of(at_edge, captions={1: (Caption(long, Language.EN, True),)}).texts
    assert width_of(label) + label.position.x <= SIZE[1]
    assert " ".join(line.text for line in reversed(lines)) == f"#1 {long}"
    assert [line.position.y for line in lines] == [240, 226]
    assert all(width_of(line) <= SIZE[1] for line in lines)


def test_chinese_captions_fit_and_many_leave_the_image_visible() -> None:
    text = "然后水壶被放在烤面包机旁边的桌子上，一只手把杯子拿起来放到架子上面"
    lines = message_of(region(1), captions={1: (Caption(text, Language.ZH, True),)}).texts[1:]
    assert len(lines) == 2
    assert all(width_of(line) <= SIZE[1] for line in lines)
    many = {region_id: (Caption("A word " * 40, Language.EN, True),) for region_id in range(1, 17)}
    message = message_of(*(region(region_id) for region_id in many), captions=many)
    band = message.texts[16:]
    assert min(line.position.y - line.font_size for line in band) > 0.5 * SIZE[0]
    assert {line.text.split()[0] for line in band} == {f"#{number}" for number in range(1, len(band) + 1)}
    narrow = annotations.annotations_message(
        importlib.import_module("foxglove_msgs.msg"),
        Snapshot(
            FrameResult("camera", 7, "optical", (240, 4), (region(1),), np.zeros((240, 4, 3), np.uint8), 0.0),
            {},
            {1: (Caption("It boils", Language.EN, True),)},
            {},
        ),
    )
    assert narrow.texts


def width_of(text: Any) -> float:
    """Of a text as Foxglove draws it, about, pixels."""
    return text.font_size * sum(0.6 if char.isascii() else 1.0 for char in text.text)


def test_a_lost_region_is_a_thin_outline_where_it_was() -> None:
    message = message_of(region(1, RegionState.LOST), last_seen={1: region(1)})
    assert (message.points[0].thickness, message.points[0].fill_color.a) == (1.0, 0.0)
    assert message.texts[0].text == "#1 kettle (lost)"
    assert not message_of(region(1, RegionState.LOST)).points


def test_without_foxglove_msgs_the_node_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foxglove_msgs.msg", None)  # importing it fails
    with pytest.raises(ImportError):
        importlib.import_module("foxglove_msgs.msg")
    assert annotations.annotations_output(None, None) is None  # type: ignore[arg-type]


# --- the layout


def panels(node: Any) -> list[str]:
    """Ids of the panels in Foxglove's tree of splits."""
    if isinstance(node, str):
        return [node]
    assert node.keys() == {"direction", "first", "second", "splitPercentage"}
    assert node["direction"] in ("row", "column")
    return panels(node["first"]) + panels(node["second"])


def test_every_panel_of_the_layout_is_configured_and_shown() -> None:
    shown = panels(LAYOUT["layout"])
    assert sorted(shown) == sorted(LAYOUT["configById"])
    assert {name.partition("!")[0] for name in shown} == {"Image", "3D", "RawMessages", "DiagnosticSummary"}


def test_the_layout_shows_topics_of_the_node() -> None:
    by_id = LAYOUT["configById"]
    image = by_id["Image!pam"]["imageMode"]
    assert (image["imageTopic"], image["calibrationTopic"]) == ("/image", "/camera_info")
    assert image["annotations"] == {"/pam/image_annotations": {"visible": True}}
    assert by_id["3D!pam"]["topics"] == {"/pam/markers": {"visible": True}}
    assert by_id["3D!pam"]["publish"]["pointTopic"] == "/clicked_point"
    assert by_id["RawMessages!captions"]["topicPath"] == "/pam/streaming_captions"
    assert by_id["DiagnosticSummary!pam"]["topicToRender"] == "/diagnostics"
