"""What is evaluated: pictures and videos with known regions, rendered or from files, loaded when needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros import media
from pam_ros.errors import InputError
from pam_ros.records import Frame, Language, Prompt, Task

PART_STEP = 256  # an id picture's value is instance + PART_STEP * part
Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


class SampleError(InputError):
    """Data that cannot be evaluated; the message names file and line."""


class Kind(Enum):
    """What a region is."""

    OBJECT = "object"  # a whole object
    PART = "part"  # a named part of one, e.g. a handle
    BACKGROUND = "background"  # table, wall, floor
    UNKNOWN = "unknown"  # data that do not say


# What follows a metric's name where it is not of whole objects.
SUFFIX = {Kind.OBJECT: "", Kind.UNKNOWN: "", Kind.PART: "_parts", Kind.BACKGROUND: "_background"}
# And where its texts are not English.
SPOKEN = {language: "" if language is Language.EN else f"_{language.value}" for language in Language}


@dataclass(frozen=True, slots=True)
class Event:
    """A stretch of a video: frames start..end (end exclusive) and what happens to a region in it.

    Attributes:
        events: ids of the ontology, one or two in order; empty where the data do not say.
        captions: right captions by language, in several wordings; () where there are none.
        previous: caption before it by language, where a jsonl line asks with one.
    """

    start: int
    end: int
    events: tuple[str, ...]
    captions: Mapping[Language, tuple[str, ...]]
    previous: Mapping[Language, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationRegion:
    """One region and what is true of it.

    Attributes:
        name: e.g. "region 3": its place among the sample's regions, from 1.
        kind: object, part, background, or unknown.
        box_xyxy: (x1, y1, x2, y2) pixels of the picture, or of a video's first frame; far edges exclusive.
        texts: right texts of image tasks by (task, language), in several wordings.
        category, function: ids of the ontology; "" where the data do not say.
        colour, material: as captions name them, "" where they do not.
        segments: (videos) what happens to it, (start, end, event) over the whole video, end exclusive.
        events: (videos) clips with captions, cut where what happens changes; () where it is not spoken of.
        windows: (videos) clips with captions, cut by the clock.
        instance, part: which pixels of the id pictures are its own; 0, 0 where there are none.
        mesh_id: "" where the data do not say.
    """

    name: str
    kind: Kind
    box_xyxy: Box
    texts: Mapping[tuple[Task, Language], tuple[str, ...]]
    category: str = ""
    function: str = ""
    colour: str = ""
    material: str = ""
    segments: tuple[tuple[int, int, str], ...] = ()
    events: tuple[Event, ...] = ()
    windows: tuple[Event, ...] = ()
    instance: int = 0
    part: int = 0
    mesh_id: str = ""

    @property
    def by_others(self) -> bool:
        """Whether its mesh is one of `open_meshes.TABLE`: "category/package/file"."""
        return self.mesh_id.count("/") == 2

    def prompt(self) -> Prompt:
        """Its box as a prompt."""
        return Prompt.from_clicks(box_xyxy=self.box_xyxy)

    def cut(self, ids: NDArray[np.uint16]) -> Mask | None:
        """(H, W) id picture → its visible pixels, (H, W) bool; None where the data have boxes only."""
        if not self.instance:
            return None
        if self.part:
            return np.asarray(ids == self.instance + PART_STEP * self.part)
        return np.asarray(ids % PART_STEP == self.instance)


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """One picture; pixels are read from files when asked for."""

    name: str  # e.g. "image 7000001"
    picture: Path
    ids: Path | None
    regions: tuple[EvaluationRegion, ...]

    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return media.read_image(self.picture)

    def masks(self) -> list[Mask | None]:
        """(H, W) bool for each region; None where the data have boxes only."""
        if self.ids is None:
            return [None] * len(self.regions)
        ids = _read_ids(self.ids)
        return [region.cut(ids) for region in self.regions]


@dataclass(frozen=True, slots=True)
class EvaluationVideo:
    """One video; pixels are read when asked for.

    Attributes:
        name: e.g. "video 7000001".
        pictures: in time order; ids: beside them, or empty where the data have boxes only.
        actor: instance of the object that acts; 0 where the data do not say.
    """

    name: str
    pictures: tuple[Path, ...]
    ids: tuple[Path, ...]
    fps: float
    regions: tuple[EvaluationRegion, ...]
    actor: int = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of one frame."""
        return media.read_image(self.pictures[index])

    def stamps_ns(self) -> list[int]:
        """Stamp of every frame, nanoseconds from the first."""
        return [round(index / self.fps * 1e9) for index in range(len(self))]

    def frames(self) -> Iterator[Frame]:
        """All frames with their stamps, decoded one by one."""
        for index, stamp_ns in enumerate(self.stamps_ns()):
            yield Frame(image=self.image(index), stamp_ns=stamp_ns)

    def masks(self, index: int) -> list[Mask | None]:
        """(H, W) bool for each region in one frame, empty while hidden; None where data have boxes only."""
        if not self.ids:
            return [None] * len(self.regions)
        ids = _read_ids(self.ids[index])
        return [region.cut(ids) for region in self.regions]


@dataclass(frozen=True, slots=True)
class Samples:
    """What one run evaluates.

    Attributes:
        absences: more videos, chosen because their actor goes out of sight and comes back: among ordinary
            ones too few do for a rate. Only whether it is lost and found is judged on them.
    """

    images: tuple[EvaluationImage, ...]
    videos: tuple[EvaluationVideo, ...]
    absences: tuple[EvaluationVideo, ...] = ()


def _read_ids(path: Path) -> NDArray[np.uint16]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture).astype(np.uint16)  # 8-bit where no part occurs
    except OSError as error:
        raise SampleError(f"{path} is no id picture that can be read: {error}") from error


# ---- folders written by `pam scenes render`


def read_folder(folder: Path) -> Samples:
    """Every index.jsonl in a folder and below. Raises SampleError where there is none or a line is broken."""
    images: list[EvaluationImage] = []
    videos: list[EvaluationVideo] = []
    for index in sorted(folder.glob("**/index.jsonl")):
        if any(part.startswith(".") for part in index.relative_to(folder).parts):
            continue  # still being written
        for number, text in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
                if "frames" in line:
                    videos.append(_video(index.parent, line))
                else:
                    images.append(_image(index.parent, line))
            except (KeyError, TypeError, ValueError) as error:
                raise SampleError(
                    f"{index}, line {number} is no line of `pam scenes render`: {error!r}"
                ) from error
    if not images and not videos:
        raise SampleError(
            f"{folder} holds no index.jsonl with samples; `pam scenes render --out {folder}` writes one"
        )
    return Samples(tuple(images), tuple(videos))


def _image(folder: Path, line: Mapping[str, Any]) -> EvaluationImage:
    regions = tuple(_region(place, raw, tuple(raw["box"])) for place, raw in enumerate(line["regions"], 1))
    return EvaluationImage(f"image {line['seed']}", folder / line["image"], folder / line["ids"], regions)


def _video(folder: Path, line: Mapping[str, Any]) -> EvaluationVideo:
    ids = _read_ids(folder / line["ids"][0])
    regions = []
    for place, raw in enumerate(line["regions"], 1):
        rows, columns = np.nonzero(ids % PART_STEP == int(raw["instance"]))
        if len(rows):  # else there is nothing to prompt in the first frame
            box = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
            regions.append(_region(place, raw, box))
    return EvaluationVideo(
        f"video {line['seed']}",
        tuple(folder / name for name in line["frames"]),
        tuple(folder / name for name in line["ids"]),
        float(line["fps"]),
        tuple(regions),
        int(line.get("actor", 0)),
    )


def _region(place: int, raw: Mapping[str, Any], box: Sequence[float]) -> EvaluationRegion:
    truth = raw["truth"]
    texts = {}
    for key, wordings in raw["texts"].items():
        task, _, language = key.partition("/")
        texts[Task.parse(task), Language.parse(language)] = tuple(wordings)
    part = int(raw["part"])
    return EvaluationRegion(
        name=f"region {place}",
        kind=Kind.PART if part else Kind.BACKGROUND if raw["background"] else Kind.OBJECT,
        box_xyxy=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        texts=texts,
        category=raw["category"],
        function=truth["function"],
        colour=truth.get("colour", ""),
        material=truth.get("material", ""),
        segments=tuple((int(start), int(end), str(event)) for start, end, event in raw.get("segments", ())),
        events=tuple(_event(clip) for clip in raw.get("events", ())),
        windows=tuple(_event(clip) for clip in raw.get("windows", ())),
        instance=int(raw["instance"]),
        part=part,
        mesh_id=raw.get("mesh", ""),
    )


def _event(clip: Mapping[str, Any]) -> Event:
    captions = {Language.parse(key.partition("/")[2]): tuple(texts) for key, texts in clip["texts"].items()}
    return Event(int(clip["start"]), int(clip["end"]), tuple(clip["event"].split("+")), captions)


# ---- rendered seeds

SEEDS_PER_RUN = 1_000_000  # sample i of seed N is rendered with N * SEEDS_PER_RUN + i
VIDEO_FRAMES = 48
VIDEO_FPS = 8.0
COMES_BACK = ("returns", "uncovered")  # events that end an absence
SEARCHED = 25  # plays looked at for each absence wanted; about every fifth has one


def render_samples(
    seed: int,
    images: int,
    videos: int,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    *,
    absences: int = 0,
    open_meshes: bool = False,
) -> Samples:
    """Renders test scenes into `folder` and reads them back; what lies there already is not rendered again.

    Besides `videos` videos there are up to `absences` of the following seeds, see `Samples`. With
    `open_meshes` objects are meshes of other makers where their kind has one for tests, and only these are
    regions; there are no absences then. Raises MeshStoreError where they have not been fetched, SampleError
    where no scene holds one.
    Pictures are JPEG, as training's are and a camera's mostly; masks are exact. What lies there is not looked
    at closely: a folder filled by another version of the scenes must be emptied by hand.
    """
    first = seed * SEEDS_PER_RUN
    if open_meshes:
        from pam_ros.simulator.assets.mesh_store import stored
        from pam_ros.simulator.assets.open_meshes import TABLE

        stored(TABLE[0].files[0].path)  # what is missing is told before anything is rendered
        found = [_rendered("open-image", first + i, folder, progress) for i in range(images)]
        found += [_rendered("open-video", first + i, folder, progress) for i in range(videos)]
        samples = Samples(
            tuple(_by_others(image) for each in found for image in each.images),
            tuple(_by_others(video) for each in found for video in each.videos),
        )
        if not any(image.regions for image in samples.images) and not any(
            video.regions for video in samples.videos
        ):
            raise SampleError(
                f"no object of another maker in {images} pictures and {videos} videos of seed {seed}: "
                "about every third picture has one, ask for more"
            )
        return samples
    pictures = [_rendered("image", first + i, folder, progress) for i in range(images)]
    films = [_rendered("video", first + i, folder, progress) for i in range(videos)]
    chosen = _with_absence(first + videos, absences, progress)
    gone = [_rendered("video", each, folder, progress) for each in chosen]
    return Samples(
        tuple(image for each in pictures for image in each.images),
        tuple(video for each in films for video in each.videos),
        tuple(_actor_only(video) for each in gone for video in each.videos),
    )


def _with_absence(first: int, count: int, progress: Callable[[str], None]) -> list[int]:
    """Seeds from `first` on of videos whose actor goes and comes back, as their scripts say."""
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


def _actor_only(video: EvaluationVideo) -> EvaluationVideo:
    return replace(video, regions=tuple(each for each in video.regions if each.instance == video.actor))


Sample = TypeVar("Sample", EvaluationImage, EvaluationVideo)


def _by_others(sample: Sample) -> Sample:
    return replace(sample, regions=tuple(region for region in sample.regions if region.by_others))


def _rendered(kind: str, seed: int, folder: Path, progress: Callable[[str], None]) -> Samples:
    progress(f"rendering {kind} {seed}")
    _render(kind, seed, folder)
    return read_folder(_home(folder, kind, seed))


def _home(folder: Path, kind: str, seed: int) -> Path:
    return folder / f"{kind}-{seed:09d}"


def _render(kind: str, seed: int, folder: Path) -> None:
    home = _home(folder, kind, seed)
    if (home / "index.jsonl").exists():
        return
    from pam_ros.simulator import export as shards
    from pam_ros.simulator import samples as dataset  # MuJoCo, which evaluating other data does not need

    half = folder / f".{home.name}.{os.getpid()}"  # renamed when complete: nothing half done is ever read
    half.mkdir(parents=True, exist_ok=True)
    share = 1.0 if kind.startswith("open") else 0.0
    if kind.endswith("image"):
        sample = dataset.image_sample(seed, "test", open_meshes=share)
        line = shards.write_image(half, "picture", sample)
    else:
        video = dataset.video_sample(seed, "test", VIDEO_FRAMES, VIDEO_FPS, open_meshes=share)
        line = shards.write_video(half, "frames", video)
    shards.write_index(half, [line])
    try:
        half.rename(home)
    except OSError:
        if not (home / "index.jsonl").exists():
            raise
        shutil.rmtree(half)  # another run rendered the same meanwhile
