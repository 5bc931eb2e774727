"""Prompts, regions, captions and statuses: messages ↔ records, and the errors of bad messages."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from builtin_interfaces.msg import Time
from ros_harness import image_of
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from pam_ros import errors
from pam_ros.geometry import crop_mask, rotation_matrix
from pam_ros.json_results import region_json
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import Status
from pam_ros.nodes import conversions, requests
from pam_ros.nodes.conversions import status_of
from pam_ros.nodes.requests import PromptDefaults, prompt_request
from pam_ros.records import (
    Detection,
    Language,
    OrientedBox,
    Region,
    RegionState,
    Task,
    Text,
    VisibleSurface,
)
from pam_ros.runtime.events import CaptionEvent, FrameResult

DEFAULTS = PromptDefaults(tasks=(Task.LABEL,), languages=(Language.EN,))

# --- prompts


def clicks(*points: tuple[float, float], **fields: object) -> PromptMessage:
    return PromptMessage(points=[Point2D(x=x, y=y) for x, y in points], **fields)


def test_prompt_with_clicks_and_box() -> None:
    message = clicks((1.0, 2.0), (3.0, 3.5), point_labels=[1, 0], box=[0.0, 1.0, 5.0, 4.0])
    message.header.stamp.sec, message.header.stamp.nanosec = 3, 7
    request = prompt_request(message, DEFAULTS)
    assert request.prompt is not None
    np.testing.assert_array_equal(request.prompt.points, [[1, 2], [3, 3.5]])
    np.testing.assert_array_equal(request.prompt.labels, [1, 0])
    assert request.prompt.box is not None
    np.testing.assert_array_equal(request.prompt.box, [0, 1, 5, 4])
    assert request.stamp_ns == 3_000_000_007
    assert (request.tasks, request.languages, request.region_id) == ((Task.LABEL,), (Language.EN,), 0)


def test_prompt_defaults_and_requested_tasks() -> None:
    request = prompt_request(
        clicks((1.0, 1.0), tasks=["brief", "label", "brief"], languages=["zh"]), DEFAULTS
    )
    assert request.tasks == (Task.BRIEF, Task.LABEL)
    assert request.languages == (Language.ZH,)
    assert request.stamp_ns is None  # a zero stamp means the newest frame


def test_region_id_alone_describes() -> None:
    assert prompt_request(PromptMessage(region_id=4), DEFAULTS).prompt is None


def test_mask_prompt() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[2, 3] = 255
    request = prompt_request(PromptMessage(mask=image_of(mask)), DEFAULTS)
    assert request.prompt is not None
    assert request.prompt.mask is not None
    assert request.prompt.mask.sum() == 1


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (PromptMessage(), errors.PromptError, "needs a positive click, a box or a mask"),
        (clicks((math.nan, 1.0)), errors.PromptError, "finite"),
        (clicks((1.0, math.inf)), errors.PromptError, "finite"),
        (clicks((1.0, 1.0), point_labels=[1, 1]), errors.PromptError, "1 points but 2 labels"),
        (clicks((1.0, 1.0), point_labels=[7]), errors.PromptError, "labels must be 1"),
        (PromptMessage(box=[5.0, 1.0, 2.0, 3.0]), errors.PromptError, "x1 < x2"),
        (PromptMessage(box=[2.0, 1.0, 2.0, 3.0]), errors.PromptError, "x1 < x2"),
        (PromptMessage(box=[math.nan, 1.0, 2.0, 3.0]), errors.PromptError, "finite"),
        (PromptMessage(box=[1.0, 2.0]), errors.PromptError, "not 2"),
        (PromptMessage(mask=image_of(np.zeros((4, 6), np.uint8))), errors.PromptError, "empty"),
        (PromptMessage(mask=Image(height=4, width=6)), errors.ImageError, "empty"),
        (
            clicks((1.0, 1.0), mask=image_of(np.ones((4, 6), np.uint8))),
            errors.PromptError,
            "cannot be combined",
        ),
        (clicks((1.0, 1.0), tasks=["juggle"]), errors.TaskError, "'juggle'; allowed: label"),
        (clicks((1.0, 1.0), tasks=["clip"]), errors.TaskError, "clips"),
        (clicks((1.0, 1.0), languages=["tlh"]), errors.LanguageError, "allowed: en, zh"),
    ],
)
def test_unusable_prompts_say_why(message: PromptMessage, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prompt_request(message, DEFAULTS)


def test_detections() -> None:
    def detection(x: float, y: float, width: float, height: float) -> Detection2D:
        centre = Pose2D(position=Point2D(x=x, y=y))
        return Detection2D(bbox=BoundingBox2D(center=centre, size_x=width, size_y=height))

    message = Detection2DArray(
        detections=[
            detection(10.0, 20.0, 4.0, 6.0),
            detection(math.nan, 1.0, 1.0, 1.0),
            detection(1.0, 1.0, 0.0, 2.0),
            detection(1.0, 1.0, -3.0, 2.0),
        ]
    )
    message.detections[0].id = "track 7"
    for name, score in (("cup", 0.3), ("kettle", 0.9)):
        hypothesis = ObjectHypothesis(class_id=name, score=score)
        message.detections[0].results.append(ObjectHypothesisWithPose(hypothesis=hypothesis))
    detections, problems = requests.detections_of(message)
    assert detections == [Detection((8.0, 17.0, 12.0, 23.0), source_id="track 7", source_class="kettle")]
    assert len(problems) == 3


# --- regions


def region(
    region_id: int, box: tuple[int, int, int, int], texts: dict | None = None, size: int = 20
) -> Region:
    mask = np.zeros((size, size), np.bool_)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    box_xyxy, cropped = crop_mask(mask)
    return Region(
        region_id=region_id,
        state=RegionState.TRACKED if cropped.size else RegionState.LOST,
        box_xyxy=box_xyxy,
        mask=cropped,
        mask_score=0.5,
        presence_score=0.75,
        texts=texts or {},
        created_ns=1_000_000_002,
        last_visible_ns=2_000_000_001,
    )


TEXTS = {
    (Task.LABEL, Language.ZH): Text("水壶", 7, confidence=0.75),
    (Task.LABEL, Language.EN): Text("kettle", 5),
    (Task.BRIEF, Language.EN): Text("A kettle.", 9, confidence=0.5),
}


def test_region_message() -> None:
    message = conversions.region_message(region(3, (2, 4, 8, 14), TEXTS), Header(frame_id="c"))
    assert (message.id, message.state) == (3, message.TRACKED)
    assert (message.bbox.center.position.x, message.bbox.center.position.y) == (5.0, 9.0)
    assert (message.bbox.size_x, message.bbox.size_y) == (6.0, 10.0)
    roi = message.roi
    assert (roi.x_offset, roi.y_offset, roi.width, roi.height) == (2, 4, 6, 10)
    assert (message.mask.width, message.mask.height, message.mask.encoding) == (6, 10, "mono8")
    assert set(message.mask.data) == {255}
    assert [text.language for text in message.texts] == ["zh", "en"]
    assert (message.texts[0].label, message.texts[0].stamp.nanosec) == ("水壶", 7)
    assert (message.texts[1].label, message.texts[1].brief_caption) == ("kettle", "A kettle.")
    assert message.texts[1].stamp.nanosec == 9
    assert (message.created.sec, message.created.nanosec) == (1, 2)
    assert (message.last_visible.sec, message.last_visible.nanosec) == (2, 1)
    chinese, english = message.texts
    assert (chinese.label_confidence, english.brief_caption_confidence) == (0.75, 0.5)
    assert english.label_confidence == english.explanation_confidence == -1.0
    assert not (message.position_known or message.size_known)


def test_region_message_without_mask() -> None:
    whole = region(3, (2, 4, 8, 14))
    message = conversions.region_message(whole, Header(), with_mask=False)
    assert (message.mask.width, len(message.mask.data)) == (0, 0)
    assert (message.roi.width, message.bbox.size_y) == (6, 10.0)
    assert conversions.region_record(message).mask.size == 0


def test_detection_that_a_region_was_made_from_is_named_in_its_message() -> None:
    found = replace(region(3, (2, 4, 8, 14)), source_id="7", source_class="kettle")
    message = conversions.region_message(found, Header())
    assert (message.source_id, message.source_class) == ("7", "kettle")


@pytest.mark.parametrize("box", [(2, 4, 8, 14), (0, 0, 0, 0)], ids=["tracked", "lost"])
def test_region_survives_its_message(box: tuple[int, int, int, int]) -> None:
    surface = VisibleSurface(np.array([0.1, -0.2, 1.5]), np.array([0.05, 0.06, 0.07]))
    known = {"source_id": "7", "source_class": "kettle", "surface": surface if box[2] else None}
    sent = replace(region(3, box, TEXTS), **known)
    read = conversions.region_record(conversions.region_message(sent, Header()))
    np.testing.assert_array_equal(read.box_xyxy, sent.box_xyxy)
    np.testing.assert_array_equal(read.mask, sent.mask)
    assert list(read.texts) == list(sent.texts)
    assert {key: (text.text, text.confidence) for key, text in read.texts.items()} == {
        key: (text.text, text.confidence) for key, text in sent.texts.items()
    }
    assert region_json(read) == region_json(sent)


def test_a_text_that_is_not_ready_keeps_its_place_in_message_and_json() -> None:
    english, chinese = (Task.LABEL, Language.EN), (Task.LABEL, Language.ZH)
    sent = replace(
        region(3, (2, 4, 8, 14), {chinese: Text("水壶", 7, 0.75)}),
        asked=(english, (Task.EXPLAIN, Language.EN), chinese),
    )
    message = conversions.region_message(sent, Header())
    assert [(it.language, it.label, list(it.pending)) for it in message.texts] == [
        ("en", "", ["label", "explain"]),
        ("zh", "水壶", []),
    ]
    read = conversions.region_record(message)
    assert (read.asked, read.name) == (sent.asked, "")
    assert region_json(read) == region_json(sent)
    assert region_json(sent)["texts"][0] == {"language": "en", "pending": ["label", "explain"]}
    ready = replace(sent, texts={**sent.texts, english: Text("kettle", 7, 0.5)})
    assert conversions.region_record(conversions.region_message(ready, Header())).name == "kettle"


def test_detections_in_space_have_centroid_and_turned_box() -> None:
    turn = cv2.Rodrigues(np.array([0.3, -0.4, 1.2]))[0]
    box = OrientedBox(np.array([0.1, 0.2, 1.0]), np.array([0.4, 0.3, 0.1]), turn)
    surface = VisibleSurface(np.array([0.11, 0.21, 0.95]), np.array([0.4, 0.4, 0.2]), box)
    seen, unmeasured = replace(region(3, (2, 4, 8, 14)), surface=surface), region(4, (2, 4, 8, 14))
    header = Header(frame_id="optical")
    message = conversions.detections_3d_message([seen, unmeasured], {3: "kettle"}, header)
    (detection,) = message.detections
    assert (message.header.frame_id, detection.header.frame_id, detection.id) == ("optical", "optical", "3")
    (result,) = detection.results
    assert (result.hypothesis.class_id, result.pose.pose.position.z) == ("kettle", 0.95)
    assert (detection.bbox.center.position.y, detection.bbox.size.x) == (0.2, 0.4)
    given = detection.bbox.center.orientation
    np.testing.assert_allclose(rotation_matrix((given.x, given.y, given.z, given.w)), turn, atol=1e-9)


def test_lost_region_message() -> None:
    message = conversions.region_message(region(3, (0, 0, 0, 0)), Header())
    assert message.state == message.LOST
    assert (message.roi.width, message.bbox.size_x, len(message.mask.data)) == (0, 0.0, 0)


def test_label_image_smaller_region_wins() -> None:
    labels = conversions.label_image([region(1, (5, 5, 8, 8)), region(2, (0, 0, 10, 10))], (20, 20))
    assert labels.dtype == np.uint16
    assert (labels[6, 6], labels[1, 1], labels[15, 15]) == (1, 2, 0)
    huge = region(70_000, (0, 0, 10, 10))
    assert conversions.label_image([huge], (20, 20)).max() == 0


def test_label_info_and_detections() -> None:
    regions = (region(1, (5, 5, 8, 8)), region(2, (0, 0, 10, 10)), region(3, (0, 0, 0, 0)))
    info = conversions.label_info({1: "杯", 70_000: "cup"}, Header())
    assert [(it.class_id, it.class_name) for it in info.class_map] == [(1, "杯")]
    detections = conversions.detections_message(regions, {1: "杯"}, Header()).detections
    assert [(it.id, it.results[0].hypothesis.class_id) for it in detections] == [("1", "杯"), ("2", "")]


def test_region_array_and_caption() -> None:
    result = FrameResult(
        camera="c",
        stamp_ns=5,
        frame_id="f",
        size=(20, 30),
        regions=(region(1, (5, 5, 8, 8)),),
        image=np.zeros((20, 30, 3), np.uint8),
        latency_s=0.1,
    )
    message = conversions.region_array(result, Header())
    assert (message.image_height, message.image_width, len(message.regions)) == (20, 30, 1)
    event = CaptionEvent(
        "c", 1, "f", 1_000_000_000, 3_000_000_005, 2, 16, "It moves.", True, Language.EN, 0.5
    )
    caption = conversions.caption_message(event)
    assert (caption.header.stamp.sec, caption.header.stamp.nanosec, caption.header.frame_id) == (3, 5, "f")
    assert (caption.region_id, caption.sequence, caption.frame_count, caption.final) == (1, 2, 16, True)
    assert (caption.clip_start.sec, caption.text, caption.language) == (1, "It moves.", "en")
    assert (caption.confidence, caption.clip_too_thin, caption.summary) == (-1.0, False, False)


# --- statuses and times


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, Status.OK),
        (errors.PromptError("x"), Status.INVALID_INPUT),
        (errors.ImageError("x"), Status.INVALID_INPUT),
        (errors.UnknownRegionError("x"), Status.UNKNOWN_REGION),
        (errors.NothingFoundError(0.1, 0.9), Status.NOTHING_FOUND),
        (errors.TextServerError("x"), Status.TEXT_SERVER),
        (errors.NoFrameError("x"), Status.NO_FRAME),
        (errors.StaleFrameError("x"), Status.NO_FRAME),
        (errors.NotActiveError("x"), Status.NOT_ACTIVE),
        (errors.CapacityError("x"), Status.CAPACITY),
        (errors.CancelledError("x"), Status.CANCELLED),
        (errors.InferenceError("x"), Status.INTERNAL),
        (RuntimeError("x"), Status.INTERNAL),
    ],
)
def test_status_of_every_error(error: Exception | None, code: int) -> None:
    status = status_of(error)
    assert status.code == code
    assert status.message.endswith("" if error is None else str(error)) and bool(status.message) == bool(
        error
    )


@pytest.mark.parametrize("nanoseconds", [0, 1, 1_700_000_000_123_456_789])
def test_times_round_trip(nanoseconds: int) -> None:
    assert conversions.stamp_ns(conversions.time_message(nanoseconds)) == nanoseconds


@pytest.mark.parametrize("nanosec", [10**9, 2**32 - 1])
def test_a_stamp_that_is_no_time_is_refused(nanosec: int) -> None:
    with pytest.raises(errors.InputError, match=f"nanosec {nanosec}; allowed: 0 to 999999999"):
        conversions.stamp_ns(Time(sec=2**31 - 1, nanosec=nanosec))
