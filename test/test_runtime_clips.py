"""Clips: the frames they sample and the moment they end."""

from itertools import pairwise

import numpy as np
import pytest
from fakes import FakeEmbeddings, FakeObservation
from stepped_engine import ns

from pam_ros.errors import InferenceError
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.clip_sampler import planned_instants
from pam_ros.runtime.embedding_plan import EmbeddedFrame
from pam_ros.runtime.tracks import TrackObservation


class NoEmbeddings:
    """A plan that has computed everything."""

    def embedded(self, observation, *, stride):
        return EmbeddedFrame((observation.observation_id, stride, False), FakeEmbeddings(1, 0, stride))


PLAN = NoEmbeddings()


def observation(stamp_s, presence=0.9):
    found = FakeObservation(1, 0, np.ones((4, 6), bool), 0.8, presence)
    return TrackObservation(output=found, stamp_ns=ns(stamp_s), frame_id="", arrived_s=0.0)


def sampled(clip, stamps_s):
    """Offers frames; returns the stamps of those that entered, up to the one that ends the clip."""
    entered = []
    for stamp_s in stamps_s:
        if clip.wants(ns(stamp_s)):
            clip.add(observation(stamp_s), PLAN)
            entered.append(stamp_s)
        if clip.ends(ns(stamp_s)):
            break
    return entered


def test_a_clip_samples_at_planned_instants():
    clip = ClipBuffer(start_ns=0, period_s=5.0, max_frames=6)
    assert sampled(clip, [k / 10 for k in range(100)]) == [0, 1, 2, 3, 4, 5]


def test_sixteen_frames_of_a_fast_camera_span_the_period():
    clip = ClipBuffer(start_ns=ns(7), period_s=5.0, max_frames=16)
    entered = sampled(clip, [7 + k / 30 for k in range(1000)])
    assert len(entered) == 16
    assert (entered[0], entered[-1]) == (7, 12)
    gaps = [later - earlier for earlier, later in pairwise(entered)]
    assert min(gaps) > 0.29
    assert max(gaps) < 0.37


def test_a_camera_at_the_sampling_rate_loses_nothing_to_jitter():
    clip = ClipBuffer(start_ns=0, period_s=1.5, max_frames=16)
    stamps = [0.1 * k + (0.004 if k % 2 else -0.004) for k in range(1, 30)]
    assert len(sampled(clip, [0.0, *stamps])) == 16


def test_a_slow_camera_gives_a_short_clip():
    clip = ClipBuffer(start_ns=0, period_s=5.0, max_frames=16)
    assert sampled(clip, [0, 2, 4, 6, 8]) == [0, 2, 4, 6]


def test_instants_without_frames_are_left_out():
    clip = ClipBuffer(start_ns=0, period_s=5.0, max_frames=6)
    assert sampled(clip, [0, 2.5, 2.6, 2.9, 3.0, 3.1, 5.0]) == [0, 2.5, 3.0, 5.0]


@pytest.mark.parametrize("max_frames", [1, 2, 3, 16, 64])
def test_a_clip_never_holds_more_than_its_bound(max_frames):
    clip = ClipBuffer(start_ns=0, period_s=0.1, max_frames=max_frames)
    for k in range(1000):
        if clip.wants(k * 1_000_000):
            clip.add(observation(k / 1000), PLAN)
    assert len(clip.frames) == max_frames


def test_a_carried_frame_takes_the_first_instant():
    first = ClipBuffer(start_ns=0, period_s=1.0, max_frames=3)
    first.add(observation(0), PLAN)
    clip = ClipBuffer(start_ns=ns(1), period_s=1.0, max_frames=3, carried=first.frames[0])
    assert clip.next_stride == 4
    assert sampled(clip, [1.0, 1.1, 1.5, 2.0]) == [1.5, 2.0]
    assert clip.new_frames == 2


def test_a_clip_knows_whether_its_region_was_in_view():
    clip = ClipBuffer(start_ns=0, period_s=5.0, max_frames=6)
    clip.add(observation(0, presence=0.2), PLAN)
    assert not clip.in_view
    clip.add(observation(1), PLAN)
    clip.add(observation(2, presence=0.2), PLAN)
    assert clip.in_view


def test_planned_instants_run_from_the_start_to_the_decode_timestamp():
    assert planned_instants(2.0, 5.0, 6).tolist() == [2, 3, 4, 5, 6, 7]
    assert planned_instants(2.0, 5.0, 1).tolist() == [2]


def test_a_frame_without_embeddings_does_not_enter():
    class Failing:
        def embedded(self, observation, *, stride):
            return InferenceError("no embeddings")

    clip = ClipBuffer(start_ns=0, period_s=5.0, max_frames=6)
    assert isinstance(clip.add(observation(0), Failing()), InferenceError)
    assert (clip.frames, clip.new_frames) == ([], 0)
    assert clip.wants(ns(0.1))  # the next frame takes the instant
