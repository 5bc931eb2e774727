"""The label in the language asked for first names a region, whichever text ends first."""

from __future__ import annotations

from stepped_engine import ALL_TEXTS, Stepped, click, stepped

from pam_ros.model.interface import TextDelta
from pam_ros.records import Language, Task

EN, ZH = (Task.LABEL, Language.EN), (Task.LABEL, Language.ZH)
BOTH = {"tasks": (Task.LABEL,), "languages": (Language.EN, Language.ZH)}


def finish(rig: Stepped, monkeypatch, batch: int, index: int, text: str) -> None:
    """One text of a batch ends; the others stand still."""
    delta = TextDelta(rig.model.batches[batch][index].text_id, text, True)
    with monkeypatch.context() as patch:
        patch.setattr(rig.model, "step", lambda: [delta])
        rig.turn()


def newest(rig: Stepped):
    """The region as the newest frame reports it."""
    (region,) = rig.events.frames[-1].regions
    return region


def asked(**texts):
    """A rig whose region was asked for these texts, none of which has ended."""
    rig = stepped()
    rig.frame(1.0)
    rig.region(click())
    rig.model.stepping.clear()
    handle = rig.request(region_id=1, **texts)
    rig.turn()
    return rig, handle


def test_a_name_waits_for_the_first_language(monkeypatch):
    rig, _ = asked(**BOTH)
    finish(rig, monkeypatch, 0, 1, "水壶")
    assert rig.events.texts[-1].asked == (EN, ZH)
    rig.frame(1.1)
    assert (newest(rig).name, list(newest(rig).texts)) == ("", [ZH])
    finish(rig, monkeypatch, 0, 0, "kettle")
    rig.frame(1.2)
    assert (newest(rig).name, list(newest(rig).texts)) == ("kettle", [EN, ZH])


def test_a_name_that_will_not_come_is_replaced_at_once(monkeypatch):
    rig, handle = asked(**BOTH)
    finish(rig, monkeypatch, 0, 1, "水壶")
    handle.cancel()
    rig.turn()
    event = rig.events.texts[-1]  # also without a new frame
    assert (event.language, event.text, event.final, event.asked) == (Language.ZH, "水壶", True, (ZH,))
    rig.frame(1.1)
    assert newest(rig).name == "水壶"
    # Asked for again, the first language still comes first.
    rig.request(region_id=1, tasks=(Task.LABEL,))
    rig.turn()
    rig.frame(1.2)
    assert newest(rig).name == ""
    finish(rig, monkeypatch, 1, 0, "kettle")
    rig.frame(1.3)
    assert newest(rig).name == "kettle"


def test_a_later_request_does_not_rename_a_region(monkeypatch):
    rig, _ = asked(tasks=(Task.LABEL,), languages=(Language.ZH,))
    finish(rig, monkeypatch, 0, 0, "水壶")
    rig.request(region_id=1, **BOTH)
    rig.turn()
    finish(rig, monkeypatch, 1, 0, "kettle")
    rig.frame(1.1)
    assert newest(rig).name == "水壶"
    assert list(newest(rig).texts) == [ZH, EN]


def test_a_removed_region_is_not_reported_again(monkeypatch):
    rig, _ = asked(**BOTH)
    finish(rig, monkeypatch, 0, 1, "水壶")
    before = len(rig.events.texts)
    rig.engine.remove_region("front", 1)
    rig.settle()
    assert len(rig.events.texts) == before


def test_nothing_is_left_under_way(monkeypatch):
    rig, _ = asked(**ALL_TEXTS)
    rig.model.stepping.set()
    rig.settle()
    assert rig.engine._flow._cameras["front"].regions[1]._under_way == {}
