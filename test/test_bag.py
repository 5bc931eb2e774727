"""`pam bag`: bags in both formats through the engine, in bag time; what is written is what ROS reads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ament_index_python import get_package_share_directory
from fakes import FakeModel
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray, Detection3DArray

from pam_ros.errors import InputError, OutputError, PromptError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import Region, RegionArray, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns, time_message
from pam_ros.nodes.images import image_message, jpeg_message
from pam_ros.nodes.requests import PromptDefaults
from pam_ros.nodes.tools.bag import BagPlan, DepthPlan, inspect, node_name, run_bag, typestore
from pam_ros.records import Language, Prompt, Task
from pam_ros.runtime.offline import VideoStep
from pam_ros.runtime.options import EngineOptions

BOX = Prompt.from_clicks(box_xyxy=(4, 4, 20, 20))
DEFAULTS = PromptDefaults((Task.LABEL,), (Language.EN, Language.ZH))
RECORDED_NS = 1_700_000_000_000_000_000  # when the bag was recorded; stamps are 5 s earlier
STAMPED_NS = RECORDED_NS - 5_000_000_000
IMAGES = "/camera/image_raw"


@dataclass
class Said:
    """One message of a bag: topic, type, time of recording, content."""

    topic: str
    kind: str
    time_ns: int
    message: Any


def picture(shade: int) -> np.ndarray:
    return np.full((48, 64, 3), shade, np.uint8)


def header(i: int) -> Header:
    return Header(stamp=time_message(STAMPED_NS + i * 100_000_000), frame_id="optical")


def images(count: int = 25, topic: str = IMAGES) -> list[Said]:
    """Ten images a second whose shade is their number plus one."""
    return [
        Said(topic, "sensor_msgs/msg/Image", RECORDED_NS + i * 100_000_000,
            image_message(picture(i + 1), "rgb8", header(i)))
        for i in range(count)
    ]  # fmt: skip


def write_bag(folder: Path, said: list[Said], storage: StoragePlugin = StoragePlugin.MCAP) -> Path:
    store = typestore()
    with Writer(folder, version=9, storage_plugin=storage) as writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=store)
            for topic, kind in {each.topic: each.kind for each in said}.items()
        }
        for each in sorted(said, key=lambda each: each.time_ns):
            writer.write(connections[each.topic], each.time_ns, serialize_message(each.message))
    return folder


def read_bag(folder: Path, topic: str, kind: type) -> list[tuple[int, Any]]:
    """(time of recording, message) of one topic."""
    with Reader(folder) as reader:
        chosen = [each for each in reader.connections if each.topic == topic]
        return [(time_ns, deserialize_message(data, kind)) for _, time_ns, data in reader.messages(chosen)]


def merged(bag: Path, topics: dict[str, str]) -> Path:
    """The .mcap file of a bag in which topics got the names, as long, of others: these have two channels."""
    data = (bag / f"{bag.name}.mcap").read_bytes()
    for one, other in topics.items():
        data = data.replace(one.encode(), other.encode())
    path = bag.parent / "merged.mcap"
    path.write_bytes(data)
    return path


def plan_of(bag: Path, **more: Any) -> BagPlan:
    settings: dict[str, Any] = {
        "out": bag.parent / "out",
        "prompts": (BOX,),
        "defaults": DEFAULTS,
        "options": EngineOptions(streaming=True, caption_period_s=1.0, clip_frames=5),
    }
    return BagPlan(bag=bag, **(settings | more))


def run(plan: BagPlan) -> tuple[list[VideoStep], list[str]]:
    said: list[str] = []
    return list(run_bag(FakeModel(words=2), plan, inspect(plan), said.append)), said


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_results_stand_beside_the_images_in_bag_time(tmp_path: Path, storage: StoragePlugin):
    said = images()
    said.append(Said("/chatter", "std_msgs/msg/Header", RECORDED_NS + 50_000_000, header(3)))
    bag = write_bag(tmp_path / "bag", said, storage)
    steps, problems = run(plan_of(bag))
    assert len(steps) == 25
    assert problems == []
    out = tmp_path / "out"
    assert [path.suffix for path in out.iterdir() if path.suffix != ".yaml"] == [
        {StoragePlugin.MCAP: ".mcap", StoragePlugin.SQLITE3: ".db3"}[storage]
    ]
    with Reader(bag) as before, Reader(out) as after:
        originals = {each.topic: each for each in after.connections}
        assert {each.topic for each in before.connections} <= set(originals)
        kept = [(each.topic, time_ns, data) for each, time_ns, data in before.messages()]
        copied = [(each.topic, time_ns, data) for each, time_ns, data in after.messages()]
        assert [each for each in copied if not each[0].startswith("/pam/")] == kept
        assert [time_ns for _, time_ns, _ in copied] == sorted(time_ns for _, time_ns, _ in copied)
    found = read_bag(out, "/pam/regions", RegionArray)
    assert [time_ns for time_ns, _ in found[:25]] == [RECORDED_NS + i * 100_000_000 for i in range(25)]
    for i, (_, message) in enumerate(found[:25]):
        assert stamp_ns(message.header.stamp) == STAMPED_NS + i * 100_000_000
        assert message.header.frame_id == "optical"
        assert [(region.id, region.state) for region in message.regions] == [(1, Region.TRACKED)]
        texts = message.regions[0].texts
        assert [text.language for text in texts] == ["en", "zh"]
        assert all(text.label for text in texts)
    *captions, summary = (
        message for _, message in read_bag(out, "/pam/streaming_captions", StreamingCaption)
    )
    assert (summary.summary, stamp_ns(summary.clip_start), summary.sequence) == (True, STAMPED_NS, 3)
    assert [(stamp_ns(c.clip_start) - STAMPED_NS, stamp_ns(c.clip_end) - STAMPED_NS) for c in captions] == [
        (0, 10**9),
        (10**9, 2 * 10**9),
        (2 * 10**9, 2_300_000_000),
    ]
    assert all(c.final and c.text and not c.summary for c in captions)
    boxes = read_bag(out, "/pam/detections", Detection2DArray)
    assert boxes[0][1].detections[0].results[0].hypothesis.class_id == found[0][1].regions[0].texts[0].label


def test_clips_end_at_the_named_times(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images())
    steps, _ = run(plan_of(bag, at_s=(0.5, 2.0)))
    ends = [caption.clip_end_ns - STAMPED_NS for step in steps for caption in step.captions]
    assert ends == [500_000_000, 2_000_000_000]
    with pytest.raises(InputError, match=r"at most 2\.500 s"):
        inspect(plan_of(bag, at_s=(9.0,), out=tmp_path / "other"))


def test_recorded_prompts_and_detections_are_obeyed(tmp_path: Path):
    said = images()
    prompt = PromptMessage(box=[30.0, 20.0, 50.0, 40.0])
    said.append(Said("/pam/prompt", "pam_ros/msg/Prompt", RECORDED_NS + 450_000_000, prompt))
    boxes = Detection2DArray(header=header(10), detections=[Detection2D(id="7")])
    boxes.detections[0].bbox.center.position.x = boxes.detections[0].bbox.center.position.y = 10.0
    boxes.detections[0].bbox.size_x = boxes.detections[0].bbox.size_y = 12.0
    said.append(Said("/boxes", "vision_msgs/msg/Detection2DArray", RECORDED_NS + 1_050_000_000, boxes))
    early = PromptMessage(box=[1.0, 1.0, 5.0, 5.0])
    said.append(Said("/pam/prompt", "pam_ros/msg/Prompt", RECORDED_NS - 1, early))
    bag = write_bag(tmp_path / "bag", said)
    steps, problems = run(plan_of(bag, prompts=(), detections="/boxes"))
    assert [len(step.regions) for step in steps] == [0] * 5 + [1] * 6 + [2] * 14
    assert len(problems) == 1  # a prompt before the first image
    assert "/pam/prompt" in problems[0]


def test_compressed_images_and_the_overlay(tmp_path: Path):
    said = [
        Said("/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", each.time_ns,
            jpeg_message(picture(i + 1), 90, header(i)))
        for i, each in enumerate(images(5))
    ]  # fmt: skip
    said[2].message.data = said[2].message.data[:40]  # truncated
    bag = write_bag(tmp_path / "bag", said)
    steps, problems = run(plan_of(bag, overlay=True))
    assert len(steps) == 4
    assert "cannot decompress" in problems[0]
    drawn = read_bag(tmp_path / "out", "/pam/overlay/compressed", CompressedImage)
    assert len(drawn) >= 4


def depths(count: int, *, late_s: float = 0.0, **more: Any) -> list[Said]:
    """A wall 2 m away with a box 1 m away where BOX is, recorded after the images; and the calibration."""
    metres = np.full((48, 64), 2.0, np.float32)
    metres[4:20, 4:20] = 1.0
    said = []
    for i in range(count):
        stamp = Header(
            stamp=time_message(STAMPED_NS + i * 100_000_000 + round(late_s * 1e9)), frame_id="optical"
        )
        message = image_message((metres * 1000).astype(np.uint16), "16UC1", stamp)
        said.append(
            Said("/depth", "sensor_msgs/msg/Image", RECORDED_NS + i * 100_000_000 + 130_000_000, message)
        )
    info = CameraInfo(
        height=48, width=64, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0],
        p=[50.0, 0.0, 11.5, 0.0, 0.0, 50.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip
    for name, value in more.items():
        setattr(info, name, value)
    said.append(Said("/camera/camera_info", "sensor_msgs/msg/CameraInfo", RECORDED_NS + 10_000_000, info))
    return said


def test_depth_gives_positions_and_boxes(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(6) + depths(5))
    steps, problems = run(plan_of(bag, depth=DepthPlan("/depth")))
    found = [message.regions[0] for _, message in read_bag(tmp_path / "out", "/pam/regions", RegionArray)]
    # Pixels 4 to 19 at 1 m: their middle is 11.5, a pixel is 2 cm wide.
    position = found[0].position
    assert (position.x, position.y, position.z) == pytest.approx((-0.4, -0.24, 1.0), abs=1e-3)
    size = found[0].size
    assert (size.x, size.y, size.z) == pytest.approx((0.3, 0.3, 0.0), abs=0.02)
    assert [region.position_known for region in found[:6]] == [True] * 5 + [False]
    assert [bool(step.regions[0].surface) for step in steps[:5]] == [True] * 5
    assert problems == [
        "positions are not measured in some images: the nearest message on /depth is 0.100 s away from the "
        "image; raise --depth-tolerance"
    ]
    boxes = read_bag(tmp_path / "out", "/pam/detections_3d", Detection3DArray)
    assert len(boxes) == len(found)
    assert boxes[0][1].detections[0].bbox.center.position.z == pytest.approx(1.0, abs=1e-3)
    assert not boxes[5][1].detections


def test_one_depth_message_with_an_impossible_stamp_costs_one_image(tmp_path: Path):
    said = depths(5)
    said[2].message.header.stamp.nanosec = 10**9
    steps, problems = run(plan_of(write_bag(tmp_path / "bag", images(5) + said), depth=DepthPlan("/depth")))
    assert [bool(step.regions[0].surface) for step in steps[:5]] == [True, True, False, True, True]
    assert any("/depth at" in line and "nanosec 1000000000" in line for line in problems)


def test_a_flood_of_bad_boxes_is_one_line(tmp_path: Path):
    flood = Detection2DArray(detections=[Detection2D() for _ in range(300)])
    said = [
        Said("/boxes", "vision_msgs/msg/Detection2DArray", RECORDED_NS + (2 * i + 1) * 50_000_000, flood)
        for i in range(3)
    ]
    bag = write_bag(tmp_path / "bag", images(5) + said)
    _, problems = run(plan_of(bag, prompts=(), detections="/boxes"))
    assert len(problems) == 1
    assert problems[0].startswith("/boxes: 300 detections were rejected: ")


def test_depth_follows_its_options(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(3) + depths(3, late_s=0.06))
    plan = DepthPlan("/depth", "/camera/camera_info", rectified=True, tolerance_s=0.07)
    _, problems = run(plan_of(bag, depth=plan))
    (_, first), *_ = read_bag(tmp_path / "out", "/pam/regions", RegionArray)
    assert problems == []
    assert first.regions[0].position.x == pytest.approx(0.0, abs=1e-3)  # P's centre, not K's


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"width": 640, "height": 480}, "the calibration is for images of 640x480 pixels"),
        ({"k": [0.0] * 9}, "the camera is not calibrated"),
    ],
)
def test_depth_that_cannot_be_used_says_why_once(tmp_path: Path, more: dict[str, Any], words: str):
    bag = write_bag(tmp_path / "bag", images(3) + depths(3, **more))
    steps, problems = run(plan_of(bag, depth=DepthPlan("/depth")))
    assert len(problems) == 1
    assert words in problems[0]
    assert all(step.regions[0].surface is None for step in steps)


def test_topics_of_an_earlier_run_are_replaced(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(5))
    run(plan_of(bag))
    run(plan_of(tmp_path / "out", out=tmp_path / "again"))
    first, again = (read_bag(tmp_path / name, "/pam/regions", RegionArray) for name in ("out", "again"))
    assert len(again) == len(first)


def test_the_types_are_those_of_the_message_generator():
    """Another hash would make the messages unreadable for subscribers."""
    store = typestore()
    for package, names in (
        ("pam_ros", ["RegionArray", "StreamingCaption", "Prompt"]),
        ("vision_msgs", ["Detection2DArray"]),
    ):
        for name in names:
            path = Path(get_package_share_directory(package), "msg", f"{name}.json")
            hashes = {
                each["type_name"]: each["hash_string"] for each in json.loads(path.read_text())["type_hashes"]
            }
            assert store.hash_rihs01(f"{package}/msg/{name}") == hashes[f"{package}/msg/{name}"]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"bag": Path("nowhere")}, InputError, "no bag at nowhere"),
        ({"image": "/other"}, InputError, f"--image /other is not an image topic .*: {IMAGES}, /rear"),
        ({}, InputError, f"2 image topics in .*: {IMAGES}, /rear; choose one with --image"),
        ({"image": IMAGES, "prompts": ()}, InputError, "no prompts are recorded on /pam/prompt"),
        ({"image": IMAGES, "detections": "/boxes"}, InputError, "--detections /boxes is not in the bag"),
        ({"image": IMAGES, "detections": "/rear"}, InputError, "--detections /rear is sensor_msgs/msg/Image"),
        ({"depth": DepthPlan("/rear")}, InputError, "--camera-info /camera/camera_info is not in the bag"),
        ({"depth": DepthPlan("/d")}, InputError, f"--depth /d is not .*: {IMAGES}, /rear"),
        ({"image": IMAGES, "prompts": (Prompt.from_clicks([(90, 3)]),)}, PromptError, "outside the 64x48"),
        ({"image": IMAGES, "out": Path("/")}, OutputError, "exists already; choose a new folder with --out"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_model_is_loaded(
    more: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
):
    bag = write_bag(tmp_path / "bag", images(3) + images(3, "/rear"))
    with pytest.raises(error, match=words):
        inspect(plan_of(**({"bag": bag} | more)))


def test_a_bag_without_images_to_choose_from_gives_no_advice_to_choose(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(3))
    with pytest.raises(InputError, match=f"^--depth {IMAGES} is the only image topic in {bag}; [^-]*$"):
        inspect(plan_of(bag, depth=DepthPlan(IMAGES)))
    bag = write_bag(tmp_path / "none", [Said("/chatter", "std_msgs/msg/Header", RECORDED_NS, header(0))])
    for image in ("", IMAGES):
        with pytest.raises(InputError, match=f"^no image topics in {bag}$"):
            inspect(plan_of(bag, image=image))


def test_channels_of_one_topic_are_one_topic(tmp_path: Path):
    """Two publishers, or merged files."""
    said = images(6) + depths(6)
    said += [Said("/chat", "std_msgs/msg/Header", RECORDED_NS + i, header(i)) for i in range(4)]
    others = {}
    for topic in sorted({each.topic for each in said}):
        others[f"{topic[:-1]}_"] = topic
        for each in [each for each in said if each.topic == topic][1::2]:
            each.topic = f"{topic[:-1]}_"
    later = next(each for each in depths(1, k=[9.0] * 9) if each.topic == "/camera/camera_info")
    said.append(Said("/camera/camera_inf_", later.kind, later.time_ns + 10**9, later.message))
    path = merged(write_bag(tmp_path / "bag", said), others)
    plan = plan_of(path, depth=DepthPlan("/depth"))
    assert inspect(plan).count == 6
    steps, problems = run(plan)
    assert problems == []
    assert [step.regions[0].surface is not None for step in steps] == [True] * 6
    (_, first), *_ = read_bag(tmp_path / "out", "/pam/regions", RegionArray)
    assert first.regions[0].position.x == pytest.approx(-0.4, abs=1e-3)  # by the first calibration of both
    with Reader(path) as before, Reader(tmp_path / "out") as after:
        assert len(before.connections) == 2 * len(others)
        topics = [each.topic for each in after.connections if not each.topic.startswith("/pam/")]
        assert sorted(topics) == sorted(others.values())
        kept = [(each.topic, time_ns, data) for each, time_ns, data in before.messages()]
        copied = [(each.topic, time_ns, data) for each, time_ns, data in after.messages()]
        assert [each for each in copied if not each[0].startswith("/pam/")] == kept


@pytest.mark.parametrize("text", ["/pam", "pam", "/pam/", "front/pam_2"])
def test_a_node_is_named_in_full(text: str):
    assert node_name(text) == "/" + text.strip("/")


@pytest.mark.parametrize("text", ["", "/", "/a b", "a//b", "/9a", "~pam", "ä", "\udcff", "a" * 228])
def test_what_is_no_name_of_a_node_is_refused(text: str):
    with pytest.raises(InputError, match=r"^--node '.*' is not a node's name; allowed are letters, "):
        node_name(text)


def test_a_damaged_bag_is_named(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(3))
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99}")
    with pytest.raises(InputError, match=f"cannot read bag {bag}"):
        inspect(plan_of(bag))


def test_pam_bag_as_its_user_runs_it(tmp_path: Path):
    """With the real pam-tiny."""
    bag = write_bag(tmp_path / "bag", images(6))
    command = [
        sys.executable, "-m", "pam_ros.cli.main", "bag", str(bag), "--box", "4,4,40,40", "--at", "0.3",
        "--model", "pam-tiny", "--out", "new", "--node", "pam/",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_bag(tmp_path / "new", "/pam/regions", RegionArray)) >= 6
    assert len(read_bag(tmp_path / "new", IMAGES, Image)) == 6
    caption, summary = (
        message for _, message in read_bag(tmp_path / "new", "/pam/streaming_captions", StreamingCaption)
    )
    assert caption.text.rstrip(".") in done.stdout  # "?" follows what is unsure
    assert summary.summary
    assert summary.text == caption.text
