"""Captions of a region are handed on in order of their sequence, whatever the order they come in."""

from __future__ import annotations

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from builtin_interfaces.msg import Time

from pam_ros.msg import StreamingCaption
from pam_ros.nodes.tools.caption_order import HOLD_S, CaptionOrder


def caption(sequence: int, *, region_id: int = 1, final: bool = True, length_s: int = 3) -> StreamingCaption:
    end = Time(sec=10 + length_s)
    return StreamingCaption(
        region_id=region_id, sequence=sequence, final=final, clip_start=Time(sec=10), clip_end=end
    )


@pytest.fixture
def handed() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def order(handed: list[tuple[int, int]], now: list[float]) -> CaptionOrder:
    return CaptionOrder(lambda it: handed.append((it.region_id, it.sequence)), lambda: now[0])


def test_a_caption_waits_for_those_before_it(order: CaptionOrder, handed: list[tuple[int, int]]) -> None:
    for sequence in (0, 2, 1, 3):
        order.take(caption(sequence))
    order.take(caption(0, region_id=2))
    assert handed == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert order.next_of(1) == 4


def test_growing_texts_are_not_handed_on(order: CaptionOrder, handed: list[tuple[int, int]]) -> None:
    order.take(caption(0, final=False))
    assert order.growing and not handed
    order.take(caption(0))
    assert not order.growing and handed == [(1, 0)]


def test_a_caption_that_was_skipped_is_waited_for_in_vain(
    order: CaptionOrder, handed: list[tuple[int, int]], now: list[float]
) -> None:
    order.take(caption(1))
    order.release()
    assert not handed
    now[0] = HOLD_S + 1
    order.release()
    assert handed == [(1, 1)]
    order.take(caption(3))
    order.release(everything=True)
    assert handed == [(1, 1), (1, 3)]


def test_a_caption_of_an_instant_is_left_out(order: CaptionOrder, handed: list[tuple[int, int]]) -> None:
    order.take(caption(0, length_s=0))
    order.take(caption(1))
    assert handed == [(1, 1)]
