"""What no well-behaved program sends: random messages and corrupted bytes on every input of the node.

Seeded, so that a run can be repeated. Well-formed images are left out: they would be the camera's newest.
"""

from __future__ import annotations

import array
import math
import random
from typing import Any

from geometry_msgs.msg import Point, PointStamped
from rclpy.serialization import serialize_message
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection2DArray

from pam_ros.msg import Prompt
from pam_ros.nodes.tools.client import Client
from pam_ros.srv import CaptionNow, Find, PerceiveAll, PerceiveRegion, RemoveRegion

TOPICS: dict[str, type] = {
    "/image": Image,
    "/pam/prompt": Prompt,
    "/detections": Detection2DArray,
    "/image_mouse_left": Point,
    "/clicked_point": PointStamped,
    "/camera_info": CameraInfo,
    "/tf": TFMessage,
}
SERVICES: dict[str, Any] = {
    "/pam/perceive": PerceiveRegion,
    "/pam/perceive_all": PerceiveAll,
    "/pam/find": Find,
    "/pam/caption_now": CaptionNow,
    "/pam/remove_region": RemoveRegion,
}
NUMBERS = (0.0, -1.0, 0.5, 9.0, 63.0, 1e9, -1e308, 1e-320, math.nan, math.inf, -math.inf)
TEXTS = (
    "",
    "label",
    "en",
    "zh",
    "rgb8",
    "mono16",
    "bayer_rggb8",
    "x" * 300,
    "\x1b[31m",
    "%s{}[bold]",
    "杯子",
    "/",
)
LENGTHS = (0, 1, 2, 3, 5, 65, 300)
ELEMENTS = 1000  # of all sequences of a message together, about
CORRUPTED = 1 / 3  # of the messages
NO_REGION = 2**32 - 1  # what random requests name: the regions of others are left alone


class Hostile:
    """Sends random messages and requests by a client's node."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client, self._random = client, random.Random(seed)
        self._budget = 0
        client.publisher(PointStamped, "/clicked_point")  # who can click makes the node listen to transforms
        self.sent = 0
        self.requests: list[Future] = []  # each must be answered

    def send(self) -> None:
        """One message on a random topic; a third of them is corrupted."""
        topic, kind = self._random.choice(list(TOPICS.items()))
        message = self._message(kind)
        if kind is Image:
            message.height = 4096  # more rows than the data has
        data = serialize_message(message)
        if self._random.random() < CORRUPTED:
            data = self._corrupted(data)
        self._client.publisher(kind, topic).publish(data)
        self.sent += 1

    def ask(self) -> None:
        """One random request to a random service, without waiting for the answer."""
        service, kind = self._random.choice(list(SERVICES.items()))
        self.requests.append(self._client.start_call(kind, service, self._message(kind.Request)))

    def _message(self, kind: type) -> Any:
        self._budget = ELEMENTS
        return self._filled(kind())

    def _filled(self, message: Any) -> Any:
        for name, kind in message.get_fields_and_field_types().items():
            if name == "region_id" or name == "region_ids":
                value: Any = NO_REGION if name == "region_id" else [NO_REGION]
            else:
                value = self._value(kind, getattr(message, name))
            setattr(message, name, value)
        return message

    def _value(self, kind: str, now: Any) -> Any:
        if kind.startswith("sequence<"):
            return self._sequence(kind.removeprefix("sequence<").removesuffix(">").split(",")[0], now)
        if kind.endswith("]"):  # an array of fixed length
            return [self._random.choice(NUMBERS) for _ in now]
        if hasattr(now, "get_fields_and_field_types"):
            return self._filled(now)
        if kind == "string":
            return self._random.choice(TEXTS)
        if kind == "boolean":
            return self._random.random() < 0.5
        if kind == "float":
            return self._random.choice([number for number in NUMBERS if not 1e38 < abs(number) < math.inf])
        if kind == "double":
            return self._random.choice(NUMBERS)
        bits = int(kind.removeprefix("u").removeprefix("int"))
        highest = 2**bits - 1 if kind.startswith("u") else 2 ** (bits - 1) - 1
        return self._random.choice((0, 1, 7, 64, highest))

    def _sequence(self, kind: str, now: Any) -> Any:
        length = min(self._random.choice(LENGTHS), max(0, self._budget))
        self._budget -= length
        if isinstance(now, array.array):
            blank = now.typecode
            whole = blank in "bBhHiIlLqQ"
            values = [
                self._random.randrange(100) if whole else self._random.choice((0.0, 9.0, math.nan))
                for _ in range(length)
            ]
            return array.array(blank, values)
        if "/" in kind:
            return [self._filled(_element(kind)) for _ in range(length)]
        return [self._value(kind, None) for _ in range(length)]

    def _corrupted(self, data: bytes) -> bytes:
        """Some bytes changed, or the end missing; the first four say how it is encoded."""
        if self._random.random() < 0.5:
            return data[: 4 + self._random.randrange(max(1, len(data) - 4))]
        changed = bytearray(data)
        for _ in range(self._random.randrange(1, 9)):
            changed[self._random.randrange(4, len(changed)) if len(changed) > 4 else 0] = (
                self._random.randrange(256)
            )
        return bytes(changed)


def _element(kind: str) -> Any:
    """A blank message of a kind such as `vision_msgs/Point2D`."""
    from importlib import import_module

    package, name = kind.split("/")
    return getattr(import_module(f"{package}.msg"), name)()
