"""docs/formats.md lists the keys that the commands really write."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from pam_ros.findings import Finding, Verdict
from pam_ros.json_results import caption_json, region_json
from pam_ros.records import IMAGE_TASKS, Language, Region, RegionState, Text

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")


def keys(heading: str) -> set[str]:
    """What stands as code in the first column of the first table after `heading`."""
    (table,) = re.findall(rf"{re.escape(heading)}.*?((?:^\|[^\n]*\n)+)", PAGE, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.fixture
def region() -> Region:
    texts = {(task, Language.EN): Text("one", stamp_ns=2, confidence=0.5) for task in IMAGE_TASKS}
    return Region(
        region_id=1,
        state=RegionState.TRACKED,
        box_xyxy=np.array([1, 2, 3, 5], np.float32),
        mask=np.ones((3, 2), bool),
        mask_score=0.9,
        presence_score=1.0,
        texts=texts,
        created_ns=1,
        last_visible_ns=2,
        asked=(*texts, (IMAGE_TASKS[0], Language.ZH)),
    )


def test_keys_of_a_region_and_its_texts(region: Region) -> None:
    found = region_json(region)
    assert keys("## A region") == found.keys()
    assert keys("The entries of `texts`:") == {key for entry in found["texts"] for key in entry}
    assert {entry["language"] for entry in found["texts"]} == {"en", "zh"}
    assert found["position"] is None


def test_keys_of_a_caption() -> None:
    found = caption_json(
        region_id=1,
        sequence=0,
        language=Language.EN,
        text="It moves.",
        confidence=None,
        unsure=False,
        clip_start_ns=0,
        clip_end_ns=1,
        frame_count=2,
        clip_too_thin=True,
        summary=False,
    )
    assert keys("## A caption") == found.keys()


def test_keys_of_a_finding() -> None:
    assert keys("## A finding") == {field.name for field in dataclasses.fields(Finding)}
    (row,) = re.findall(r"^\| `verdict` \| (.+) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {verdict.value for verdict in Verdict}
