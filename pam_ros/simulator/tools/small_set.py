"""Renders the small test set that ships, with every kind of event: `python -m pam_ros.simulator.tools.small_set`.

Pictures and videos of the test split, in the shard format that `pam evaluate --data FOLDER` reads.
Seeds are consecutive for pictures; videos are chosen, so that few of them hold every event, and things
that vanish and return.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pam_ros.simulator.events.events import Play
from pam_ros.simulator.export import SMALL, write_image, write_index, write_video
from pam_ros.simulator.samples import image_sample, video_play, video_sample

SPLIT = "test"
FIRST_SEED = 880_000_000  # `pam evaluate --seed N` renders from N * 1,000,000 on: this would be N = 880
IMAGES, VIDEOS, CANDIDATES = 32, 8, 80
FRAMES, FPS = 48, 5.0


def happenings(play: Play) -> set[str]:
    """Events of a play before it is rendered; `hidden` where something is carried past."""
    found = {part.event for index in range(play.own) for part in play.events(index)}
    carried_past = any(not thing.mesh_id.endswith("/prop") for thing in play.scene.objects[play.own :])
    return found | ({"hidden"} if carried_past else set())


def choose_videos(count: int, first_seed: int, candidates: int) -> list[int]:
    """Seeds of videos that hold every event about equally often: each adds what is rarest so far."""
    plays = {
        seed: happenings(video_play(seed, SPLIT, FRAMES, FPS))
        for seed in range(first_seed, first_seed + candidates)
    }
    held: Counter[str] = Counter()
    chosen: list[int] = []
    for _ in range(count):
        best = max(plays, key=lambda seed: sum(1 / (1 + 2 * held[event]) ** 2 for event in plays[seed]))
        held.update(plays.pop(best))
        chosen.append(best)
    return sorted(chosen)


def build(out: Path, images: int = IMAGES, videos: Sequence[int] | None = None) -> None:
    """Writes the set; `videos` are seeds, chosen where None."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        write_image(out, f"{index:02d}", image_sample(FIRST_SEED + index, SPLIT), packing=SMALL)
        for index in range(images)
    ]
    seeds = choose_videos(VIDEOS, FIRST_SEED, CANDIDATES) if videos is None else videos
    lines += [
        write_video(out, f"v{number}", video_sample(seed, SPLIT, FRAMES, FPS), SMALL)
        for number, seed in enumerate(seeds)
    ]
    write_index(out, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Render the small test set that ships.")
    parser.add_argument("--out", type=Path, default=Path("test/data/scenes"), help="folder to write to")
    build(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
