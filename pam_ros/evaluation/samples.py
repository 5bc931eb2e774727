"""Samples to evaluate: images and videos with known regions, rendered or from files, read when needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pam_ros.datasets.registry import JoinedSource, SelectedSource, open_source
from pam_ros.datasets.schema import Kind, Sample, SampleSource
from pam_ros.datasets.shards import INDEX, ShardSource, ShardWriter
from pam_ros.errors import DatasetError
from pam_ros.records import Language

# What follows a metric's name if its regions are not whole objects.
SUFFIX = {Kind.OBJECT: "", Kind.UNKNOWN: "", Kind.PART: "_parts", Kind.BACKGROUND: "_background"}
# What follows a metric's name if its texts are not English.
SPOKEN = {language: "" if language is Language.EN else f"_{language.value}" for language in Language}

SEEDS_PER_RUN = 1_000_000  # sample i of seed N is rendered with N * SEEDS_PER_RUN + i
VIDEO_FRAMES = 48
VIDEO_FPS = 8.0
COMES_BACK = ("returns", "uncovered")  # events that end an absence
SEARCHED = 25  # seeds searched for each absence wanted; about every fifth has one

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Samples:
    """What one run evaluates.

    Attributes:
        images, videos: every region of them has a prompt in the first frame.
        absences: more videos, chosen because their actor goes out of sight and comes back: too few do so in
            `videos` for a rate. Only whether it is lost and found is judged on them.
    """

    images: SampleSource
    videos: SampleSource
    absences: SampleSource = ()


def read_data(path: Path) -> Samples:
    """A folder of shards, or a .jsonl file in PAM's layout.

    Every line is read once before the evaluation starts. Raises DatasetError for anything else, and for a
    broken line.
    """
    return divided(open_source(str(path)))


def divided(source: SampleSource) -> Samples:
    """Separates images and videos of a source; drops regions that have no prompt in the first frame."""
    images: list[int] = []
    videos: list[int] = []
    for index, sample in enumerate(source):
        (videos if sample.is_video else images).append(index)
    return Samples(*(SelectedSource(source, indices, _prompted) for indices in (images, videos)))


def _prompted(sample: Sample) -> Sample:
    return _with_regions(sample, [region.can_be_prompted() for region in sample.regions])


def _with_regions(sample: Sample, kept: Sequence[bool]) -> Sample:
    return replace(
        sample, regions=tuple(region for region, keep in zip(sample.regions, kept, strict=True) if keep)
    )


# ---- rendered seeds


def render_samples(
    seed: int,
    images: int,
    videos: int,
    folder: Path,
    progress: Progress = lambda line: None,
    *,
    absences: int = 0,
    open_meshes: bool = False,
) -> Samples:
    """Renders test scenes into `folder` and reads them back; what is there already is not rendered again.

    In addition to `videos` videos there are up to `absences` from the following seeds, see `Samples`. With
    `open_meshes`, objects are open meshes if their kind has one for tests, only these are regions, and there
    are no absences. Raises MeshStoreError if the meshes have not been fetched, DatasetError if no scene has
    one.
    Images are JPEG, as in training and from most cameras; masks are exact. Empty a folder that another
    version of the simulator has filled: its content is not checked.
    """
    first = seed * SEEDS_PER_RUN
    if open_meshes:
        return _open_mesh_samples(seed, images, videos, folder, progress)
    pictures = [_rendered("image", first + i, folder, progress) for i in range(images)]
    films = [_rendered("video", first + i, folder, progress) for i in range(videos)]
    gone = [
        _rendered("video", each, folder, progress)
        for each in _with_absence(first + videos, absences, progress)
    ]
    chosen = JoinedSource(gone)
    return Samples(
        divided(JoinedSource(pictures)).images,
        divided(JoinedSource(films)).videos,
        SelectedSource(chosen, range(len(chosen)), _actor_only),
    )


def _open_mesh_samples(seed: int, images: int, videos: int, folder: Path, progress: Progress) -> Samples:
    from pam_ros.simulator.assets.mesh_store import stored
    from pam_ros.simulator.assets.open_meshes import TABLE

    stored(TABLE[0].files[0].path)  # raises before anything is rendered
    first = seed * SEEDS_PER_RUN
    found = [_rendered("open-image", first + i, folder, progress) for i in range(images)]
    found += [_rendered("open-video", first + i, folder, progress) for i in range(videos)]
    joined = JoinedSource(found)
    samples = divided(SelectedSource(joined, range(len(joined)), _by_others))
    if not any(sample.regions for source in (samples.images, samples.videos) for sample in source):
        raise DatasetError(
            f"no object with an open mesh in {images} images and {videos} videos of seed {seed}; "
            "about every third image has one: ask for more"
        )
    return samples


def _with_absence(first: int, count: int, progress: Progress) -> list[int]:
    """Seeds, from `first` on, of videos whose actor goes away and comes back, found without rendering."""
    found: list[int] = []
    if count:
        from pam_ros.simulator.samples import video_play

        for seed in range(first, first + SEARCHED * count):
            progress(f"looking for absences, {len(found)} of {count} found")
            play = video_play(seed, "test", VIDEO_FRAMES, VIDEO_FPS)
            if any(part.event in COMES_BACK for part in play.events(play.actor)):
                found.append(seed)
            if len(found) == count:
                break
    return found


def _actor_only(video: Sample) -> Sample:
    return _with_regions(
        video, [each.object_id == video.actor and each.can_be_prompted() for each in video.regions]
    )


def _by_others(sample: Sample) -> Sample:
    return _with_regions(sample, [region.by_others for region in sample.regions])


def _rendered(kind: str, seed: int, folder: Path, progress: Progress) -> ShardSource:
    progress(f"rendering {kind} {seed}")
    home = folder / f"{kind}-{seed:09d}"
    if not (home / INDEX).exists():
        _render(kind, seed, home)
    return ShardSource(home)


def _render(kind: str, seed: int, home: Path) -> None:
    from pam_ros.simulator import samples  # MuJoCo, which evaluating other data does not need
    from pam_ros.simulator.export import exported_image, exported_video

    # Renamed when complete, so that no half-written folder is ever read.
    half = home.with_name(f".{home.name}.{os.getpid()}")
    writer = ShardWriter(half)
    fraction = 1.0 if kind.startswith("open") else 0.0
    if kind.endswith("image"):
        writer.add("picture", exported_image(samples.image_sample(seed, "test", open_meshes=fraction)))
    else:
        video = samples.video_sample(seed, "test", VIDEO_FRAMES, VIDEO_FPS, open_meshes=fraction)
        writer.add("frames", exported_video(video))
    writer.close()
    try:
        half.rename(home)
    except OSError:
        if not (home / INDEX).exists():
            raise
        shutil.rmtree(half)  # another run rendered the same meanwhile
