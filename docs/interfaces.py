"""Writes docs/interfaces.md from the nodes and the interface files: `python docs/interfaces.py`.

Names, types and quality of service are read from the nodes themselves, started with two sets of parameters,
as the transports choose the topics. Meanings are here; one that is missing, or left over, is an error.
`-` prints the page instead of writing it. Start it by `.setup/run.sh`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rclpy
import rclpy.action
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy

from pam_ros.nodes.main import perception_nodes
from pam_ros.nodes.manager_node import ManagerNode

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "interfaces.md"
RAW: list[str] = []
COMPRESSED = ["image_transport:=compressed", "depth_transport:=compressedDepth"]
PLUMBING = ("/rosout", "/parameter_events", "/clock")  # of every node

INPUTS = {
    "image": "the camera; `image_transport` chooses this one",
    "image/compressed": "or this one. [Encodings](images.md)",
    "camera_info": "calibration, for 3D clicks and markers; it is expected beside the image",
    "depth": "depth aligned to the image (REP 118); `depth_transport` chooses this one",
    "depth/compressedDepth": "or this one",
    "image_mouse_left": "a click in rqt_image_view on `image`, pixels; remapped with `image`",
    "image/compressed_mouse_left": "the same on `image/compressed`",
    "~/overlay_mouse_left": "the same on the overlay",
    "~/overlay/compressed_mouse_left": "the same on the compressed overlay",
    "clicked_point": "a click in RViz: a point in any TF frame ([3D clicks](spatial.md))",
    "clicked_point_negative": "a point on a region's mask that does not belong to the region",
    "detections": "boxes of a detector, matched to the frame of their stamp; new objects become regions",
    "prompt_mask": "a mask prompt, mono8, of the image's size; nonzero is inside",
    "~/prompt": "clicks, box or mask; tasks; languages; optionally the region to refine",
}
OUTPUTS = {
    "~/regions": "per processed frame: id, state, box, cropped mask, scores, texts so far, position and size",
    "~/label_image": "16UC1, the region's id at each pixel, 0 elsewhere",
    "~/label_info": "the labels of these ids",
    "~/detections": "for tools that read vision_msgs; `score` is the label's [confidence](confidence.md)",
    "~/detections_3d": "the regions in 3D; only with depth",
    "~/streaming_captions": "rolling captions, partial and final; one summary when a stream ends",
    "~/overlay": "masks, labels and captions drawn on the frame",
    "~/overlay/compressed": "the same as JPEG",
    "~/markers": "labels, captions, outlines and boxes in 3D for RViz; without depth the image, too",
    "~/image_annotations": "outlines, labels and captions for Foxglove; only if foxglove_msgs is installed",
    "/diagnostics": "rates, dropped frames, latencies, memory, lifecycle state; once a second",
}
SERVICES = {
    "~/perceive": "a prompt or a region → mask and texts; also on an image of your own",
    "~/perceive_all": "everything in view without a prompt, each region with mask and texts",
    "~/find": "regions ranked by how well they fit a request in words, or none ([robots](robots.md))",
    "~/remove_region": "remove one region",
    "~/clear_regions": "remove all regions of this camera",
    "~/caption_now": "caption the clip recorded so far",
}
ACTIONS = {"~/caption_clip": "record a clip, then caption it; the feedback carries the growing text"}
HEAD = """\
# Topics, services and messages

This page is written by `python docs/interfaces.py` from the nodes and the interface files; a test fails if
it is stale.

One process, `pam_node`, runs the lifecycle node `/pam_manager` and one perception node for each camera:
`/pam`, or `/pam_<camera>` with inputs `<camera>/image`, … if there are several. Inputs are relative
names: remap them with `-r image:=/camera/image_raw`, or with launch arguments. Outputs are private names
(`~`), and carry stamp and frame_id of the image they describe.
"""
TAIL_OF_TOPICS = """\
Visualisation topics are published only while they have subscribers. While the camera stands still, a new
subscriber gets the newest frame's message within 2 s. The nodes publish no transforms; they subscribe to
`/tf` and `/tf_static` (reliable, depth 100) once `clicked_point` has a publisher. Parameters named
`qos_overrides.…` override a topic's quality of service; the defaults are explained in
[Images over DDS](transport.md). Parameters: [parameters.md](parameters.md).
"""


def entities(parameters: Sequence[str]) -> dict[str, dict[str, tuple[str, str, int]]]:
    """Kind ("input", "output", "service", "action") → name → type, quality of service, depth."""
    arguments = ["--ros-args"]
    for parameter in parameters:
        arguments += ["-p", parameter]
    rclpy.init(args=arguments)
    try:
        manager = ManagerNode(None)  # type: ignore[arg-type]  # nothing is loaded
        (node,) = perception_nodes(manager)
        found: dict[str, dict[str, tuple[str, str, int]]] = {
            "input": listed(node, ((it, it.topic_name, it.msg_type) for it in node.subscriptions)),
            "output": listed(node, ((it, it.topic_name, it.msg_type) for it in node.publishers))
            | listed(manager, ((it, it.topic_name, it.msg_type) for it in manager.publishers)),
            "service": listed(node, ((it, it.srv_name, it.srv_type) for it in node.services)),
            "action": {
                f"~/{name.rpartition('/')[2]}": (kinds[0], "", 0)
                for name, kinds in rclpy.action.get_action_server_names_and_types_by_node(
                    node, node.get_name(), node.get_namespace()
                )
            },
        }
        manager.serve([node])
        node.close_outputs()
        node.destroy_node()
        manager.destroy_node()
        return found
    finally:
        rclpy.try_shutdown()


def listed(node: Node, those: Iterable[tuple[Any, str, type]]) -> dict[str, tuple[str, str, int]]:
    """Name → type, quality of service, depth; without what every node has."""
    own = node.get_fully_qualified_name() + "/"
    found = {}
    for it, topic, kind in those:
        package, folder = kind.__module__.split(".")[:2]
        if topic not in PLUMBING and package not in (
            "rcl_interfaces",
            "lifecycle_msgs",
            "type_description_interfaces",
        ):
            name = f"~/{topic[len(own) :]}" if topic.startswith(own) else topic
            if not name.startswith("~") and folder == "msg" and name != "/diagnostics":
                name = name.removeprefix("/")
            profile = getattr(it, "qos_profile", None)
            found[name] = (f"{package}/{kind.__name__}", quality(profile), profile.depth if profile else 0)
    return found


def quality(profile: QoSProfile | None) -> str:
    """Reliability and durability in words."""
    if profile is None:
        return ""
    words = "best effort" if profile.reliability == QoSReliabilityPolicy.BEST_EFFORT else "reliable"
    return words + (", transient local" if profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL else "")


def table(title: str, found: dict[str, tuple[str, str, int]], meanings: dict[str, str]) -> str:
    """A table in the order of the meanings. Raises ValueError if names differ."""
    if difference := sorted(found.keys() ^ meanings.keys()):
        raise ValueError(f"docs/interfaces.py and the nodes differ in: {', '.join(difference)}")
    with_quality = any(depth for _, _, depth in found.values())
    columns = ["name", "type", *(["quality of service", "depth"] if with_quality else []), "meaning"]
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, meaning in meanings.items():
        kind, qos, depth = found[name]
        short = kind.replace("/action/", "/")
        cells = [f"`{name}`", link(short), *([qos, str(depth)] if with_quality else []), meaning]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def link(kind: str) -> str:
    """The type; a link to its definition below if it is our own."""
    package, name = kind.split("/")
    return f"[{kind}](#{name.lower()})" if package == "pam_ros" else kind


def definitions() -> str:
    """The interface files with their comments."""
    lines = ["## Definitions", ""]
    for folder, title in (("msg", "Messages"), ("srv", "Services"), ("action", "Actions")):
        lines += [f"**{title}**", ""]
        for path in sorted((ROOT / folder).iterdir()):
            lines += [f"### {path.stem}", "", "```text", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The page as it should be."""
    found = entities(RAW)
    for kind, names in entities(COMPRESSED).items():
        found[kind] |= names
    parts = (
        table("Inputs", found["input"], INPUTS),
        table("Outputs", found["output"], OUTPUTS),
        TAIL_OF_TOPICS,
        table("Services", found["service"], SERVICES),
        table("Actions", found["action"], ACTIONS),
        definitions(),
    )
    return "\n".join((HEAD, *parts))


if __name__ == "__main__":
    if "-" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")
