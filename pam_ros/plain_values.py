"""Checks what callers of `api` give: plain values → numbers, arrays and records, or an error of this package.

Every function raises an InputError that names the argument, what was received and what is allowed.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import ImageError, InputError, PromptError
from pam_ros.records import Frame, Language, Task

LONGEST = 100  # characters of a value that a message repeats
LAST_S = 9.2e9  # the latest time of a frame, seconds: stamps are nanoseconds of 64 bits


def shown(value: object) -> str:
    """The value as text, at most a line."""
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"an array {value.shape} {value.dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a value of any class, or an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def path_of(what: str, value: object) -> Path:
    """The path of a file or folder."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{what} must be text or a path, not {shown(value)}")
    return Path(value)


def text_of(what: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise InputError(f"{what} must be text, not {shown(value)}")
    return value


def number_of(what: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A finite number from `low` to `high`; without `low` itself if `above`."""
    try:
        number = np.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = np.nan
    if not low <= number <= high or (above and number == low):
        allowed = f"above {low:g}, at most {high:g}" if above else f"{low:g} to {high:g}"
        raise InputError(f"{what} is {shown(value)}; allowed: {allowed}")
    return number


def integer_of(what: str, value: object, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise InputError(f"{what} is {shown(value)}; allowed: an integer from {low} to {high}")
    return number


def list_of(what: str, values: object, example: str) -> list[Any]:
    """The elements of a list, an array or another iterable; text and mappings are refused."""
    problem = f"{what} must be a list, such as [{example}], not {shown(values)}"
    if isinstance(values, str | bytes | os.PathLike | Mapping):
        raise InputError(problem)
    try:
        return list(values)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise InputError(problem) from None


def names_of(what: str, values: object, example: str) -> list[str]:
    """A list of names; members of the enums `Task` and `Language` stand for theirs."""
    names = [
        each.value if isinstance(each, Task | Language) else each
        for each in list_of(what, values, repr(example))
    ]
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise InputError(f"{what} must be a list of names, such as [{example!r}]; it has {shown(wrong[0])}")
    return names


def rows_of(what: str, values: object, width: int) -> list[list[float]]:
    """Points or boxes as lists of `width` numbers."""
    form = "(x, y)" if width == 2 else "(x1, y1, x2, y2)"
    problem = f"{what} must be a list of {form} in pixels, not {shown(values)}"
    try:
        rows = [array_of(what, row) for row in list_of(what, values, form)]
    except InputError:
        raise PromptError(problem) from None
    if any(row.shape != (width,) or row.dtype.kind not in "iuf" for row in rows):
        raise PromptError(problem)
    return [row.astype(np.float64).tolist() for row in rows]


def array_of(what: str, value: Any) -> NDArray[Any]:
    """An array: NumPy's, a tensor of any device, or nested lists of equal lengths."""
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # ragged lists, or a foreign class
        raise InputError(f"{what} is not an array: {shown(value)} ({type(error).__name__})") from error


def image_of(image: object) -> NDArray[np.uint8]:
    """A file, or an array, → (H, W, 3) uint8 RGB. Raises ImageError."""
    from pam_ros.media import read_image

    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    try:
        return Frame(image=array_of("the image", image), stamp_ns=0).image
    except ImageError:
        raise
    except InputError as error:
        raise ImageError(str(error)) from error


def mask_of(mask: object) -> NDArray[np.bool_]:
    """An image file, see `media.read_mask`, or an array (H, W): numbers above 0 are inside."""
    from pam_ros.media import read_mask

    if isinstance(mask, str | os.PathLike):
        return read_mask(Path(mask))
    try:
        values = array_of("a mask", mask)
    except InputError as error:
        raise PromptError(str(error)) from error
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        form = f"{values.shape} {values.dtype}"
        raise PromptError(f"a mask must be a file or an array (H, W) of bool or numbers, not {form}")
    if not np.isfinite(values).all():
        raise PromptError("a mask has numbers that are NaN or infinite; numbers above 0 are inside")
    return np.asarray(values > 0)


def frames_of(video: Iterable[Any]) -> Iterator[Frame]:
    """(time in seconds, image) → frames, copied, since many readers reuse one array. Raises ImageError."""
    form = "(time in seconds, image)"
    try:
        pairs = iter(video)
    except TypeError:
        raise ImageError(f"the video must be a file or frames {form}, not {shown(video)}") from None
    last_ns = -math.inf
    for number, pair in enumerate(pairs, 1):
        try:
            time_s, image = pair
        except (TypeError, ValueError):
            raise ImageError(f"frame {number} of the video must be {form}, not {shown(pair)}") from None
        seconds = number_of(f"the time of frame {number}", time_s, -LAST_S, LAST_S)
        stamp_ns = round(seconds * 1e9)
        if stamp_ns <= last_ns:
            raise ImageError(
                f"the time of frame {number} is {seconds:g} s; it must be after that of the frame before, "
                f"{last_ns / 1e9:g} s"
            )
        last_ns = stamp_ns
        yield Frame(image=image_of(image).copy(), stamp_ns=stamp_ns)
