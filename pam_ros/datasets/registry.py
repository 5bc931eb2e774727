"""Opens training data by name: folders of shards, .jsonl files, coloured shapes; joins and divides them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pam_ros.datasets.coloured_shapes import ShapesSource
from pam_ros.datasets.jsonl_source import JsonlSource
from pam_ros.datasets.schema import WHOLE, Scene, Source
from pam_ros.datasets.shards import ShardSource
from pam_ros.errors import DatasetError
from pam_ros.geometry import CropBox


class JoinedSource:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._where = [(source, i) for source in sources for i in range(len(source.entries))]
        self.entries = [source.entries[i] for source, i in self._where]

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        source, inner = self._where[index]
        return source.load(inner, frames, size, cut)


class _ProcessShard:
    """Every `processes`-th sample of a source, from number `rank` on."""

    def __init__(self, source: Source, rank: int, processes: int) -> None:
        self._source, self._rank, self._processes = source, rank, processes
        self.entries = source.entries[rank::processes]

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        return self._source.load(self._rank + index * self._processes, frames, size, cut)


def process_shard(source: Source, rank: int, processes: int) -> Source:
    """The samples of one of several processes. Raises DatasetError where there are too few for all."""
    if processes == 1:
        return source
    if len(source.entries) < processes:
        raise DatasetError(
            f"{len(source.entries)} samples cannot be shared by {processes} processes; start fewer"
        )
    return _ProcessShard(source, rank, processes)


def open_sources(data: Sequence[str]) -> Source:
    """Opens a folder of shards, a .jsonl file in the reference's layout, or `shapes:COUNT[:FRAMES]`."""
    sources: list[Source] = []
    for name in data:
        if name.startswith("shapes:"):
            count, _, frames = name.removeprefix("shapes:").partition(":")
            sources.append(ShapesSource(count=int(count), frames=int(frames or 1)))
        elif name.endswith(".jsonl"):
            sources.append(JsonlSource(Path(name)))
        elif Path(name).is_dir():
            sources.append(ShardSource(Path(name)))
        else:
            raise DatasetError(
                f"no training data at {name!r}; give a folder of shards, a .jsonl file or shapes:COUNT"
            )
    return JoinedSource(sources)
