"""Files of JSON lines with random access by byte offset, and errors that name file, line and key."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pam_ros.errors import DatasetError

Value = TypeVar("Value")
NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a finite number"}


class Fields:
    """The values of one JSON object, with its place for errors."""

    __slots__ = ("place", "values")

    def __init__(self, values: Mapping[str, Any], place: str, prefix: str = "") -> None:
        self.values, self.place = values, (place, prefix)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, problem: str) -> DatasetError:
        """An error about one key: the value received and what is allowed."""
        return DatasetError(f"{self.place[0]}, {self.place[1]}{key} {problem}")

    def need(self, key: str, kind: type[Value]) -> Value:
        """The key's value. Raises DatasetError if it is missing or of another kind."""
        if key not in self.values:
            had = ", ".join(sorted(self.values)) or "none"
            raise self.error(key, f"is missing; it must be {NAMES[kind]}; keys given: {had}")
        value = self.values[key]
        if kind is float and _is_number(value):
            value = float(value)
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or (kind is float and not _is_number(value))
        ):
            raise self.error(key, f"is {value!r:.60}; it must be {NAMES[kind]}")
        return value

    def get(self, key: str, default: Value) -> Value:
        """The key's value, or `default` if it is missing or null; must be of the default's kind."""
        return default if self.values.get(key) is None else self.need(key, type(default))

    def items(self, key: str) -> list[Any]:
        """A list's items; none if it is missing or null."""
        return list(self.need(key, list)) if key in self else []

    def objects(self, key: str) -> list[Fields]:
        """A list of objects."""
        found = []
        for place, values in enumerate(self.need(key, list)):
            if not isinstance(values, dict):
                raise self.error(f"{key}[{place}]", f"is {values!r:.60}; it must be an object")
            found.append(Fields(values, self.place[0], f"{self.place[1]}{key}[{place}]."))
        return found

    def inner(self, key: str) -> Fields:
        """An object, empty if it is missing."""
        return Fields(self.get(key, {}), self.place[0], f"{self.place[1]}{key}.")

    def numbers(self, key: str, value: Any, count: int) -> tuple[float, ...]:
        """`value` as that many numbers; `key` says where it stands."""
        if not isinstance(value, list | tuple) or len(value) != count or not all(map(_is_number, value)):
            raise self.error(key, f"is {value!r:.60}; it must be a list of {count} finite numbers")
        return tuple(float(each) for each in value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float holds: Python reads NaN and Infinity as JSON, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class JsonLines:
    """The lines of some files in order. Only their byte offsets are kept; blank lines do not count."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises DatasetError if a file cannot be read."""
        self._paths = tuple(paths)
        self._files, self._offsets, self._numbers = array("L"), array("Q"), array("L")
        for number, path in enumerate(self._paths):
            try:
                self._scan(number, path)
            except OSError as error:
                raise DatasetError(f"{path} cannot be read: {error}") from error

    def _scan(self, file_number: int, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._files.append(file_number)
                    self._offsets.append(offset)
                    self._numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Fields]:
        return (self[index] for index in range(len(self)))

    def path(self, index: int) -> Path:
        """The file that a line stands in."""
        return self._paths[self._files[index]]

    def __getitem__(self, index: int) -> Fields:
        """One line. Raises DatasetError if it is not a JSON object."""
        path = self.path(index)
        place = f"{path}, line {self._numbers[index]}"
        with path.open("rb") as file:
            file.seek(self._offsets[index])
            text = file.readline()
        try:
            values = json.loads(text)
        except ValueError as error:  # also wrong UTF-8
            raise DatasetError(f"{place} is not JSON: {error}; each line must be one JSON object") from error
        if not isinstance(values, dict):
            raise DatasetError(f"{place} is a {type(values).__name__}; each line must be one JSON object")
        return Fields(values, place)
