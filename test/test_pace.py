"""A recording that is played as a camera waits for the other side; when its clips end can be foretold."""

from __future__ import annotations

import pytest

from pam_ros.runtime.clip_sampler import ClipSampler, decode_stamps
from pam_ros.runtime.pace import PATIENCE_S, Pace

NS = 1_000_000_000


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(clock: Clock, **options: object) -> Pace:
    pace = Pace(clock=clock, **options)  # type: ignore[arg-type]
    pace.begin(5 * NS)
    return pace


def test_frames_keep_their_own_time(clock: Clock) -> None:
    pace = begun(clock, rate=2.0)
    assert pace.due(0)
    assert pace.wait_s(NS) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert pace.due(NS)


def test_no_frame_is_sent_before_the_one_before_was_answered(clock: Clock) -> None:
    pace = begun(clock)
    pace.sent(5 * NS)
    clock.now_s += 7.0
    assert not pace.due(NS) and not pace.answered
    pace.saw(4 * NS, ())  # another frame
    assert not pace.due(NS)
    pace.saw(5 * NS, ())
    assert pace.due(NS) and pace.answered


def test_a_frame_that_is_never_answered_ends_nothing(clock: Clock) -> None:
    pace = begun(clock)
    pace.sent(5 * NS)
    clock.now_s += PATIENCE_S + 0.1
    assert pace.due(NS)
    pace.sent(6 * NS)
    pace.saw(6 * NS, ())
    assert pace.report().startswith("1 of 2 frames were seen; 1.0 s of video took 60.1 s (0.02x)")


def test_a_recording_that_was_held_and_never_played_has_no_speed(clock: Clock) -> None:
    pace = Pace(clock=clock)
    for k in range(3):
        pace.sent(k)
    pace.saw(2, ())
    assert pace.report() == ""


def test_a_caption_may_lag_behind_for_a_while(clock: Clock) -> None:
    pace = begun(clock, max_lag_s=1.5)
    clock.now_s += 30.0
    pace.caption((1, 0), 8 * NS, final=False)
    assert pace.due(4 * NS)  # its stamp is 9 s
    assert not pace.due(5 * NS)
    pace.caption((1, 0), 8 * NS, final=True)
    assert pace.due(5 * NS)


def test_a_caption_whose_region_is_gone_is_not_waited_for(clock: Clock) -> None:
    pace = begun(clock, max_lag_s=1.5)
    clock.now_s += 30.0
    for region_id in (1, 2):
        pace.caption((region_id, 0), 8 * NS, final=False)
    pace.saw(8 * NS, (1, 2))
    assert not pace.due(5 * NS)
    pace.saw(8 * NS, (2,))
    assert not pace.due(5 * NS)
    pace.saw(8 * NS, ())
    assert pace.due(5 * NS)


def test_a_caption_that_failed_is_waited_for_only_if_it_grows_again(clock: Clock) -> None:
    pace = begun(clock, max_lag_s=1.5)
    clock.now_s += 30.0
    pace.caption((1, 0), 8 * NS, final=False)
    pace.caption_failed()
    assert pace.due(5 * NS)
    pace.caption((1, 0), 8 * NS, final=False)
    assert not pace.due(5 * NS)


def test_captions_of_before_do_not_hold_a_recording_that_begins_again(clock: Clock) -> None:
    pace = begun(clock, max_lag_s=1.5)
    pace.caption((1, 0), 8 * NS, final=False)
    pace.begin(20 * NS)
    assert pace.due(0)


def test_a_webcam_waits_for_nothing_and_is_counted(clock: Clock) -> None:
    pace = begun(clock, follow=False)
    for k in range(4):
        pace.sent(k)
    pace.saw(3, ())
    assert pace.due(0)
    assert pace.report() == "1 of 4 frames were seen"


@pytest.mark.parametrize("period_s", [1.0, 2.5, 3.0])
def test_clips_end_where_the_sampler_ends_them(period_s: float) -> None:
    stamps = [k * NS // 10 for k in range(120)]
    ends = decode_stamps(stamps, period_s, 16)
    assert ends == [round(k * period_s * NS) for k in range(1, int(11.9 / period_s) + 1)]


def test_how_many_frames_were_planned() -> None:
    sampler = ClipSampler(start_ns=0, period_s=3.0, max_frames=16)
    planned = {at_s: sampler.planned(round(at_s * NS)) for at_s in (0.0, 0.1, 0.2, 1.5, 3.0, 9.0)}
    assert planned == {0.0: 1, 0.1: 1, 0.2: 2, 1.5: 8, 3.0: 16, 9.0: 16}
