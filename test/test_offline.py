"""Files instead of a camera: stamps, clip plans, carry-over, and what the readers refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel

from pam_ros import media
from pam_ros.errors import ImageError, PromptError
from pam_ros.records import Frame, Language, Prompt, RegionState, Task
from pam_ros.runtime.offline import caption_video, perceive_image, sample_indices

BOX = Prompt.from_clicks(box_xyxy=(4, 4, 20, 20))


def frames(count: int, rate_hz: float = 10.0) -> list[Frame]:
    """Frames whose shade is their number plus one."""
    return [
        Frame(image=np.full((48, 64, 3), i + 1, np.uint8), stamp_ns=round(i / rate_hz * 1e9))
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [16, 17, 20, 33, 100])
def test_a_clip_is_sampled_as_the_reference_does(count):
    expected = {0, *np.linspace(1, count - 1, 15, dtype=int).tolist()}
    assert sample_indices(count, 16, carried=False) == expected


@pytest.mark.parametrize("count", range(1, 16))
def test_short_clips_use_every_frame(count):
    assert sample_indices(count, 16, carried=False) == set(range(count))
    assert sample_indices(count, 16, carried=True) == set(range(count))


def test_a_carried_frame_takes_one_place():
    chosen = sample_indices(40, 16, carried=True)
    assert len(chosen) == 15
    assert {0, 39} <= chosen


@pytest.mark.parametrize("carry_over", [True, False])
def test_clips_follow_one_another(carry_over):
    model, played = FakeModel(), frames(45)
    steps = list(
        caption_video(
            model,
            played,
            [f.stamp_ns for f in played],
            [BOX],
            every_s=2.0,
            language=Language.EN,
            carry_over=carry_over,
        )
    )
    assert [step.frame.stamp_ns for step in steps] == [f.stamp_ns for f in played]
    captions = [caption for step in steps for caption in step.captions]
    assert [c.sequence for c in captions] == [0, 1, 2]
    assert [c.frames for c in captions] == ([16, 16, 6] if carry_over else [16, 16, 5])
    assert [round(c.start_ns / 1e9, 1) for c in captions] == [0.0, 2.0, 4.0]
    requests = [request for batch in model.batches for request in batch]
    assert [request.previous_caption for request in requests] == [None, captions[0].text, captions[1].text]
    first = requests[1].embeddings[0]
    assert first.stride == 2
    assert first.shade == (
        20 if carry_over else 21
    )  # the last frame of the first clip, or the second's own first
    assert not any(embeddings.stride == 2 for embeddings in requests[1].embeddings[1:])


def test_an_object_out_of_view_is_lost_and_found():
    model, played = FakeModel(), frames(6)
    played[3] = Frame(
        image=np.zeros((48, 64, 3), np.uint8), stamp_ns=played[3].stamp_ns
    )  # black shows nothing
    steps = list(
        caption_video(model, played, [f.stamp_ns for f in played], [BOX], every_s=9.0, language=Language.ZH)
    )
    states = [step.regions[0].state for step in steps]
    assert states == [RegionState.TRACKED] * 3 + [RegionState.LOST] + [RegionState.TRACKED] * 2
    assert steps[3].regions[0].last_visible_ns == played[2].stamp_ns


def test_several_regions_tasks_and_languages_of_one_picture():
    model = FakeModel()
    heard: list[tuple[int, Task, Language]] = []
    regions = perceive_image(
        model,
        frames(1)[0].image,
        [BOX, Prompt.from_clicks([(40, 30)])],
        [Task.LABEL, Task.EXPLAIN],
        list(Language),
        lambda region_id, task, language, text: heard.append((region_id, task, language)),
    )
    assert [region.region_id for region in regions] == [1, 2]
    assert all(len(region.texts) == 4 for region in regions)
    assert len(set(heard)) == 8
    (batch,) = model.batches  # one batch for everything
    assert len({id(request.embeddings) for request in batch}) == 2  # one prefill each


def test_a_prompt_outside_the_picture_is_refused():
    with pytest.raises(PromptError, match="outside the 64x48 image"):
        perceive_image(
            FakeModel(), frames(1)[0].image, [Prompt.from_clicks([(64, 3)])], [Task.LABEL], [Language.EN]
        )


def test_videos_keep_their_pictures_and_stamps(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    stamps = [0, 100_000_000, 250_000_000, 300_000_000]
    with media.VideoWriter(path) as film:
        for i, stamp in enumerate(stamps):
            film.write(np.full((49, 65, 3), 40 * i, np.uint8), stamp)
    assert media.video_stamps_ns(path) == stamps
    read = list(media.read_video(path))
    assert [frame.stamp_ns for frame in read] == stamps
    assert [frame.size for frame in read] == [(48, 64)] * 4  # H.264 wants even sides
    assert np.allclose([frame.image.mean() for frame in read], [0, 40, 80, 120], atol=4)


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    for read in (media.video_stamps_ns, lambda path: list(media.read_video(path)), media.read_image):
        with pytest.raises(ImageError, match=r"broken\.mp4"):
            read(broken)
        with pytest.raises(ImageError, match=r"missing\.png"):
            read(tmp_path / "missing.png")
