"""`python -m pam_ros.simulator.tools.small_set`: renders the bundled small test set.

Images and videos of the test split, as shards that `pam evaluate --data FOLDER` reads. Images have
consecutive seeds; videos are chosen so that a few contain every event, and objects that vanish and return.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pam_ros.datasets.shards import SMALL, ShardWriter
from pam_ros.simulator.events.events import Play
from pam_ros.simulator.export import exported_image, exported_video
from pam_ros.simulator.samples import image_sample, video_play, video_sample

SPLIT = "test"
FIRST_SEED = 880_000_000  # `pam evaluate --seed N` renders from N * 1,000,000 on: this would be N = 880
IMAGES, VIDEOS, CANDIDATES = 32, 8, 80
FRAMES, FPS = 48, 5.0


def events_of(play: Play) -> set[str]:
    """Events of a play before it is rendered; `hidden` if something is carried past in front of the actor."""
    found = {part.event for index in range(play.own) for part in play.events(index)}
    carried_past = any(not thing.mesh_id.endswith("/prop") for thing in play.scene.objects[play.own :])
    return found | ({"hidden"} if carried_past else set())


def choose_videos(count: int, first_seed: int, candidates: int) -> list[int]:
    """Seeds of videos that contain every event about equally often: each adds what is rarest so far."""
    plays = {
        seed: events_of(video_play(seed, SPLIT, FRAMES, FPS))
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
    """Writes the set; `videos` are seeds, or None to choose them."""
    writer = ShardWriter(out, SMALL)
    for index in range(images):
        writer.add(f"{index:02d}", exported_image(image_sample(FIRST_SEED + index, SPLIT)))
    for number, seed in enumerate(
        choose_videos(VIDEOS, FIRST_SEED, CANDIDATES) if videos is None else videos
    ):
        writer.add(f"v{number}", exported_video(video_sample(seed, SPLIT, FRAMES, FPS)))
    writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Render the bundled small test set.")
    parser.add_argument("--out", type=Path, default=Path("test/data/scenes"), help="folder to write to")
    build(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
