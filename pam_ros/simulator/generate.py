"""Renders many samples on all cores: `python -m pam_ros.simulator.generate --images 20000 --out DIR`.

A shard is a folder; it is written under a name that starts with a dot and renamed when complete,
so that training can read while more is rendered. Sample i has seed `seed * 1_000_000 + i`, whatever
the number of workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pam_ros.datasets.shards import INDEX, ShardWriter

SEEDS_PER_RUN = 1_000_000
IMAGES_PER_SHARD, VIDEOS_PER_SHARD = 64, 4
VIDEO_RATES_FPS = (4.0, 6.0, 8.0)


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to render: samples first..last (exclusive) of a seed and split; `until` is a time.time().

    `open_meshes`: see `scenes.draw_scene`.
    """

    kind: str  # "images" or "clips"
    seed: int
    split: str
    first: int
    last: int
    out: Path
    width: int
    height: int
    frames: int
    until: float
    open_meshes: float = 0.0

    @property
    def name(self) -> str:
        """Folder name, e.g. "images-00003"."""
        each = IMAGES_PER_SHARD if self.kind == "images" else VIDEOS_PER_SHARD
        return f"{self.kind}-{self.seed:03d}-{self.first // each:05d}"


@dataclass(frozen=True, slots=True)
class ShardDone:
    """What a job rendered."""

    kind: str
    samples: int
    frames: int


def render_shard(job: ShardJob) -> ShardDone:
    """Renders one shard; stops early, but cleanly, when its time is over."""
    from pam_ros.simulator import samples  # here, so that a worker sees MUJOCO_GL first
    from pam_ros.simulator.export import exported_image, exported_video

    final = job.out / job.name
    if (final / INDEX).exists():
        return ShardDone(job.kind, 0, 0)
    folder = job.out / f".{job.name}.{os.getpid()}"
    writer = ShardWriter(folder)
    for index in range(job.first, job.last):
        if time.time() > job.until:
            break
        seed = job.seed * SEEDS_PER_RUN + index
        if job.kind == "images":
            image = samples.image_sample(seed, job.split, job.width, job.height, job.open_meshes)
            writer.add(f"{index - job.first:04d}", exported_image(image))
            continue
        fps = VIDEO_RATES_FPS[int(np.random.default_rng([seed, 5]).integers(len(VIDEO_RATES_FPS)))]
        video = samples.video_sample(seed, job.split, job.frames, fps, job.width, job.height, job.open_meshes)
        writer.add(f"v{index - job.first}", exported_video(video))
    if len(writer):
        writer.close()
        folder.rename(final)
    return ShardDone(job.kind, len(writer), len(writer) * (1 if job.kind == "images" else job.frames))


def plan(
    *,
    seed: int,
    split: str,
    images: int,
    videos: int,
    out: Path,
    width: int,
    height: int,
    frames: int,
    until: float,
    open_meshes: float = 0.0,
) -> list[ShardJob]:
    """All shards of a run, images and videos mixed, so that a run cut short has both."""
    jobs: list[tuple[float, ShardJob]] = []
    for kind, count, each in (("images", images, IMAGES_PER_SHARD), ("clips", videos, VIDEOS_PER_SHARD)):
        for first in range(0, count, each):
            last = min(first + each, count)
            job = ShardJob(kind, seed, split, first, last, out, width, height, frames, until, open_meshes)
            jobs.append((first / count, job))
    return [job for _, job in sorted(jobs, key=lambda pair: (pair[0], pair[1].kind))]


def generate(jobs: Sequence[ShardJob], workers: int) -> Iterator[ShardDone]:
    """Renders the jobs on `workers` processes; results come as they finish."""
    if workers <= 1:
        yield from map(render_shard, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a forked GL context would break
    with context.Pool(workers) as pool:
        yield from pool.imap_unordered(render_shard, jobs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Render training shards of robot scenes.")
    parser.add_argument("--seed", type=int, default=0, help="run seed; another seed gives other samples")
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=0)
    parser.add_argument("--frames", type=int, default=48, help="frames of a video")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="stop cleanly after this time; 0 = no limit"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument(
        "--open-meshes", type=float, default=0.0, help="fraction of open meshes, see `pam scenes meshes`"
    )
    options = parser.parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # many processes, one thread each
    start = time.time()
    until = start + options.seconds if options.seconds > 0 else float("inf")
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = plan(
        seed=options.seed,
        split=options.split,
        images=options.images,
        videos=options.videos,
        out=options.out,
        width=options.width,
        height=options.height,
        frames=options.frames,
        until=until,
        open_meshes=options.open_meshes,
    )
    images = videos = frames = 0
    shown = start
    for done in generate(jobs, options.workers):
        images += done.samples if done.kind == "images" else 0
        videos += done.samples if done.kind == "clips" else 0
        frames += done.frames
        if time.time() - shown > 10:
            shown = time.time()
            print(f"{images} images, {videos} videos, {frames / (shown - start):.1f} frames/s", flush=True)
    seconds = time.time() - start
    print(
        f"{images} images, {videos} video{'s' * (videos != 1)} in {seconds:.1f} s: "
        f"{frames / max(seconds, 1e-9):.1f} frames/s"
    )


if __name__ == "__main__":
    main()
