"""Files instead of a camera: clips, carry-over, failures, and files that cannot be read."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel
from stepped_engine import stepped

from pam_ros import media, videos
from pam_ros.errors import ImageError, InferenceError, InputError, PromptError, TextServerError
from pam_ros.records import Frame, Language, Prompt, RegionState, Task
from pam_ros.runtime.offline import caption_video, decode_times, follow_video, perceive_image, survey_image
from pam_ros.runtime.requests import SurveyRequest

BOX = Prompt.from_clicks(box_xyxy=(4, 4, 20, 20))


def frames(count: int, rate_hz: float = 10.0) -> list[Frame]:
    """Frames whose shade is their number plus one."""
    return [
        Frame(image=np.full((48, 64, 3), i + 1, np.uint8), stamp_ns=round(i / rate_hz * 1e9))
        for i in range(count)
    ]


@pytest.mark.parametrize("carry_over", [True, False])
def test_clips_follow_one_another(carry_over):
    model, played = FakeModel(), frames(45)
    steps = list(
        caption_video(
            model,
            played,
            [BOX],
            every_s=2.0,
            language=Language.EN,
            carry_over=carry_over,
        )
    )
    assert [step.frame.stamp_ns for step in steps] == [f.stamp_ns for f in played]
    captions = [caption for step in steps for caption in step.captions]
    assert [c.sequence for c in captions] == [0, 1, 2]
    # The frame at a decode timestamp ends a clip. Carried over, it also starts the next one.
    times_s = [(c.clip_start_ns / 1e9, c.clip_end_ns / 1e9) for c in captions]
    expected = [(0.0, 2.0), (2.0, 4.0), (4.0, 4.4)] if carry_over else [(0.0, 2.0), (2.1, 4.1), (4.2, 4.4)]
    assert times_s == expected
    assert [c.frame_count for c in captions] == ([16, 16, 4] if carry_over else [16, 16, 2])
    texts = [text for batch in model.batches for text in batch]
    assert [text.previous_caption for text in texts] == [None, captions[0].text, captions[1].text]
    first, *later = texts[1].embeddings
    assert (first.stride, first.shade) == (2, 21 if carry_over else 22)
    assert {frame.stride for frame in later} == {4}


def test_a_file_is_captioned_as_a_camera_is():
    """The same frames give the same captions in the node's engine."""
    played = frames(60, rate_hz=7.0)
    model = FakeModel(words=2)
    steps = list(caption_video(model, played, [BOX], every_s=1.5, language=Language.EN, clip_frames=5))
    rig = stepped(streaming=True, caption_period_s=1.5, clip_frames=5)
    rig.model.words = 2
    for i, frame in enumerate(played):
        rig.engine.submit_frame(replace(frame, camera="front"))
        if i == 0:
            rig.request(BOX, tasks=())
        rig.settle()
    live = [(e.sequence, e.clip_start_ns, e.clip_end_ns, e.text) for e in rig.events.captions if e.final]
    from_file = [(e.sequence, e.clip_start_ns, e.clip_end_ns, e.text) for s in steps for e in s.captions]
    assert len(live) == 5
    assert from_file[:5] == live
    assert len(from_file) == 6  # the end of the file ends a clip, too


def test_regions_are_followed_without_texts():
    model = FakeModel()
    steps = list(follow_video(model, frames(4), [BOX, Prompt.from_clicks([(40, 30)])]))
    assert [[region.region_id for region in step.regions] for step in steps] == [[1, 2]] * 4
    assert model.sizes("track") == [2, 2, 2]
    assert model.count("generate") == 0


def test_a_caption_that_fails_is_a_warning_and_the_video_goes_on():
    def fault(name, details):
        if name == "step" and any(text.embeddings[-1].shade < 12 for text in details):
            raise RuntimeError("no words")

    model = FakeModel(fault=fault)
    steps = list(caption_video(model, frames(25), [BOX], every_s=1.0, language=Language.EN))
    assert [len(step.captions) for step in steps if step.captions] == [1, 1]
    (warning,) = [warning for step in steps for warning in step.warnings]
    assert "region 1 gets no caption" in warning
    assert "RuntimeError: no words" in warning


@pytest.mark.parametrize(
    ("options", "words"),
    [({"every_s": 0}, "caption_period_s is 0"), ({"clip_frames": 0}, "clip_frames is 0")],
)
def test_options_outside_their_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        list(
            caption_video(
                FakeModel(), frames(2), [BOX], **({"every_s": 1.0, "language": Language.EN} | options)
            )
        )


def test_an_object_out_of_view_is_lost_and_found():
    model, played = FakeModel(), frames(6)
    played[3] = replace(played[3], image=np.zeros((48, 64, 3), np.uint8))  # black shows nothing
    steps = list(caption_video(model, played, [BOX], every_s=9.0, language=Language.ZH))
    states = [step.regions[0].state for step in steps]
    assert states == [RegionState.TRACKED] * 3 + [RegionState.LOST] + [RegionState.TRACKED] * 2
    assert steps[3].regions[0].last_visible_ns == played[2].stamp_ns


def test_several_regions_tasks_and_languages_of_one_image():
    model = FakeModel()
    reported: list[tuple[int, Task, Language]] = []
    regions = perceive_image(
        model,
        frames(1)[0].image,
        [BOX, Prompt.from_clicks([(40, 30)])],
        [Task.LABEL, Task.EXPLAIN],
        list(Language),
        lambda region_id, task, language, text: reported.append((region_id, task, language)),
    )
    assert [region.region_id for region in regions] == [1, 2]
    assert all(len(region.texts) == 4 for region in regions)
    assert len(set(reported)) == 8
    (batch,) = model.batches  # one batch for everything
    assert len({text.prompt_id for text in batch}) == 2  # one prefill each


def test_a_prompt_outside_the_image_is_refused():
    with pytest.raises(PromptError, match="outside the 64x48 image"):
        perceive_image(
            FakeModel(), frames(1)[0].image, [Prompt.from_clicks([(64, 3)])], [Task.LABEL], [Language.EN]
        )


def test_videos_keep_their_frames_and_stamps(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    stamps = [0, 100_000_000, 250_000_000, 300_000_000]
    with media.VideoWriter(path) as film:
        for i, stamp in enumerate(stamps):
            film.write(np.full((49, 65, 3), 40 * i, np.uint8), stamp)
    assert videos.video_stamps_ns(path) == stamps
    read = list(videos.read_video(path))
    assert [frame.stamp_ns for frame in read] == stamps
    assert [frame.size for frame in read] == [(48, 64)] * 4  # H.264 wants even sides
    assert np.allclose([frame.image.mean() for frame in read], [0, 40, 80, 120], atol=4)


def test_errors_name_files_that_cannot_be_read(tmp_path: Path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    for read in (videos.video_stamps_ns, lambda path: list(videos.read_video(path)), media.read_image):
        with pytest.raises(ImageError, match=r"broken\.mp4"):
            read(broken)
        with pytest.raises(ImageError, match=r"missing\.png"):
            read(tmp_path / "missing.png")


@pytest.mark.parametrize("carry_over", [True, False])
def test_clips_end_at_the_named_decode_timestamps(carry_over):
    model, played = FakeModel(), frames(45)
    times_ns = decode_times([1.0, 1.5, 4.0], [frame.stamp_ns for frame in played])
    steps = list(
        caption_video(
            model,
            played,
            [BOX],
            every_s=9.0,
            decode_times_ns=times_ns,
            language=Language.EN,
            carry_over=carry_over,
        )
    )
    captions = [caption for step in steps for caption in step.captions]
    assert [c.clip_end_ns / 1e9 for c in captions] == [1.0, 1.5, 4.0]  # nothing after the last
    assert [c.clip_start_ns / 1e9 for c in captions] == ([0.0, 1.0, 1.5] if carry_over else [0.0, 1.1, 1.6])
    assert [c.frame_count for c in captions] == ([11, 6, 16] if carry_over else [11, 5, 16])
    assert [step.frame.stamp_ns for step in steps if step.captions] == list(times_ns)


def test_a_frame_just_before_a_decode_timestamp_ends_its_clip_only():
    played = [
        replace(frame, stamp_ns=frame.stamp_ns - 15_000_000 * (i > 0)) for i, frame in enumerate(frames(25))
    ]
    steps = caption_video(
        FakeModel(), played, [BOX], every_s=9.0, decode_times_ns=(10**9, 2 * 10**9), language=Language.EN
    )
    captions = [caption for step in steps for caption in step.captions]
    assert [round(c.clip_end_ns / 1e9, 3) for c in captions] == [0.985, 1.985]


@pytest.mark.parametrize(
    ("at_s", "words"),
    [
        ([1e-9], r"starts with the frame at 0\.000 s and must last more than 0\.02 s"),
        ([0.5, 0.515], r"0\.515 s: its clip starts with the frame at 0\.500 s"),
        ([0.35, 0.39], r"0\.39 s: its clip starts with the frame at 0\.400 s"),
        ([0.95, 1.0], r"1\.0 s: the clip before lasts to the recording's end"),
    ],
)
def test_decode_timestamps_at_which_no_clip_can_end_are_refused(at_s, words):
    with pytest.raises(InputError, match=words):
        decode_times(at_s, [frame.stamp_ns for frame in frames(10)])


def test_every_decode_timestamp_that_is_allowed_gives_a_caption():
    played = frames(10)
    times_ns = decode_times([0.021, 0.35, 0.45, 1.0], [frame.stamp_ns for frame in played])
    steps = caption_video(
        FakeModel(), played, [BOX], every_s=2.0, language=Language.EN, decode_times_ns=times_ns
    )
    captions = [caption for step in steps for caption in step.captions]
    assert [c.clip_end_ns / 1e9 for c in captions] == [0.1, 0.4, 0.5, 0.9]


def test_without_carry_over_clips_start_one_frame_later():
    played = frames(10)
    stamps_ns = [frame.stamp_ns for frame in played]
    assert decode_times([0.5, 0.6], stamps_ns) == (500_000_000, 600_000_000)
    with pytest.raises(InputError, match=r"0\.6 s: its clip starts with the frame at 0\.600 s"):
        decode_times([0.5, 0.6], stamps_ns, carry_over=False)
    with pytest.raises(InputError, match=r"1\.0 s: the clip before lasts to the recording's end"):
        decode_times([0.9, 1.0], stamps_ns, carry_over=False)
    times_ns = decode_times([0.5, 0.7], stamps_ns, carry_over=False)
    steps = caption_video(
        FakeModel(),
        played,
        [BOX],
        every_s=2.0,
        language=Language.EN,
        decode_times_ns=times_ns,
        carry_over=False,
    )
    assert [c.clip_end_ns for step in steps for c in step.captions] == list(times_ns)


def test_one_frame_has_no_decode_timestamps():
    with pytest.raises(InputError, match="one frame has no decode timestamps; leave them out"):
        decode_times([0.5], [0])


@pytest.mark.parametrize("at_s", [[0.0], [-1.0], [5.0], [1.0, 4.6], [float("nan")]])
def test_decode_timestamps_outside_the_recording_are_refused(at_s):
    with pytest.raises(InputError, match=r"must be above 0 s and at most 4\.500 s"):
        decode_times(at_s, [frame.stamp_ns for frame in frames(45)])


@pytest.mark.parametrize("times_s", [[2.0, 1.0], [1.0, 1.0], [1.0, 1.05]])
def test_decode_timestamps_out_of_order_are_refused(times_s):
    with pytest.raises(InputError, match=r"in order, at least 0\.1 s apart"):
        list(
            caption_video(
                FakeModel(),
                frames(45),
                [BOX],
                every_s=1.0,
                decode_times_ns=[round(time_s * 1e9) for time_s in times_s],
                language=Language.EN,
            )
        )


# ---- many regions


def grid(count: int) -> list[tuple[float, float, float, float]]:
    """Boxes of 3 x 3 pixels beside each other in a 48x64 image."""
    places = [(4 * (i % 16), 4 * (i // 16)) for i in range(count)]
    return [(x, y, x + 3, y + 3) for x, y in places]


def test_an_image_has_as_many_regions_as_are_asked_for_whatever_the_model_can_track():
    model, boxes = FakeModel(max_regions=2), grid(150)
    image = frames(1)[0].image
    prompts = [Prompt.from_clicks(box_xyxy=box) for box in boxes]
    regions = perceive_image(model, image, prompts, [Task.LABEL], [Language.EN])
    assert [(region.region_id, tuple(region.box_xyxy)) for region in regions] == list(enumerate(boxes, 1))
    assert all(region.name for region in regions)
    assert (max(model.sizes("segment")), max(model.sizes("embedded_stride2"))) == (4, 16)
    found = survey_image(model, image, SurveyRequest((Task.LABEL,), boxes_xyxy=tuple(boxes), max_regions=150))
    assert sorted(tuple(region.box_xyxy.tolist()) for region in found.regions) == sorted(boxes)
    assert (found.left_out, found.complete, found.warnings) == (0, True, ())


def test_a_survey_says_what_it_leaves_out():
    def fault(name, details):
        if name == "segment" and any(prompt.box[0] == 8 for prompt in details):
            raise RuntimeError("no mask")

    image, boxes = frames(1)[0].image, tuple(grid(12))
    found = survey_image(FakeModel(), image, SurveyRequest((), boxes_xyxy=boxes, max_regions=10))
    assert len(found.regions) == 10
    assert found.warnings == (
        "12 regions were found, at most 10 are listed; those with the lowest mask scores are left out",
    )
    found = survey_image(FakeModel(fault=fault), image, SurveyRequest((), boxes_xyxy=boxes))
    assert (len(found.regions), found.left_out) == (11, 1)
    (warning,) = found.warnings
    assert warning.startswith("1 of 12 regions failed and are left out; the first: segmenting failed")
    with pytest.raises(InferenceError, match="no mask"):
        survey_image(FakeModel(fault=fault), image, SurveyRequest((), boxes_xyxy=boxes[2:3]))


@pytest.mark.parametrize("run", [follow_video, partial(caption_video, every_s=1.0, language=Language.EN)])
def test_a_video_with_more_regions_than_can_be_tracked_is_refused_at_once(run):
    model = FakeModel(max_regions=2)
    with pytest.raises(InputError, match=r"3 regions are given to track; .* at most 2 at a time.*regions=3"):
        run(model, frames(2), [BOX] * 3)
    assert not model.calls
    assert len(list(run(model, frames(2), [BOX] * 2))) == 2


# ---- what the model holds


def test_a_video_that_is_not_played_to_its_end_leaves_nothing_in_the_model():
    model = FakeModel()
    gc.disable()
    try:
        steps = caption_video(model, frames(45), [BOX, BOX], every_s=2.0, language=Language.EN)
        for _ in range(5):
            next(steps)
        assert model.prompts and model.held
        steps.close()
        assert (model.prompts, len(model.held)) == ({}, 0)
        perceive_image(model, frames(1)[0].image, [BOX], [Task.LABEL], [Language.EN])
        assert (model.prompts, len(model.held)) == ({}, 0)
    finally:
        gc.enable()


# ---- a text server that is down


def no_server(name, details):
    if name == "generate":
        raise TextServerError("the server is down")


def test_without_a_text_server_every_image_gets_the_reason():
    image, boxes = frames(1)[0].image, tuple(grid(3))
    with pytest.raises(TextServerError, match="the server is down"):
        survey_image(FakeModel(fault=no_server), image, SurveyRequest((Task.LABEL,), boxes_xyxy=boxes))
    with pytest.raises(TextServerError, match="the server is down"):
        perceive_image(FakeModel(fault=no_server), image, [BOX, BOX], [Task.LABEL], [Language.EN])


def test_the_last_captions_of_a_video_are_started_one_by_one_if_their_batch_cannot_be():
    def fault(name, details):
        if name == "generate" and len(details) > 1:
            raise RuntimeError("no room")

    model = FakeModel(fault=fault)
    steps = list(caption_video(model, frames(8), [BOX, BOX], every_s=2.0, language=Language.EN))
    assert [caption.region_id for caption in steps[-1].captions] == [1, 2]


def test_a_text_server_that_is_down_is_one_warning():
    model = FakeModel(fault=no_server, text_problem="the server is down")
    steps = list(caption_video(model, frames(45), [BOX, BOX], every_s=1.0, language=Language.EN))
    assert [warning for step in steps for warning in step.warnings] == ["the server is down"]
