"""A real `pam_node` with a fake model: images and prompts in on topics, results out on topics."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import Point
from rclpy.qos import QoSReliabilityPolicy
from ros_harness import (
    FAKE_ACTIVE,
    LATCHED,
    Camera,
    Client,
    Diagnostics,
    Process,
    click,
    image_of,
    mouse,
    new_frames,
    pam,
    stamp_of,
    wait_until,
)
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from pam_ros.msg import Prompt, Region, RegionArray, StreamingCaption
from pam_ros.nodes.images import ImageReader, rgb_from_image
from pam_ros.srv import RemoveRegion


def regions_of(messages: list[RegionArray]) -> list[Region]:
    return list(messages[-1].regions) if messages else []


def labelled(messages: list[RegionArray]) -> bool:
    return any(text.label for region in regions_of(messages) for text in region.texts)


def test_results_carry_stamp_and_frame_of_their_image(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot, frame_id="left_optical", size=(40, 60)) as camera:
        robot.perceive(click(20, 20))
        wait_until(lambda: len(messages) > 10 and regions_of(messages), "results")
    for message in messages:
        assert stamp_of(message) in camera.sent_ns
        assert message.header.frame_id == "left_optical"
        assert (message.image_height, message.image_width) == (40, 60)
    (region,) = regions_of(messages)
    assert region.mask.header.frame_id == "left_optical"
    assert stamp_of(region.mask) == stamp_of(messages[-1])


def test_no_large_image_is_lost_on_the_way(robot: Client) -> None:
    diagnostics = Diagnostics.of(robot)

    def received() -> int:
        status = diagnostics.wait_for("/pam: camera", lambda status: status.level != b"\x03")
        return int(Diagnostics.values(status)["images received"])

    with Camera(robot, rate_hz=10.0, size=(1080, 1920)) as camera:
        before, sent = received(), len(camera.sent_ns)
        wait_until(lambda: len(camera.sent_ns) - sent >= 40, "images")
        assert received() - before >= 30


def test_every_prompt_topic_makes_a_region(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    mask = np.zeros((48, 64), np.uint8)
    mask[20:30, 40:60] = 255
    box = BoundingBox2D(center=Pose2D(position=Point2D(x=10.0, y=40.0)), size_x=8.0, size_y=6.0)
    prompts = [
        ("/image_mouse_left", Point, mouse(10, 10), (6, 6, 8, 8)),
        ("/pam/prompt", Prompt, Prompt(box=[30.0, 2.0, 40.0, 12.0]), (30, 2, 10, 10)),
        ("/prompt_mask", Image, image_of(mask), (40, 20, 20, 10)),
        (
            "/detections",
            Detection2DArray,
            Detection2DArray(detections=[Detection2D(bbox=box)]),
            (6, 37, 8, 6),
        ),
    ]
    with Camera(robot):
        for count, (topic, kind, message, expected) in enumerate(prompts, start=1):
            robot.publisher(kind, topic).publish(message)
            wait_until(lambda count=count: len(regions_of(messages)) == count, f"a region from {topic}")
            roi = regions_of(messages)[-1].roi
            assert (roi.x_offset, roi.y_offset, roi.width, roi.height) == expected, topic
        wait_until(lambda: all(region.texts for region in regions_of(messages)), "labels of all")
    ids = [region.id for region in regions_of(messages)]
    assert ids == sorted(set(ids))


def test_a_detection_of_a_known_region_makes_no_new_one(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    detections = robot.publisher(Detection2DArray, "/detections")
    with Camera(robot) as camera:
        for _ in range(3):
            message = Detection2DArray()
            box = BoundingBox2D(center=Pose2D(position=Point2D(x=30.0, y=20.0)), size_x=10.0, size_y=10.0)
            message.detections.append(Detection2D(bbox=box))
            stamp_ns = camera.sent_ns[-1]
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            detections.publish(message)
            time.sleep(0.2)
        assert len(regions_of(messages)) == 1


def test_id_and_class_of_a_detection_travel_with_its_region(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    detection = Detection2D(id="track 7")
    detection.bbox = BoundingBox2D(center=Pose2D(position=Point2D(x=30.0, y=20.0)), size_x=10.0, size_y=10.0)
    for name, score in (("cup", 0.2), ("kettle", 0.7)):
        hypothesis = ObjectHypothesis(class_id=name, score=score)
        detection.results.append(ObjectHypothesisWithPose(hypothesis=hypothesis))
    with Camera(robot):
        robot.publisher(Detection2DArray, "/detections").publish(Detection2DArray(detections=[detection]))
        (found,) = wait_until(lambda: regions_of(messages), "the detection's region")
        assert (found.source_id, found.source_class) == ("track 7", "kettle")
        described = robot.perceive(Prompt(region_id=found.id), without_mask=True).region
        assert (described.source_id, described.source_class) == ("track 7", "kettle")
        clicked = robot.perceive(click(50, 40)).region
        assert (clicked.source_id, clicked.source_class) == ("", "")


def test_label_image_names_and_detections(robot: Client) -> None:
    labels = robot.collect(Image, "/pam/label_image")
    detections = robot.collect(Detection2DArray, "/pam/detections")
    with Camera(robot):
        region_id = robot.perceive(Prompt(box=[10.0, 20.0, 30.0, 40.0])).region.id
        wait_until(lambda: detections and detections[-1].detections, "detections")
        detection = detections[-1].detections[0]
        wait_until(lambda: labels and any(labels[-1].data), "a label image with the region")
    picture = np.frombuffer(labels[-1].data, np.uint16).reshape(48, 64)
    assert labels[-1].encoding == "16UC1"
    assert set(np.unique(picture)) == {0, region_id}
    assert (picture[20:40, 10:30] == region_id).all()
    assert (detection.id, detection.bbox.size_x) == (str(region_id), 20.0)
    # A late subscriber gets the names, too.
    info = robot.collect(LabelInfo, "/pam/label_info", LATCHED)
    wait_until(lambda: info, "the latched names")
    names = {it.class_id: it.class_name for it in info[-1].class_map}
    assert names[region_id].startswith("label-en")


def test_overlay_is_drawn_raw_and_compressed(robot: Client) -> None:
    raw = robot.collect(Image, "/pam/overlay", 1)
    compressed = robot.collect(CompressedImage, "/pam/overlay/compressed", 1)
    with Camera(robot, shade=100, size=(240, 320)) as camera:
        robot.perceive(Prompt(box=[50.0, 100.0, 150.0, 200.0]))
        del raw[:], compressed[:]
        wait_until(lambda: raw and compressed, "overlays")
    assert stamp_of(raw[0]) in camera.sent_ns
    picture = rgb_from_image(raw[-1])
    assert picture.shape == (240, 320, 3)
    assert (picture[110:190, 60:140] != 100).any(axis=2).all(), "no tint"
    assert (picture[60:99, 50:100] != 100).any(), "no name"
    assert (picture[205:, 160:] == 100).all(), "drawn where nothing is"
    assert ImageReader().from_compressed(compressed[-1]).shape == (240, 320, 3)


def test_text_of_a_still_picture_reaches_the_topic(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    camera = Camera(robot)
    sent_ns = camera.send()
    wait_until(lambda: messages and stamp_of(messages[-1]) == sent_ns, "the result")
    robot.publisher(Point, "/image_mouse_left").publish(mouse(30, 30))
    wait_until(lambda: labelled(messages), "the label")
    assert stamp_of(messages[-1]) == sent_ns


def test_streaming_captions(robot: Client) -> None:
    captions = robot.collect(StreamingCaption, "/pam/streaming_captions", 200)
    assert robot.set_parameter("/pam_manager", "streaming.period_s", 0.5) == ""
    assert robot.set_parameter("/pam_manager", "streaming.enabled", True) == ""
    with Camera(robot) as camera:
        region_id = robot.perceive(click(30, 30)).region.id
        wait_until(lambda: sum(caption.final for caption in captions) >= 3, "three captions")
    assert robot.set_parameter("/pam_manager", "streaming.enabled", False) == ""
    finals = [caption for caption in captions if caption.final]
    assert [caption.sequence for caption in finals] == list(range(len(finals)))
    for caption in finals:
        assert caption.region_id == region_id
        assert stamp_of(caption) in camera.sent_ns
        clip_s = stamp_of(caption) / 1e9 - caption.clip_start.sec - caption.clip_start.nanosec / 1e9
        assert 0.4 < clip_s < 1.0
        assert caption.language == "en"
        assert caption.frame_count > 1


def test_a_caption_finished_after_the_last_picture_is_drawn() -> None:
    with pam("model:=fake:words=40,step_s=0.05", "autostart:=true") as (robot, _):
        robot.wait_for_active()
        assert robot.set_parameter("/pam_manager", "streaming.period_s", 0.5) == ""
        assert robot.set_parameter("/pam_manager", "streaming.enabled", True) == ""
        overlays = robot.collect(Image, "/pam/overlay", 200)
        captions = robot.collect(StreamingCaption, "/pam/streaming_captions", 200)
        with Camera(robot) as camera:
            robot.perceive(click(30, 30))
            wait_until(lambda: captions, "a growing caption")
        last_ns = camera.sent_ns[-1]
        wait_until(lambda: overlays and stamp_of(overlays[-1]) == last_ns, "the last picture's overlay")
        assert not any(caption.final for caption in captions), "the model was too fast for this test"
        drawn = len(overlays)
        wait_until(lambda: len(overlays) > drawn, "the overlay with the growing caption")
        wait_until(lambda: captions[-1].final, "the finished caption")
        wait_until(lambda: overlays[-1].data != overlays[drawn].data, "the overlay with the finished caption")
    assert stamp_of(overlays[-1]) == last_ns


def test_dead_publisher_and_a_new_one(robot: Client) -> None:
    messages, diagnostics = robot.collect(RegionArray, "/pam/regions"), Diagnostics.of(robot)
    with Camera(robot, dies=True):
        region_id = robot.perceive(click(30, 30)).region.id
        # A busy machine loses images, which is a warning.
        diagnostics.wait_for("/pam: camera", lambda status: status.level in (b"\x00", b"\x01"))
    stale = diagnostics.wait_for("/pam: camera", lambda status: status.level == b"\x03")
    assert "no image on /image for" in stale.message
    answer = robot.perceive(Prompt(region_id=region_id))  # it knows the last picture still
    assert answer.status.code == 0, answer.status
    with Camera(robot, size=(96, 128)) as camera:  # a new one, of another resolution
        wait_until(lambda: len(messages) and stamp_of(messages[-1]) in camera.sent_ns, "results")
        assert [region.id for region in regions_of(messages)] == [region_id]
        assert (messages[-1].image_height, messages[-1].image_width) == (96, 128)
        assert regions_of(messages)[0].roi.width == 16  # the region grew with the picture


def test_images_are_subscribed_to_anew_when_a_publisher_has_gone() -> None:
    """It frees what the middleware keeps of that publisher; another one's images go on, overrides stay."""
    with pam(*FAKE_ACTIVE, "qos_overrides./image.subscription.reliability:=reliable") as (robot, process):
        robot.wait_for_active()
        messages = robot.collect(RegionArray, "/pam/regions")

        def subscription() -> tuple[bytes, QoSReliabilityPolicy] | None:
            infos = robot.node.get_subscriptions_info_by_topic("/image")
            found = [(bytes(each.endpoint_gid), each.qos_profile.reliability) for each in infos]
            return found[0] if len(found) == 1 else None

        stays = robot.publisher(Image, "/image", 1)
        goes = robot.node.create_publisher(Image, "/image", 1)
        wait_until(lambda: goes.get_subscription_count() == 1, "the node on both publishers")
        before = wait_until(subscription, "one subscription")
        robot.node.destroy_publisher(goes)
        after = wait_until(lambda: (now := subscription()) and now != before and now, "another one")
        assert before[1] == after[1] == QoSReliabilityPolicy.RELIABLE

        def seen() -> bool:
            stays.publish(image_of(np.zeros((48, 64, 3), np.uint8)))
            time.sleep(0.05)
            return bool(messages)

        assert not messages
        wait_until(seen, "an image of the other publisher")
        assert process.end() == 0


def test_zero_stamps_are_replaced_and_logged_once(active: tuple[Client, Process], robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    images = robot.publisher(Image, "/image", 1)
    before_ns = time.time_ns()
    for _ in range(5):
        images.publish(image_of(np.full((48, 64, 3), 50, np.uint8)))
        time.sleep(0.05)
    wait_until(lambda: messages, "results")
    assert before_ns <= stamp_of(messages[-1]) <= time.time_ns()
    assert active[1].log().count("zero stamp") == 1


def test_prompt_parameters_change_while_running(robot: Client) -> None:
    assert robot.set_parameter("/pam", "prompt.tasks", ["brief", "label"]) == ""
    assert robot.set_parameter("/pam", "prompt.languages", ["zh"]) == ""
    with Camera(robot):
        text = robot.perceive(click(30, 30)).region.texts[0]
    assert (text.language, text.explanation) == ("zh", "")
    assert text.label.startswith("label-zh")
    assert text.brief_caption.startswith("brief-zh")
    assert robot.set_parameter("/pam", "prompt.tasks", ["label"]) == ""
    assert robot.set_parameter("/pam", "prompt.languages", ["en"]) == ""


def test_removed_region_is_gone(robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot):
        first, second = (robot.perceive(click(x, 20)).region.id for x in (10, 50))
        response = robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=first))
        assert response.status.code == 0
        wait_until(lambda: [region.id for region in regions_of(messages)] == [second], "one region")


def test_texts_do_not_hold_up_masks() -> None:
    """A text of 200 steps of 20 ms beside a 20 Hz camera: nearly every frame gets its masks meanwhile."""
    with pam("model:=fake:words=200,step_s=0.02", "autostart:=true") as (robot, process):
        robot.wait_for_active()
        messages = robot.collect(RegionArray, "/pam/regions")
        with Camera(robot) as camera:
            robot.publisher(Point, "/image_mouse_left").publish(mouse(30, 30))
            wait_until(lambda: regions_of(messages), "the mask")
            assert not labelled(messages), "the mask came after the text"
            sent, received = len(camera.sent_ns), len(messages)
            time.sleep(2.0)
            assert not labelled(messages), "the text was too short for this test"
            sent, frames = len(camera.sent_ns) - sent, len(new_frames(messages, received))
            assert frames > 0.8 * sent, f"{frames} results of {sent} frames"
            wait_until(lambda: labelled(messages), "the text")
        assert process.end() == 0


def test_compressed_images_and_remappings() -> None:
    remap = ("-r", "image:=/front/image_raw")
    with pam(*FAKE_ACTIVE, "image_transport:=compressed", arguments=remap) as (robot, process):
        robot.wait_for_active()
        messages = robot.collect(RegionArray, "/pam/regions")
        with Camera(robot, "/front/image_raw/compressed", compressed=True):
            robot.publisher(Point, "/front/image_raw_mouse_left").publish(mouse(30, 30))
            wait_until(lambda: labelled(messages), "the label")
            robot.publisher(CompressedImage, "/front/image_raw/compressed", 1).publish(
                CompressedImage(format="jpeg", data=b"\xff\xd8 no picture \xff\xd9")
            )
            assert "cannot decompress" in process.wait_for_log("/front/image_raw/compressed ignored")
            count = len(messages)
            wait_until(lambda: len(messages) > count + 5, "more results")
        assert process.end() == 0


def test_several_cameras_share_one_model() -> None:
    with pam(*FAKE_ACTIVE, "cameras:=[left,right]") as (robot, process):
        robot.wait_for_active()
        left = robot.collect(RegionArray, "/pam_left/regions")
        right = robot.collect(RegionArray, "/pam_right/regions")
        diagnostics = Diagnostics.of(robot)
        with (
            Camera(robot, "/left/image", shade=50, frame_id="l"),
            Camera(robot, "/right/image", shade=90, frame_id="r"),
        ):
            assert "s50" in robot.perceive(click(10, 10), "/pam_left").region.texts[0].label
            robot.publisher(Point, "/right/image_mouse_left").publish(mouse(30, 30))
            robot.publisher(Point, "/right/image_mouse_left").publish(mouse(50, 30))
            wait_until(lambda: len(regions_of(right)) == 2, "two regions on the right")
            assert len(regions_of(left)) == 1
            diagnostics.wait_for("/pam_left: camera left", lambda status: "1 regions" in status.message)
            diagnostics.wait_for("/pam_right: camera right", lambda status: "2 regions" in status.message)
        assert {message.header.frame_id for message in left} == {"l"}
        assert {message.header.frame_id for message in right} == {"r"}
        assert process.end() == 0


def test_simulated_time_stamps_pass_through() -> None:
    with pam(*FAKE_ACTIVE, "use_sim_time:=true") as (robot, process):
        robot.wait_for_active()
        messages = robot.collect(RegionArray, "/pam/regions")
        camera = Camera(robot)
        for step in range(10):
            camera.send(5_000_000_000 + step * 100_000_000)
            time.sleep(0.05)
        wait_until(lambda: messages and stamp_of(messages[-1]) == 5_900_000_000, "the last result")
        camera.send(1_000_000_000)  # the bag starts again
        wait_until(lambda: stamp_of(messages[-1]) == 1_000_000_000, "the first result of the second round")
        process.wait_for_log("jumped back")
        assert process.end() == 0


def test_quality_of_service_can_be_overridden() -> None:
    with pam(*FAKE_ACTIVE, "qos_overrides./image.subscription.reliability:=reliable") as (robot, process):
        robot.wait_for_active()
        infos = robot.node.get_subscriptions_info_by_topic
        for topic in ("/image", "/image_mouse_left"):  # a node's name is discovered after its subscriptions
            (info,) = wait_until(
                lambda topic=topic: [it for it in infos(topic) if it.node_name == "pam"], f"pam on {topic}"
            )
            assert info.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE, topic
        assert process.end() == 0


def test_chinese_overlay_words(robot: Client) -> None:
    """Drawn with a font of the system; without one the overlay still comes."""
    raw = robot.collect(Image, "/pam/overlay", 1)
    with Camera(robot, size=(240, 320)):
        robot.perceive(Prompt(box=[50.0, 60.0, 150.0, 200.0], languages=["zh"]))
        del raw[:]
        wait_until(lambda: raw, "an overlay")
    assert cv2.cvtColor(rgb_from_image(raw[0]), cv2.COLOR_RGB2GRAY).std() > 1
