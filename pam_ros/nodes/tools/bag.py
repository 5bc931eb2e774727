"""`pam bag`: runs a recorded bag through the node's flow, without a graph; writes a bag with the results.

Stamps of the images are the clock, so the result does not depend on this machine's speed, and no image is
dropped. Results stand at the time of their image in the bag.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ament_index_python import get_package_share_directory
from rclpy.exceptions import InvalidTopicNameException
from rclpy.serialization import serialize_message
from rclpy.validate_full_topic_name import validate_full_topic_name
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, Detection3DArray

from pam_ros.errors import InputError, OutputError, PamError
from pam_ros.media import why
from pam_ros.model.interface import PerceptionModel
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import (
    caption_message,
    detections_3d_message,
    detections_message,
    region_array,
    stamp_ns,
    stamp_or_newest,
    time_message,
)
from pam_ros.nodes.images import ImageReader, jpeg_message
from pam_ros.nodes.requests import PromptDefaults, detections_of, prompt_request
from pam_ros.nodes.tools.bag_depth import (
    DepthPlan,
    RecordedSurfaces,
    depth_connections,
    depth_topics,
)
from pam_ros.nodes.tools.bag_reader import BagReader, Skipped, by_topic
from pam_ros.nodes.topics import read_message
from pam_ros.output_files import writable_folder
from pam_ros.records import Frame, Prompt, Region
from pam_ros.runtime.events import FrameResult
from pam_ros.runtime.failures import once_a_kind, rejected_detections
from pam_ros.runtime.offline import Playback, VideoStep, decode_times
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.overlay import draw_overlay
from pam_ros.signals import unbroken

IMAGE_TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
DETECTIONS, PROMPTS = "vision_msgs/msg/Detection2DArray", "pam_ros/msg/Prompt"
OWN_PACKAGES = ("vision_msgs", "pam_ros")  # what the library's message definitions lack
BAG_VERSION: Literal[9] = 9  # of metadata.yaml, as Jazzy writes it
JPEG_QUALITY = 80
# What is written, below the node's name; a topic that the bag has already is replaced.
OUTPUTS = {
    "regions": "pam_ros/msg/RegionArray",
    "detections": DETECTIONS,
    "streaming_captions": "pam_ros/msg/StreamingCaption",
}
OVERLAY = ("overlay/compressed", "sensor_msgs/msg/CompressedImage")
DETECTIONS_3D = ("detections_3d", "vision_msgs/msg/Detection3DArray")


@dataclass(frozen=True, slots=True)
class BagPlan:
    """What to read, ask and write.

    Attributes:
        bag, out: folder (or .mcap file) to read, folder to write.
        image: topic of the images; empty: the only one there is.
        detections: topic of a detector's boxes; empty: none.
        node: full name (see `node_name`) of the node whose topics are written; prompts recorded on its
            `prompt` are applied.
        prompts: on the first image.
        at_s: decode timestamps, seconds from the first image; empty: every `options.caption_period_s`.
        overlay: also write the drawn image.
        depth: None: positions are not measured.
    """

    bag: Path
    out: Path
    prompts: tuple[Prompt, ...]
    defaults: PromptDefaults
    options: EngineOptions
    image: str = ""
    detections: str = ""
    node: str = "/pam"
    at_s: tuple[float, ...] = ()
    overlay: bool = False
    depth: DepthPlan | None = None


@dataclass(frozen=True, slots=True)
class BagInput:
    """What the bag has of it.

    Attributes:
        images: the connections of the images' topic.
        count: number of images, unreadable ones included.
        first_ns: stamp of the first readable one.
        times_ns: decode timestamps in the images' stamps.
        mcap: the storage format.
    """

    images: Sequence[Connection]
    count: int
    first_ns: int
    times_ns: tuple[int, ...]
    mcap: bool


def node_name(text: str) -> str:
    """The full name of a node, whose first slash may be missing. Raises InputError if it is none in ROS."""
    name = "/" + text.strip("/")
    try:
        validate_full_topic_name(f"{name}/{OVERLAY[0]}")
    except (InvalidTopicNameException, TypeError) as error:  # TypeError: it is not UTF-8
        raise InputError(
            f"--node {text!r} is not a node's name; allowed are letters, digits, _ and /, with no digit "
            "after a /, at most 228 characters, as in /pam or /front/pam"
        ) from error
    return name


def inspect(plan: BagPlan) -> BagInput:
    """Checks the bag, its topics, the prompts and the output folder, before a model is loaded.

    Raises an InputError that says what is there, or an OutputError.
    """
    with closing(BagReader(plan.bag)) as reader:
        images = _image_connections(reader, plan)
        if plan.depth is not None:
            depth_topics(reader.connections, images[0].topic, plan.depth)
        topics = {connection.topic: connection.msgtype for connection in reader.connections}
        if plan.detections and topics.get(plan.detections) != DETECTIONS:
            kind = topics.get(plan.detections, "not in the bag")
            raise InputError(f"--detections {plan.detections} is {kind}; it must be a {DETECTIONS}")
        recorded = topics.get(f"{plan.node}/prompt") == PROMPTS
        if not plan.prompts and not plan.detections and not recorded:
            raise InputError(
                f"no region given, and no prompts are recorded on {plan.node}/prompt; "
                "use --click, --box, --mask or --detections"
            )
        messages = reader.messages(images)
        frame, recorded_ns = _first_frame(messages, f"{images[0].topic} in {plan.bag}")
        for prompt in plan.prompts:
            prompt.check_size(*frame.size)
        times_ns: tuple[int, ...] = ()
        if plan.at_s:
            every_ns = [recorded_ns, *(time_ns for _, time_ns, _ in messages)]
            shift_ns = frame.stamp_ns - recorded_ns  # from the time of recording to that of the image
            ends_ns = decode_times(plan.at_s, every_ns, carry_over=plan.options.carry_over)
            times_ns = tuple(time_ns + shift_ns for time_ns in ends_ns)
        count = reader.count(images)
        mcap = any(path.suffix == ".mcap" for path in (plan.bag, *plan.bag.glob("*.mcap")))
    writable_folder(plan.out.parent)
    with _writable(plan.out):
        if plan.out.exists():
            raise OutputError(f"{plan.out} exists already; choose a new folder with --out")
    return BagInput(images, count, frame.stamp_ns, times_ns, mcap)


def run_bag(
    model: PerceptionModel, plan: BagPlan, given: BagInput, report: Callable[[str], None]
) -> Iterator[VideoStep]:
    """Processes the bag; yields every image with its regions, captions and warnings once it is written.

    `report` gets the reason of everything that was skipped.
    """
    options = replace(plan.options, decode_times_ns=given.times_ns)
    skipped = Skipped(report)
    with (
        closing(Playback(model, options)) as playback,
        closing(BagReader(plan.bag)) as reader,
        _surfaces(plan, given, report, skipped) as surfaces,
        _writing(plan.out, given.mcap) as writer,
    ):
        results = _Results(writer, plan, model.info.mark)
        image_ids = {each.id for each in given.images}
        copies: dict[tuple[str, str], Connection | None] = {}
        for each in reader.connections:
            key = each.topic, each.msgtype
            if key in copies:  # another publisher's: they share the copy
                continue
            try:
                copies[key] = results.copy_of(each)
            except OutputError:
                raise
            except InputError as error:
                copies[key] = None
                report(f"{each.topic} is not copied: {error}")
        rejected = once_a_kind(lambda line: report(f"{plan.detections}: {line}"))
        pictures = ImageReader()
        step: VideoStep | None = None
        bag_ns = 0
        for connection, time_ns, data in reader.messages():
            copy = copies[connection.topic, connection.msgtype]
            if copy is not None:
                results.store(copy, time_ns, data)
            frame: Frame | None = None
            try:
                if connection.id in image_ids:
                    frame = _frame(pictures, connection, time_ns, data)
                elif surfaces is not None and connection.topic == surfaces.calibration_topic:
                    surfaces.calibrate(data)
                elif connection.topic == plan.detections:
                    _detections(playback, plan, read_message(data, Detection2DArray), rejected)
                elif connection.topic == f"{plan.node}/prompt" and connection.msgtype == PROMPTS:
                    playback.request(prompt_request(read_message(data, PromptMessage), plan.defaults))
            except PamError as error:
                skipped.add(connection.topic, time_ns, error)
            if frame is None:
                continue
            if step is None:
                playback.prompt(frame, plan.prompts, plan.defaults.tasks, plan.defaults.languages)
            else:
                yield step
                playback.process(frame)
            step, bag_ns = _with_surfaces(playback.step(frame), surfaces), time_ns
            results.write(step, bag_ns)
        skipped.end()
        if step is not None:
            playback.end()
            last = _with_surfaces(playback.step(step.frame), surfaces)
            results.write(last, bag_ns)
            yield step.followed_by(last)


def _with_surfaces(step: VideoStep, surfaces: RecordedSurfaces | None) -> VideoStep:
    if surfaces is None:
        return step
    return replace(step, regions=surfaces.measured(step.frame, step.regions))


# ---- reading


@contextmanager
def _surfaces(
    plan: BagPlan, given: BagInput, report: Callable[[str], None], skipped: Skipped
) -> Iterator[RecordedSurfaces | None]:
    if plan.depth is None:
        yield None
        return
    with closing(BagReader(plan.bag)) as reader:
        topics = depth_topics(reader.connections, given.images[0].topic, plan.depth)
        yield RecordedSurfaces(reader, topics, plan.depth, report, skipped)


def _image_connections(reader: BagReader, plan: BagPlan) -> Sequence[Connection]:
    """The connections of the images' topic. Raises InputError, which lists what there is."""
    pictures = by_topic(reader.connections, IMAGE_TYPES)
    if plan.depth is not None:
        depth_connections(reader.connections, plan.depth)
        del pictures[plan.depth.depth]
        if not pictures:
            raise InputError(
                f"--depth {plan.depth.depth} is the only image topic in {plan.bag}; "
                "the images must be on another topic"
            )
    if not pictures:
        raise InputError(f"no image topics in {plan.bag}")
    chosen = [each for topic, each in pictures.items() if plan.image in ("", topic)]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(sorted(pictures))
    what = f"--image {plan.image} is not an image topic" if plan.image else f"{len(pictures)} image topics"
    raise InputError(f"{what} in {plan.bag}; image topics: {listed}; choose one with --image")


def _first_frame(messages: Iterator[tuple[Connection, int, bytes]], what: str) -> tuple[Frame, int]:
    """The first image that can be read, and its time of recording. Raises InputError if there is none."""
    problems: list[PamError] = []
    for connection, time_ns, data in messages:
        try:
            return _frame(ImageReader(), connection, time_ns, data), time_ns
        except PamError as error:
            problems.append(error)
    if problems:
        raise InputError(
            f"none of the {len(problems)} images of {what} can be read; the first: {problems[0]}"
        )
    raise InputError(f"{what} has no images")


def _frame(pictures: ImageReader, connection: Connection, time_ns: int, data: bytes) -> Frame:
    """An image message → frame; the time of recording stands in for a stamp of zero."""
    message: Any = read_message(data, IMAGE_TYPES[connection.msgtype])
    read = pictures.from_image if isinstance(message, Image) else pictures.from_compressed
    return Frame(
        image=read(message),
        stamp_ns=stamp_ns(message.header.stamp) or time_ns,
        frame_id=message.header.frame_id,
    )


def _detections(
    playback: Playback, plan: BagPlan, message: Detection2DArray, rejected: Callable[[str], None]
) -> None:
    detections, problems = detections_of(message)
    if problems:
        rejected(rejected_detections(problems))
    playback.detections(
        detections, stamp_or_newest(message.header), plan.defaults.tasks, plan.defaults.languages
    )


# ---- writing


@contextmanager
def _writing(path: Path, mcap: bool) -> Iterator[Writer]:
    """A new bag. Closed after an error or a signal, too, and so readable: the library would drop it.

    If nothing was written to it, nothing is left of it.
    """
    storage = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
    with _writable(path):
        writer = Writer(path, version=BAG_VERSION, storage_plugin=storage)
        try:
            writer.open()
        except (OSError, sqlite3.Error):  # for a folder that exists already, it is a WriterError
            shutil.rmtree(path, ignore_errors=True)
            raise
    try:
        yield writer
    finally:
        if any(writer.counts.values()):
            with _writable(path):
                writer.close()
        else:
            with suppress(OSError, sqlite3.Error):
                writer.abort()
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Wraps library calls only: raises OutputError for what the system or SQLite refuses."""
    try:
        yield
    except (OSError, sqlite3.Error, WriterError) as error:
        raise OutputError(
            f"cannot write {path}: {why(error)}; free some space, or choose another folder"
        ) from error


def typestore() -> Typestore:
    """The library's message definitions, with those of vision_msgs and of this package."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for package in OWN_PACKAGES:
        for path in sorted(Path(get_package_share_directory(package), "msg").glob("*.msg")):
            name = f"{package}/msg/{path.stem}"
            types = get_types_from_msg(path.read_text(encoding="utf-8"), name)
            store.register({key: value for key, value in types.items() if key not in store.fielddefs})
    return store


class _Results:
    """The topics that are written, and what stays of the input's."""

    def __init__(self, writer: Writer, plan: BagPlan, mark: str) -> None:
        self._mark = mark
        self._writer = writer
        self._node = plan.node
        self._overlay = plan.overlay
        self._newest: dict[int, str] = {}  # captions for the overlay
        self._store = store = typestore()
        more = ((OVERLAY, plan.overlay), (DETECTIONS_3D, plan.depth is not None))
        kinds = OUTPUTS | {name: kind for (name, kind), wanted in more if wanted}
        self._connections = {
            name: self._added(f"{plan.node}/{name}", kind, typestore=store) for name, kind in kinds.items()
        }

    def copy_of(self, connection: Connection) -> Connection | None:
        """The connection to copy messages to; None for a topic that is written anew.

        Raises InputError if its type is not known, or OutputError.
        """
        if connection.topic in {each.topic for each in self._connections.values()}:
            return None
        extension: Any = connection.ext
        definition, type_hash = self._type_of(connection)
        return self._added(
            connection.topic,
            connection.msgtype,
            msgdef=definition,
            rihs01=type_hash,
            serialization_format=extension.serialization_format,
            offered_qos_profiles=extension.offered_qos_profiles,
        )

    def _added(self, topic: str, kind: str, **more: Any) -> Connection:
        """A new connection. Raises OutputError."""
        with _writable(self._writer.path):
            return self._writer.add_connection(topic, kind, **more)

    def _type_of(self, connection: Connection) -> tuple[str, str]:
        """Definition and hash of its type. An .mcap file alone and bags of ROS 2 Humble have no hash."""
        definition, kind = connection.msgdef.data, connection.msgtype
        if definition and connection.digest:
            return definition, connection.digest
        store = self._store
        try:
            if definition:
                idl = connection.msgdef.format is MessageDefinitionFormat.IDL
                types = get_types_from_idl(definition) if idl else get_types_from_msg(definition, kind)
                store = get_typestore(Stores.EMPTY)
                store.register(types)
            return definition or store.generate_msgdef(kind, ros_version=2)[0], store.hash_rihs01(kind)
        except Exception as error:  # a type that is not known, or the parsers' own
            raise InputError(f"the bag has no valid definition of {kind}") from error

    def write(self, step: VideoStep, time_ns: int) -> None:
        """Writes the results of one image at the image's time in the bag."""
        frame = step.frame
        header = Header(stamp=time_message(frame.stamp_ns), frame_id=frame.frame_id)
        result = FrameResult("", frame.stamp_ns, frame.frame_id, frame.size, step.regions, frame.image, 0.0)
        self._put("regions", time_ns, region_array(result, header))
        names = names_of(step.regions)
        self._put("detections", time_ns, detections_message(step.regions, names, header))
        if DETECTIONS_3D[0] in self._connections:
            self._put(DETECTIONS_3D[0], time_ns, detections_3d_message(step.regions, names, header))
        for caption in (*step.captions, *step.summaries):
            self._newest[caption.region_id] = caption.shown
            self._put("streaming_captions", time_ns, caption_message(caption))
        if self._overlay:
            drawn = draw_overlay(frame.image, step.regions, captions=self._newest, mark=self._mark)
            self._put(OVERLAY[0], time_ns, jpeg_message(drawn, JPEG_QUALITY, header))

    def _put(
        self,
        name: str,
        time_ns: int,
        message: RegionArray | Detection2DArray | Detection3DArray | StreamingCaption | CompressedImage,
    ) -> None:
        self.store(self._connections[name], time_ns, serialize_message(message))

    def store(self, connection: Connection, time_ns: int, data: bytes) -> None:
        """Writes one message. Raises OutputError."""
        with unbroken(), _writable(self._writer.path):
            self._writer.write(connection, time_ns, data)


def names_of(regions: Sequence[Region]) -> dict[int, str]:
    """Region id → its label in the language asked for first; regions without one are left out."""
    return {region.region_id: region.name for region in regions if region.name}
