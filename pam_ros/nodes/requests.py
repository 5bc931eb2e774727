"""Messages → requests: prompts, surveys and a detector's boxes, checked.

Coordinates are pixels of the image, x right, y down. A message's stamp of zero means "not given".
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray

from pam_ros.errors import InputError, PromptError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.nodes.conversions import stamp_or_newest, time_message
from pam_ros.nodes.images import mask_from_image, rgb_from_image
from pam_ros.records import MAX_CLICKS, Detection, Language, Prompt, Task, image_tasks
from pam_ros.runtime.requests import (
    MAX_DETECTIONS,
    MAX_SURVEY_REGIONS,
    PromptRequest,
    SurveyRequest,
    SurveyResult,
    purpose_of,
)
from pam_ros.srv import Find, PerceiveAll

MAX_NAME = 256  # characters of a frame_id, of a detection's id and of its class
_MAX_CHOICES = 64  # tasks or languages of one request


@dataclass(frozen=True, slots=True)
class PromptDefaults:
    """Tasks and languages of a prompt that names none."""

    tasks: tuple[Task, ...]
    languages: tuple[Language, ...]


def check_length(name: str, field: Sized, most: int) -> None:
    """Raises InputError if a message's field is longer than what is read; before anything looks into it."""
    if len(field) > most:
        raise InputError(f"{name} has {len(field)} entries; at most {most} are allowed")


def languages_of(codes: Iterable[str]) -> tuple[Language, ...]:
    """`["en", "zh"]` → languages, in order, each once."""
    return tuple(dict.fromkeys(Language.parse(code) for code in codes))


def prompt_request(
    message: PromptMessage, defaults: PromptDefaults, image: Image | None = None
) -> PromptRequest:
    """Reads a prompt; `image`: the caller's own. Raises an InputError if either cannot be used."""
    check_length("tasks", message.tasks, _MAX_CHOICES)
    check_length("languages", message.languages, _MAX_CHOICES)
    return PromptRequest(
        prompt=_prompt(message),
        tasks=image_tasks(message.tasks) or defaults.tasks,
        languages=languages_of(message.languages) or defaults.languages,
        region_id=message.region_id,
        stamp_ns=stamp_or_newest(message.header),
        image=rgb_from_image(image) if image is not None else None,
    )


def _prompt(message: PromptMessage) -> Prompt | None:
    """None if the message names a region and has no clicks, box or mask."""
    check_length("points", message.points, MAX_CLICKS)
    check_length("point_labels", message.point_labels, MAX_CLICKS)
    if len(message.box) not in (0, 4):
        raise PromptError(f"a box has 4 numbers (x1, y1, x2, y2) or none, not {len(message.box)}")
    points = [(point.x, point.y) for point in message.points]
    box = list(message.box) or None
    has_mask = bool(message.mask.data or message.mask.width or message.mask.height)
    if message.region_id and not (points or box or has_mask):
        return None
    prompt = Prompt.from_clicks(points, list(message.point_labels) or None, box) if points or box else None
    if not has_mask:
        return prompt or Prompt()  # an empty prompt raises the error that says what is needed
    if prompt is not None:
        raise PromptError("a mask prompt cannot be combined with clicks or a box; send one or the other")
    return Prompt.from_mask(mask_from_image(message.mask))


def survey_request(message: PerceiveAll.Request, defaults: PromptDefaults) -> SurveyRequest:
    """Reads a request for everything in view. Raises an InputError if it cannot be used."""
    check_length("tasks", message.tasks, _MAX_CHOICES)
    check_length("languages", message.languages, _MAX_CHOICES)
    check_length("boxes", message.boxes, MAX_SURVEY_REGIONS)
    return SurveyRequest(
        tasks=image_tasks(message.tasks) or defaults.tasks,
        languages=languages_of(message.languages) or defaults.languages,
        max_regions=message.max_regions,
        budget_s=message.budget_ms / 1000,
        boxes_xyxy=_boxes(message.boxes),
        keep=message.keep,
        stamp_ns=stamp_or_newest(message.header),
        image=_own_image(message.image),
    )


def find_request(message: Find.Request) -> SurveyRequest:
    """Reads a request for what fits a purpose. Raises an InputError if it cannot be used."""
    check_length("boxes", message.boxes, MAX_SURVEY_REGIONS)
    check_length("region_ids", message.region_ids, MAX_SURVEY_REGIONS)
    purpose, language = purpose_of(message.request, message.language)
    return SurveyRequest(
        languages=(language,),
        purpose=purpose,
        max_regions=message.max_regions,
        budget_s=message.budget_ms / 1000,
        boxes_xyxy=_boxes(message.boxes),
        region_ids=tuple(dict.fromkeys(message.region_ids)),
        keep=message.keep,
        min_score=float(message.min_score) or None,
        stamp_ns=stamp_or_newest(message.header),
        image=_own_image(message.image),
    )


def survey_header(result: SurveyResult, image: Image) -> Header:
    """Header of the image that was surveyed; `image`: the request's own, with empty data for the camera's."""
    if _own_image(image) is not None:
        return image.header
    return Header(stamp=time_message(result.stamp_ns), frame_id=result.frame_id)


def _own_image(image: Image) -> NDArray[np.uint8] | None:
    return rgb_from_image(image) if image.data or image.width else None


def _boxes(messages: Sequence[BoundingBox2D]) -> tuple[tuple[float, float, float, float], ...] | None:
    """None if there are none: the grid is to be used."""
    return tuple(_corners(box) for box in messages) or None


def _corners(box: BoundingBox2D) -> tuple[float, float, float, float]:
    x, y, width, height = box.center.position.x, box.center.position.y, box.size_x, box.size_y
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def detections_of(message: Detection2DArray) -> tuple[list[Detection], list[str]]:
    """The usable detections, and one line for each of the others that says what is wrong with it.

    Of more than MAX_DETECTIONS, those with the highest scores are read.
    """
    detections = []
    chosen: Sequence[int] = range(len(message.detections))
    left_out = max(len(chosen) - MAX_DETECTIONS, 0)
    problems = [f"of a larger message, only the {MAX_DETECTIONS} with the highest scores are read"] * left_out
    if left_out:
        chosen = sorted(
            heapq.nlargest(MAX_DETECTIONS, chosen, key=lambda index: _score(message.detections[index]))
        )
    for index in chosen:
        detection = message.detections[index]
        box = detection.bbox
        x, y, width, height = box.center.position.x, box.center.position.y, box.size_x, box.size_y
        if not all(math.isfinite(value) for value in (x, y, width, height)) or width <= 0 or height <= 0:
            problems.append(
                f"detection {index} has centre ({x}, {y}) and size {width} x {height}; "
                "both must be finite and the size above 0"
            )
            continue
        found = Detection(box_xyxy=_corners(box), source_id=detection.id, source_class=_best_class(detection))
        longest = max(len(found.source_id), len(found.source_class))
        if longest > MAX_NAME:
            problems.append(
                f"detection {index} has an id or class of {longest} characters; allowed: {MAX_NAME}"
            )
            continue
        detections.append(found)
    return detections, problems


def _score(detection: Detection2D) -> float:
    """The highest score of its hypotheses; 0 if there is none."""
    scores = [result.hypothesis.score for result in detection.results]
    return max((score for score in scores if math.isfinite(score)), default=0.0)


def _best_class(detection: Detection2D) -> str:
    """class_id of the hypothesis with the highest score; empty if there is none."""
    hypotheses = [result.hypothesis for result in detection.results]
    return str(max(hypotheses, key=lambda each: each.score).class_id) if hypotheses else ""
