"""Opens data by name: folders of shards, PAM's .jsonl files, coloured shapes; joins and selects samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from pam_ros.datasets.coloured_shapes import ShapesSource
from pam_ros.datasets.pam_jsonl import PamJsonlSource
from pam_ros.datasets.schema import Sample, SampleSource
from pam_ros.datasets.shards import ShardSource
from pam_ros.errors import DatasetError


class JoinedSource:
    """Several sources as one."""

    def __init__(self, sources: Sequence[SampleSource]) -> None:
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample."""
        number = bisect_right(self._ends, index)
        source = self._sources[number]
        return source[index - self._ends[number] + len(source)]


class SelectedSource:
    """Some samples of a source, each changed when it is read."""

    def __init__(
        self,
        source: SampleSource,
        indices: Sequence[int],
        change: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self._source, self._indices, self._change = source, indices, change

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample."""
        sample = self._source[self._indices[index]]
        return sample if self._change is None else self._change(sample)


def process_shard(source: SampleSource, rank: int, processes: int) -> SampleSource:
    """Every `processes`-th sample from number `rank` on. Raises DatasetError if there are too few for all."""
    if processes == 1:
        return source
    if len(source) < processes:
        raise DatasetError(f"{len(source)} samples are too few for {processes} processes; start fewer")
    return SelectedSource(source, range(rank, len(source), processes))


def open_sources(data: Sequence[str]) -> SampleSource:
    """Opens folders of shards, .jsonl files in PAM's layout, and `shapes:COUNT[:FRAMES]`."""
    return JoinedSource([open_source(name) for name in data])


def open_source(name: str) -> SampleSource:
    """Opens one of them. Raises DatasetError if there is none of that name."""
    if name.startswith("shapes:"):
        count, _, frames = name.removeprefix("shapes:").partition(":")
        return ShapesSource(count=int(count), frames=int(frames or 1))
    path = Path(name)
    if path.suffix == ".jsonl":
        return PamJsonlSource(path)
    if path.is_dir():
        return ShardSource(path)
    raise DatasetError(f"no data at {name!r}; give a folder of shards, a .jsonl file or shapes:COUNT")
