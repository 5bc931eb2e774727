"""Boxes of a detector: known objects are left to the tracker, new ones become regions."""

import numpy as np
from stepped_engine import box, make_frame, ns, stepped

from pam_ros.records import Detection, Language, Task
from pam_ros.runtime.failures import rejected_detections
from pam_ros.runtime.requests import MAX_DETECTIONS


def test_detections_become_regions_once():
    rig = stepped()
    rig.frame(1.0)
    rig.detect((5, 5, 15, 15), (30, 20, 50, 35))
    assert rig.reported_ids[-1] == [1, 2]
    rig.model.calls.clear()
    rig.detect((6, 5, 16, 15), (31, 20, 50, 36))
    assert rig.model.calls == []  # known: left to the tracker
    rig.detect((6, 5, 16, 15), (20, 5, 28, 15))
    assert rig.reported_ids[-1] == [1, 2, 3]
    assert rig.events.warnings == []


def test_overlapping_detections_of_one_message_are_one_region():
    rig = stepped()
    rig.frame(1.0)
    rig.detect((5, 5, 15, 15), (5, 6, 15, 16), (30, 20, 50, 35))
    assert rig.reported_ids[-1] == [1, 2]


def test_the_overlap_of_a_known_detection_is_an_option():
    for iou, ids in ((0.3, [1]), (0.6, [1, 2])):
        rig = stepped(detection_iou=iou)
        rig.frame(1.0)
        rig.detect((0, 0, 20, 20))
        rig.detect((0, 7, 20, 27))  # IoU 260 / 540 = 0.48
        rig.frame(1.1)
        assert rig.reported_ids[-1] == ids


def test_detections_of_an_earlier_frame_are_compared_with_regions_as_they_were_then():
    rig = stepped()
    rig.frame(1.0)
    rig.region(box(0, 0, 10, 10))
    rig.region(box(40, 20, 50, 30), region_id=1, stamp_ns=ns(1.0))
    track = rig.engine._flow._cameras["front"].regions[1]
    track.boxes.clear()
    track.boxes.extend([(ns(1.0), np.array([0, 0, 10, 10])), (ns(1.1), np.array([40, 20, 50, 30]))])
    rig.frame(1.1)
    rig.detect((0, 0, 10, 10), stamp_s=1.0)
    assert rig.reported_ids[-1] == [1]  # the region was there at 1.0
    rig.detect((0, 0, 10, 10), stamp_s=1.1)
    assert rig.reported_ids[-1] == [1, 2]  # the region was elsewhere at 1.1: another object


def test_detections_are_not_compared_with_boxes_of_another_resolution():
    rig = stepped()
    rig.frame(1.0, size=(40, 60))
    rig.detect((0, 0, 20, 20))
    rig.frame(1.1, size=(80, 120))  # the region is (0, 0, 40, 40) now
    rig.detect((0, 0, 20, 20), stamp_s=1.1)
    assert rig.reported_ids[-1] == [1, 2]
    track = rig.engine._flow._cameras["front"].regions[1]
    assert [box.tolist() for _, box in track.boxes] == [[0, 0, 40, 40]]


def test_detections_of_an_earlier_frame_are_segmented_there():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.detect((5, 5, 15, 15), stamp_s=1.0)
    (region,) = rig.events.frames[-1].regions
    assert (region.created_ns, region.last_visible_ns) == (ns(1.0), ns(1.2))


def test_a_detector_with_boxes_much_larger_than_masks_makes_one_region():
    rig = stepped()
    rig.frame(1.0)
    model_box, detector_box = (10, 10, 20, 20), (5, 5, 30, 30)

    original = rig.model._observe
    rig.model._observe = lambda features, memory, _: original(
        features, memory, tuple(c / s for c, s in zip(model_box, (60, 40, 60, 40), strict=True))
    )
    rig.detect(detector_box)
    rig.detect(detector_box)
    assert rig.reported_ids[-1] == [1]


def test_bad_detections_are_warnings_and_the_others_become_regions():
    rig = stepped(max_regions=2)
    rig.detect((1, 1, 5, 5))
    assert "no frame has arrived" in rig.events.warnings[-1][1]
    rig.frame(10.0)
    rig.detect((1, 1, 5, 5), stamp_s=2.0)
    assert "8.000 s older" in rig.events.warnings[-1][1]
    rig.events.warnings.clear()
    rig.detect((float("nan"), 1, 5, 5), (9, 9, 3, 12), (500, 500, 600, 600), (5, 5, 15, 15))
    assert rig.reported_ids[-1] == [1]
    malformed, outside = [message for _, message in rig.events.warnings]
    assert malformed.startswith("2 detections were rejected: a box must be finite")
    assert "; a box must be (x1, y1, x2, y2) with x1 < x2" in malformed
    assert outside.startswith("a detection was rejected: box [500.0, 500.0, 600.0, 600.0] is outside")
    rig.detect((20, 20, 30, 30), (40, 20, 50, 30))
    assert rig.reported_ids[-1] == [1, 2]
    assert "the limit is 2" in rig.events.warnings[-1][1]


def test_a_detection_of_nothing_makes_no_region():
    rig = stepped()
    rig.frame(1.0, 0)
    rig.detect((5.123456, 5, 15, 1 / 3 + 15))
    rig.frame(1.1)
    assert rig.reported_ids[-1] == []
    assert "nothing found in the box [5.12, 5.0, 15.0, 15.33] (score 0.05)" in rig.events.warnings[-1][1]


def test_detections_get_texts_if_tasks_are_given():
    rig = stepped()
    rig.frame(1.0)
    rig.engine.detections(
        "front",
        [Detection(each) for each in [(5, 5, 15, 15), (30, 20, 50, 35)]],
        None,
        (Task.LABEL,),
        (Language.EN,),
    )
    rig.settle()
    (batch,) = rig.model.batches
    assert len(batch) == 2
    assert {event.region_id for event in rig.events.texts if event.final} == {1, 2}


def test_detection_messages_do_not_pile_up():
    rig = stepped()
    for k in range(12):
        rig.engine.submit_frame(make_frame(1.0 + k / 10))
        rig.engine.detections(
            "front", [Detection(each) for each in [(4 * k, 5, 4 * k + 3, 15)]], ns(1.0 + k / 10), (), ()
        )
    rig.settle()
    rig.frame(3.0)
    assert rig.reported_ids[-1] == [1, 2, 3, 4]


def test_a_flood_of_boxes_costs_little_and_gives_one_line():
    rig = stepped(max_regions=4)
    rig.frame(1.0, size=(400, 600))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 390, (MAX_DETECTIONS, 2))
    boxes = [(x, y, x + 9, y + 9) for x, y in corners.tolist()]
    rig.detect(*boxes)
    assert rig.reported_ids[-1] == [1, 2, 3, 4]
    assert [count for name, count in rig.model.calls if name == "segment"] == [4]
    ((_, line),) = rig.events.warnings
    rejected = int(line.split(" ")[0])
    assert MAX_DETECTIONS - 60 < rejected <= MAX_DETECTIONS - 4  # some overlap another
    assert f"has 4 regions, the limit is 4; remove one first ({rejected} times)" in line

    rig.events.warnings.clear()
    rig.model.calls.clear()
    rig.detect(*[(1, 1, 5, 5)] * (MAX_DETECTIONS + 1))
    assert rig.model.calls == []
    ((_, line),) = rig.events.warnings
    assert f"a message has {MAX_DETECTIONS + 1} detections; at most {MAX_DETECTIONS} are allowed" in line


def test_rejections_are_summarised_by_kind():
    problems = [
        *[f"detection {k} has centre (nan, {k / 3})" for k in range(900)],
        *[f"box [{k}, 2, 3, 4] is outside the image" for k in range(70)],
        *[f"class {name!r} is unknown" for name in ("a", "b")],
        "the model failed",
        "no room",
    ]
    assert rejected_detections(problems) == (
        "974 detections were rejected: detection 0 has centre (nan, 0.0) (900 times); "
        "box [0, 2, 3, 4] is outside the image (70 times); class 'a' is unknown (2 times); "
        "and 2 other reasons"
    )
