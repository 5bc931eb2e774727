"""The RViz configuration against RViz's own display and tool classes, by name and property."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = Path(__file__).resolve().parents[1] / "config"
RVIZ = yaml.safe_load((CONFIG / "pam.rviz").read_text(encoding="utf-8"))
MANAGER = RVIZ["Visualization Manager"]

# Classes of rviz_default_plugins and rviz_common (as in Humble, Jazzy and Rolling), each with the properties
# that its source declares: name → type, or a dictionary for a property with further ones below it.
QOS = {
    "Value": str,
    "Depth": int,
    "History Policy": {"System Default", "Keep Last", "Keep All"},
    "Reliability Policy": {"System Default", "Reliable", "Best Effort"},
    "Durability Policy": {"System Default", "Transient Local", "Volatile"},
}
ANY_DISPLAY = {"Class": str, "Name": str, "Enabled": bool, "Value": bool}
VECTOR = {"X": float, "Y": float, "Z": float}
DISPLAYS = {
    "rviz_default_plugins/Image": {
        "Topic": QOS,
        "Normalize Range": bool,
        "Min Value": float,
        "Max Value": float,
        "Median window": int,
    },
    "rviz_default_plugins/MarkerArray": {"Topic": QOS, "Namespaces": None},
    "rviz_default_plugins/DepthCloud": {
        "Depth Map Topic": str,
        "Depth Map Transport Hint": str,
        "Color Image Topic": str,
        "Color Transport Hint": str,
        "Topic Filter": bool,
        "Queue Size": int,
        "Reliability Policy": {"Best effort", "Reliable"},
        "Auto Size": {"Value": bool, "Auto Size Factor": float},
        "Occlusion Compensation": {"Value": bool, "Occlusion Time-Out": float},
        "Selectable": bool,
        "Style": {"Points", "Squares", "Flat Squares", "Spheres", "Boxes", "Tiles"},
        "Size (Pixels)": float,
        "Alpha": float,
        "Decay Time": float,
        "Position Transformer": {"XYZ"},
        "Color Transformer": {"RGB8", "Intensity", "AxisColor", "FlatColor", ""},
    },
}
TOOLS = {
    "rviz_default_plugins/MoveCamera": {},
    "rviz_default_plugins/Interact": {"Hide Inactive Objects": bool},
    "rviz_default_plugins/Select": {},
    "rviz_default_plugins/FocusCamera": {},
    "rviz_default_plugins/Measure": {},
    "rviz_default_plugins/PublishPoint": {"Topic": QOS, "Single click": bool},
}
ORBIT = {
    "Class": str,
    "Name": str,
    "Value": str,
    "Target Frame": str,
    "Distance": float,
    "Yaw": float,
    "Pitch": float,
    "Focal Point": VECTOR,
    "Near Clip Distance": float,
    "Invert Z Axis": bool,
    "Enable Stereo Rendering": {
        "Value": bool,
        "Stereo Eye Separation": float,
        "Stereo Focal Distance": float,
        "Swap Stereo Eyes": bool,
    },
}
PANELS = {"rviz_common/Displays", "rviz_common/Tool Properties", "rviz_common/Views"}


def problems(given: dict[str, Any], declared: dict[str, Any], where: str) -> Iterator[str]:
    """What RViz would not take: unknown properties, values of another type, words that are no option."""
    for name, value in given.items():
        if name not in declared:
            yield f"{where} has no property {name!r}"
            continue
        kind = declared[name]
        if kind is float:
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
        elif isinstance(kind, set):
            good = value in kind
        elif isinstance(kind, dict):
            good = isinstance(value, dict)
            yield from problems(value, kind, f"{where}, {name}") if good else ()
        else:
            good = kind is None or type(value) is kind
        if not good:
            yield f"{where}: {name} is {value!r}"


def of_class(name: str, entries: str = "Displays") -> list[dict[str, Any]]:
    return [entry for entry in MANAGER[entries] if entry["Class"] == f"rviz_default_plugins/{name}"]


def test_displays_and_tools_are_ones_that_rviz_has_with_properties_it_declares() -> None:
    found = []
    for display in MANAGER["Displays"]:
        declared = DISPLAYS[display["Class"]] | ANY_DISPLAY
        found += problems(display, declared, display["Name"])
    for tool in MANAGER["Tools"]:
        found += problems(tool, TOOLS[tool["Class"]] | {"Class": str}, tool["Class"])
    found += problems(MANAGER["Views"]["Current"], ORBIT, "the view")
    assert not found
    assert {panel["Class"] for panel in RVIZ["Panels"]} <= PANELS


def test_a_wrong_configuration_would_be_found() -> None:
    display = {"Class": "x", "Topik": "", "Depth Map Topic": 3, "Style": "Dots", "Auto Size": {"Factor": 1}}
    declared = DISPLAYS["rviz_default_plugins/DepthCloud"] | ANY_DISPLAY
    assert len(list(problems(display, declared, "it"))) == 4


def test_every_display_has_a_name_of_its_own_and_is_on() -> None:
    displays = MANAGER["Displays"]
    assert len({display["Name"] for display in displays}) == len(displays)
    assert all(display["Enabled"] and display["Value"] for display in displays)


def test_everything_a_person_needs_is_there() -> None:
    topics = {
        "overlay": [it["Topic"]["Value"] for it in of_class("Image")],
        "markers": [it["Topic"]["Value"] for it in of_class("MarkerArray")],
        "cloud": [(it["Depth Map Topic"], it["Color Image Topic"]) for it in of_class("DepthCloud")],
        "points": [it["Topic"]["Value"] for it in of_class("PublishPoint", "Tools")],
    }
    assert topics == {
        "overlay": ["pam/overlay"],
        "markers": ["pam/markers"],
        "cloud": [("depth", "image")],
        "points": ["clicked_point", "clicked_point_negative"],
    }


def test_nothing_in_space_takes_clicks_but_what_has_pixels() -> None:
    """RViz's tools hit whatever is drawn, axes and grids, too."""
    assert [it["Class"].rpartition("/")[2] for it in MANAGER["Displays"]] == [
        "Image", "MarkerArray", "DepthCloud",
    ]  # fmt: skip


def test_the_view_shows_the_whole_picture_upright() -> None:
    """The orbit's eye is behind the camera and its up is the picture's."""
    import numpy as np

    view = MANAGER["Views"]["Current"]
    yaw, pitch = view["Yaw"], view["Pitch"]
    eye = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    up = np.array([-np.cos(yaw) * np.sin(pitch), -np.sin(yaw) * np.sin(pitch), np.cos(pitch)])
    np.testing.assert_allclose(eye, (0, 0, -1), atol=0.01)
    np.testing.assert_allclose(up, (0, -1, 0), atol=0.01)
    assert abs(pitch) < np.pi / 2
    # At 1 m, the default distance of the picture, RViz sees an angle of 45 degrees from top to bottom.
    assert view["Focal Point"] == {"X": 0, "Y": 0, "Z": 1}
    seen_m = view["Distance"] * np.tan(np.deg2rad(45) / 2)
    assert seen_m > np.tan(np.deg2rad(58) / 2), "half of the picture of a wide camera"
    assert view["Distance"] < 1.5, "a click on an outline, before the picture, stays within a pixel"


def test_markers_of_every_namespace_are_shown() -> None:
    reason = "needs the built ROS interfaces"
    markers = pytest.importorskip("pam_ros.nodes.outputs.markers", reason=reason)
    labels = pytest.importorskip("pam_ros.nodes.outputs.label_markers", reason=reason)
    (display,) = of_class("MarkerArray")
    names = {labels.LABELS, labels.PLATES, markers.OUTLINES, markers.BOXES, markers.IMAGE}
    assert display["Namespaces"] == dict.fromkeys(names, True)
