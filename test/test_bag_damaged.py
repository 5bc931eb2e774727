"""`pam bag` of damaged bags: bad messages are skipped; a bad file is one sentence, what was read is kept."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel
from rclpy.serialization import serialize_message
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from test_bag import IMAGES, Said, depths, images, plan_of, read_bag, run, write_bag

from pam_ros.errors import InputError, OutputError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import RegionArray
from pam_ros.nodes.tools import bag_reader
from pam_ros.nodes.tools.bag import DepthPlan, inspect, run_bag, typestore

BOXES = "vision_msgs/msg/Detection2DArray"


@pytest.mark.parametrize("junk", [b"", b"\0\1\0\0", b"\0\1\0\0" + b"\xff" * 40], ids=["empty", "cut", "junk"])
def test_messages_that_cannot_be_read_are_skipped(tmp_path: Path, junk: bytes):
    said = images(6) + depths(6)
    first_ns = said[0].time_ns
    said.append(Said("/pam/prompt", "pam_ros/msg/Prompt", first_ns + 10**6, PromptMessage(box=[9.0] * 4)))
    topics = {each.topic: each.kind for each in said} | {"/boxes": BOXES}
    store = typestore()
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = {name: writer.add_connection(name, kind, typestore=store) for name, kind in topics.items()}
        for name in topics:  # one of each stands before all others, two more images between them
            writer.write(topic[name], first_ns - 10, junk)
        for number in (1, 2):
            writer.write(topic[IMAGES], first_ns + number, junk)
        for each in sorted(said, key=lambda each: each.time_ns):
            writer.write(topic[each.topic], each.time_ns, serialize_message(each.message))
    steps, problems = run(plan_of(tmp_path / "bag", depth=DepthPlan("/depth"), detections="/boxes"))
    assert len(steps) == 6
    assert [step.regions[0].surface is not None for step in steps] == [True] * 6
    skipped = [each.split(" ")[0] for each in problems if f"its {len(junk)} bytes are not a " in each]
    assert sorted(skipped) == sorted(topics)
    assert [each for each in problems if "messages were" in each] == [
        f"{IMAGES}: 3 messages were skipped for that reason"
    ]


def test_the_first_readable_image_is_the_first(tmp_path: Path):
    said = images(6)
    for each in said[:2]:
        each.message.encoding = "nonsense"
    bag = write_bag(tmp_path / "bag", said)
    plan = plan_of(bag, at_s=(0.2,))
    assert inspect(plan).first_ns == inspect(plan).times_ns[0] - 200_000_000
    steps, _ = run(plan)
    assert [len(step.regions) for step in steps] == [1] * 4
    for each in said[2:]:
        each.message.encoding = "nonsense"
    with pytest.raises(InputError, match=r"none of the 6 images of .*; the first: encoding 'nonsense'"):
        inspect(plan_of(write_bag(tmp_path / "worse", said)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def mcap_magic(path: Path) -> None:
    path.write_bytes(b"\x89MCAP0\r\n")


def flip(path: Path) -> None:
    """The text of the first definition is no text."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"std_msgs/Header", b"\xff" * 15))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("bag.mcap", cut), ("bag.mcap", mcap_magic), ("bag.mcap", flip), ("bag.mcap", folder),
        ("bag.db3", cut), ("bag.db3", folder),
        ("metadata.yaml", lambda path: path.write_bytes(b"\xff\xfe")),
        ("metadata.yaml", lambda path: path.write_text("a: [1")),
        ("metadata.yaml", lambda path: path.write_text("a: b")),
        ("metadata.yaml", lambda path: path.write_text("rosbag2_bagfile_information: []")),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, damage: Callable[[Path], None]):
    storage = StoragePlugin.SQLITE3 if name.endswith(".db3") else StoragePlugin.MCAP
    bag = write_bag(tmp_path / "bag", images(3), storage)
    damage(bag / name)
    with pytest.raises(InputError, match=rf"^cannot read bag {bag}( any further)?: [^\n]+$"):
        run(plan_of(bag))


def test_an_unfinished_recording_can_be_repaired(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(3))
    cut(bag / "bag.mcap")
    for path in (bag, bag / "bag.mcap"):
        with pytest.raises(InputError, match=rf"^cannot read bag {path}: .* not finished.*`mcap recover`"):
            inspect(plan_of(path))


def test_a_folder_without_access_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bag_reader, "Reader", refused)
    with pytest.raises(InputError, match=f"cannot read bag {tmp_path}: Permission denied"):
        inspect(plan_of(tmp_path))


def test_what_was_read_before_the_damage_is_kept(tmp_path: Path):
    said = images(250)  # several chunks
    bag = write_bag(tmp_path / "bag", said)
    data = (bag / "bag.mcap").read_bytes()
    place = data.rindex(said[-1].message.data.tobytes())
    start = data.rindex(b"\x05", 0, data.rindex(b"optical", 0, place))
    (bag / "bag.mcap").write_bytes(data[:start] + b"\xff" * 40 + data[start + 40 :])
    with pytest.raises(InputError, match=f"cannot read bag {bag} any further"):
        run(plan_of(bag))
    assert len(read_bag(tmp_path / "out", "/pam/regions", RegionArray)) > 100


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_a_full_disk_is_one_sentence(tmp_path: Path, storage: StoragePlugin):
    bag = write_bag(tmp_path / "bag", images(250), storage)
    plan = plan_of(bag)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, before[1]))
    try:
        with pytest.raises(OutputError, match=f"cannot write {plan.out}: .*; free some space, or"):
            run(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("storage", list(StoragePlugin))
@pytest.mark.parametrize("full", ["/pam/regions", IMAGES, "write", "file"])
def test_nothing_is_left_if_nothing_was_written(
    tmp_path: Path, storage: StoragePlugin, full: str, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_of(write_bag(tmp_path / "bag", images(3), storage))
    add, error = Writer.add_connection, sqlite3.OperationalError("database or disk is full")

    def refused(*args: Any, **more: Any) -> Connection:
        if full in args:
            raise error
        return add(*args, **more)

    def no_more(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Writer, "add_connection", refused)
    if full == "write":
        monkeypatch.setattr(Writer, "write", no_more)
    elif full == "file":
        monkeypatch.setitem(Writer.STORAGE_PLUGINS, storage, no_more)
    with pytest.raises(OutputError, match=f"cannot write {plan.out}: .*disk is full; free some space, or"):
        run(plan)
    assert not plan.out.exists()
    monkeypatch.undo()
    run(plan)


def test_a_folder_that_came_meanwhile_is_kept(tmp_path: Path):
    plan = plan_of(write_bag(tmp_path / "bag", images(3)))
    given = inspect(plan)
    plan.out.mkdir()
    with pytest.raises(OutputError, match=f"cannot write {plan.out}: .*exists already"):
        list(run_bag(FakeModel(words=2), plan, given, print))
    assert plan.out.exists()


def test_a_name_that_no_folder_can_have(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", images(3))
    with pytest.raises(OutputError, match=r"cannot write .*: File name too long"):
        inspect(plan_of(bag, out=tmp_path / ("a" * 300)))


def test_an_error_of_our_own_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bag = write_bag(tmp_path / "bag", images(3))
    monkeypatch.setattr("pam_ros.runtime.offline.Playback.process", lambda self, frame: {}["ours"])
    with pytest.raises(KeyError, match="ours"):
        run(plan_of(bag))


def test_types_without_a_hash_are_copied(tmp_path: Path):
    """An .mcap file alone has none, nor have bags of ROS 2 Humble."""
    bag = write_bag(tmp_path / "bag", images(3))
    alone = shutil.copy(bag / "bag.mcap", tmp_path / "alone.mcap")
    plan = plan_of(Path(alone))
    assert inspect(plan).count == 3
    run(plan)
    with Reader(bag) as before, Reader(tmp_path / "out") as after:
        copied = next(each for each in after.connections if each.topic == IMAGES)
        assert copied.digest == before.connections[0].digest
        assert (copied.msgdef, copied.msgcount) == (before.connections[0].msgdef, 3)
