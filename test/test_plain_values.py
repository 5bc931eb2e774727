"""Whatever a caller of `pam_ros.api` gives: it works, or it is one error of this package that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel

from pam_ros import api
from pam_ros.errors import ImageError, InputError, LanguageError, PromptError
from pam_ros.plain_values import frames_of, shown

IMAGE = np.full((48, 64, 3), 7, np.uint8)
BOX = (4, 4, 20, 20)
MASK = np.zeros((48, 64))
MASK[10:20, 30:40] = 1
VIDEO = [(number / 10, IMAGE) for number in range(40)]
NAN, HUGE = float("nan"), 10**5000
A_LIST, A_BOX, A_MASK = (
    "must be a list, such as",
    "must be a list of (x1, y1, x2, y2)",
    "array (H, W) of bool",
)
A_FRAME = "frame 1 of the video must be (time in seconds, image)"


def perceive(**given: Any) -> list[api.Result]:
    return api.perceive(FakeModel(), **({"image": IMAGE, "boxes": [BOX]} | given))


def perceive_all(**given: Any) -> list[api.Result]:
    return api.perceive_all(FakeModel(), IMAGE, **({"boxes": [BOX]} | given))


def find(request: Any = "to cut", **given: Any) -> list[api.Result]:
    return api.find(FakeModel(), IMAGE, request, boxes=[BOX], **given)


def caption(video: Any = VIDEO, **given: Any) -> list[Any]:
    return list(api.caption(FakeModel(), video, boxes=[BOX], **given))


def only(mask: Any) -> list[api.Result]:
    return perceive(boxes=(), masks=[mask])


@pytest.mark.parametrize(
    ("call", "given", "error", "words"),
    [
        (perceive, {"image": None}, ImageError, "not () object"),
        (perceive, {"image": [[1, 2], [3]]}, ImageError, "the image is not an array: [[1, 2], [3]]"),
        (perceive, {"image": torch.ones(3, 3, 3, requires_grad=True)}, ImageError, "not (3, 3, 3) float32"),
        (perceive, {"clicks": [(HUGE, 3)], "boxes": ()}, PromptError, "must be a list of (x, y) in pixels"),
        (perceive, {"clicks": [("3", "4")], "boxes": ()}, PromptError, "must be a list of (x, y) in pixels"),
        (perceive, {"clicks": [(1e300, 3)], "boxes": ()}, PromptError, "points must be finite"),
        (perceive, {"boxes": None}, PromptError, A_BOX),
        (perceive, {"boxes": {"x": 1}}, PromptError, A_BOX),
        (perceive, {"boxes": [[1, 2, 3]]}, PromptError, A_BOX),
        (perceive, {"boxes": [BOX] * 300}, PromptError, "300 regions are given; at most 256 are allowed"),
        (perceive, {"masks": ["no.png"] * 257}, PromptError, "258 regions are given; at most 256"),
        (perceive, {"masks": None}, InputError, "masks must be a list, such as ['mask.png'], not None"),
        (perceive, {"masks": "nope.png"}, InputError, "masks must be a list, such as ['mask.png'], not 'n"),
        (only, {"mask": np.where(MASK > 0, NAN, 0)}, PromptError, "NaN or infinite"),
        (only, {"mask": np.full((48, 64), None)}, PromptError, f"{A_MASK} or numbers, not (48, 64) object"),
        (only, {"mask": np.full((48, 64), "a")}, PromptError, A_MASK),
        (only, {"mask": [[1, 2], [3]]}, PromptError, "a mask is not an array: [[1, 2], [3]]"),
        (only, {"mask": MASK[0]}, PromptError, A_MASK),
        (only, {"mask": MASK - 2}, PromptError, "the mask prompt is empty"),
        (perceive, {"tasks": None}, InputError, "tasks must be a list, such as ['label'], not None"),
        (perceive, {"tasks": [["label"]]}, InputError, "it has ['label']"),
        (perceive, {"languages": None}, InputError, A_LIST),
        (perceive, {"languages": [1]}, InputError, "languages must be a list of names, such as ['en']; it"),
        (perceive, {"on_text": 5}, InputError, "on_text must be a function, not 5"),
        (perceive_all, {"max_regions": "3"}, InputError, "max_regions is '3'; allowed: an integer from 1 to"),
        (perceive_all, {"max_regions": 1.5}, InputError, "max_regions is 1.5; allowed"),
        (perceive_all, {"max_regions": 0}, InputError, "max_regions is 0; allowed"),
        (perceive_all, {"max_regions": HUGE}, InputError, "max_regions is a int; allowed"),
        (perceive_all, {"budget_s": None}, InputError, "budget_s is None; allowed: above 0, at most 60"),
        (perceive_all, {"budget_s": 0}, InputError, "budget_s is 0; allowed"),
        (perceive_all, {"budget_s": NAN}, InputError, "budget_s is nan; allowed"),
        (find, {"request": None}, InputError, "request must be text, not None"),
        (find, {"request": b"cut"}, InputError, "request must be text, not b'cut'"),
        (find, {"min_score": "1"}, InputError, "min_score is '1'; allowed: 0 to 1"),
        (find, {"language": ["en"]}, LanguageError, "unknown language ['en']"),
        (caption, {"video": None}, ImageError, "must be a file or frames (time in seconds, image), not None"),
        (caption, {"video": [1, 2]}, ImageError, f"{A_FRAME}, not 1"),
        (caption, {"video": np.stack([IMAGE] * 3)}, ImageError, f"{A_FRAME}, not an array (48, 64, 3) uint8"),
        (caption, {"video": [(NAN, IMAGE)]}, InputError, "the time of frame 1 is nan"),
        (caption, {"video": [(0, IMAGE), (1e12, IMAGE)]}, InputError, "the time of frame 2 is 1000000000000"),
        (caption, {"video": [("0", IMAGE)]}, InputError, "the time of frame 1 is '0'"),
        (caption, {"at_s": 1}, InputError, "at_s must be a list, such as [3, 7.5], not 1"),
        (caption, {"at_s": "1"}, InputError, "at_s must be a list, such as [3, 7.5], not '1'"),
        (caption, {"at_s": [NAN]}, InputError, "a time of at_s is nan"),
        (caption, {"every_s": "2"}, InputError, "every_s is '2'; allowed: 0.1 to 3600"),
        (caption, {"language": None}, LanguageError, "unknown language None"),
        (api.load_model, {"device": None}, InputError, "device must be text, not None"),
        (api.load_model, {"dtype": torch.float32}, InputError, "dtype must be text, not torch.float32"),
        (api.load_model, {"text_server": "garbage"}, InputError, "server's address is 'garbage'; give"),
        (api.load_model, {"sam2": 5}, InputError, "sam2 must be text or a path, not 5"),
        (api.load_model, {"model": None}, InputError, "model must be text or a path, not None"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(
    call: Callable[..., object], given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        call(**given)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("model", [None, "pam-tiny", object()])
def test_what_is_no_model_is_refused(model: Any) -> None:
    for call in (api.perceive, api.perceive_all, lambda *given: api.find(*given, "to cut"), api.caption):
        with pytest.raises(InputError, match="model must be what load_model returns, not "):
            call(model, IMAGE)


def test_tensors_and_arrays_are_values() -> None:
    (plain,) = only(MASK)
    for mask in (MASK.astype(bool), torch.tensor(MASK, requires_grad=True), (MASK * 9 - 4).tolist()):
        (same,) = only(mask)  # logits, too: above 0 is inside
        assert (same.mask == plain.mask).all()
    boxes = torch.tensor([BOX]).float().requires_grad_()
    (result,) = perceive(image=torch.from_numpy(IMAGE.copy()), boxes=boxes)
    assert result.mask.any()
    times = np.array([1.0, 2.5])
    assert [event.clip_end_ns / 1e9 for event in caption(at_s=times)] == times.tolist()
    assert len(caption([(torch.tensor(0.0), IMAGE), (np.float32(1), IMAGE)])) == 1


def test_a_reader_may_fill_one_array_again() -> None:
    array = np.zeros_like(IMAGE)

    def reader() -> Any:
        for number in range(3):
            array[:] = number
            yield number, array

    assert [int(frame.image[0, 0, 0]) for frame in list(frames_of(reader()))] == [0, 1, 2]


def test_a_message_repeats_a_line_at_most() -> None:
    class Stranger:
        def __repr__(self) -> str:
            raise ValueError

    assert shown(Stranger()) == "a Stranger"
    assert len(shown("a" * 10**6)) < 200
    assert shown(np.arange(4)) == "array([0, 1, 2, 3])"
