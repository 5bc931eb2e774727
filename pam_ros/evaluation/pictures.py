"""Images of cases: the prompt and the true mask beside the model's answer.

Images are `(H, W, 3)` uint8 RGB. A case keeps no pixels: it draws the sample when the page needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.datasets.schema import Sample
from pam_ros.evaluation.cases import Draw
from pam_ros.geometry import Mask
from pam_ros.records import Prompt, Region
from pam_ros.runtime.overlay import OverlayStyle, draw_overlay

Picture = NDArray[np.uint8]
TRUTH = (60, 220, 60)
PROMPT = (255, 255, 0)
EDGE = (0, 0, 0)
GAP_PX = 6  # between images
TILE_WIDTH_PX = 384  # of a video's frames
MASKS_ONLY = OverlayStyle(texts=False)


def image_case(image: Sample, place: int, prompt: Prompt, answer: Region | None = None) -> Draw:
    """The prompt (yellow) and the true mask (green) on the left; the answer (blue), if any, on the right.

    `place` is the region's index in `image.regions`.
    """
    return partial(_draw_image, image, place, prompt, answer)


def video_case(video: Sample, place: int, answers: Sequence[tuple[int, Region]], columns: int = 3) -> Draw:
    """Frames of a video in `columns` columns: the true mask outlined in green, the answer in blue.

    `answers` are (frame index, the model's region there); the prompt is drawn in frame 0.
    """
    return partial(_draw_video, video, place, tuple(answers), columns)


def found_case(image: Sample, answer: Region | None) -> Picture:
    """The image with the region that was found, if there is one."""
    return image.image() if answer is None else _answered(image.image(), answer)


def _draw_image(image: Sample, place: int, prompt: Prompt, answer: Region | None) -> Picture:
    pixels, mask = image.image(), image.regions[place].mask()
    asked = pixels.copy()
    if mask is not None:
        tinted = (asked[mask] * 0.55 + np.array(TRUTH) * 0.45).astype(np.uint8)
        asked[mask] = tinted
        asked = outlined(asked, mask)
    asked = prompted(asked, prompt)
    if answer is None:
        return asked
    return beside([asked, _answered(pixels, answer)])


def _draw_video(video: Sample, place: int, answers: tuple[tuple[int, Region], ...], columns: int) -> Picture:
    tiles = []
    for index, region in answers:
        tile = _answered(video.image(index), region)
        mask = video.regions[place].mask(index)
        tile = tile if mask is None else outlined(tile, mask)
        tile = prompted(tile, video.regions[place].prompt()) if index == 0 else tile
        height = round(tile.shape[0] * TILE_WIDTH_PX / tile.shape[1])
        tile = np.asarray(cv2.resize(tile, (TILE_WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
        state = region.state.name.lower() + ("" if mask is None or mask.any() else ", hidden")
        tiles.append(_noted(tile, f"{index / video.fps:.1f} s: {state}"))
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [beside(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    gap = np.full((GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _answered(picture: Picture, region: Region) -> Picture:
    """The image with the answer's mask, always in blue, so that the truth's green stands out."""
    return draw_overlay(picture, [replace(region, region_id=1)], style=MASKS_ONLY)


def outlined(picture: Picture, mask: Mask) -> Picture:
    """A copy with the mask's outline in green."""
    copy = np.ascontiguousarray(picture).copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(copy, contours, -1, TRUTH, 1)
    return copy


def prompted(picture: Picture, prompt: Prompt) -> Picture:
    """A copy with the prompt's box and clicks in yellow."""
    copy = np.ascontiguousarray(picture).copy()
    if prompt.box is not None:
        x1, y1, x2, y2 = (round(float(edge)) for edge in prompt.box)
        cv2.rectangle(copy, (x1, y1), (x2 - 1, y2 - 1), PROMPT, 1)
    for x, y in prompt.points:
        centre = (round(float(x)), round(float(y)))
        cv2.circle(copy, centre, 6, EDGE, -1, cv2.LINE_AA)
        cv2.circle(copy, centre, 4, PROMPT, -1, cv2.LINE_AA)
    return copy


def beside(pictures: Sequence[Picture]) -> Picture:
    """Images of one height beside each other, with a white gap."""
    gap = np.full((pictures[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], 1)


def _noted(picture: Picture, text: str) -> Picture:
    """White letters with a black edge in the upper left corner; ASCII."""
    for colour, thickness in ((EDGE, 3), ((255, 255, 255), 1)):
        cv2.putText(
            picture, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, lineType=cv2.LINE_AA
        )
    return picture
