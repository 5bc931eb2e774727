"""The exceptions that users meet, as one tree. Messages say what came, what is allowed and how to fix it.

PamError
├── InputError            invalid input: the caller can fix it, other requests are unaffected
│   ├── ImageError            an image or its message cannot be used
│   ├── PromptError           clicks, box or mask cannot be used on this image
│   ├── GeometryError         a 3D point, a calibration or a depth image does not fit the image
│   │   └── TransformError        the transform between two frames is not known at that time
│   ├── TaskError             an unknown task
│   ├── LanguageError         an unknown language
│   ├── UnknownRegionError    no region of that id
│   ├── DatasetError          a dataset, or a line of one, cannot be used
│   ├── OutputError           a folder or file for results cannot be written
│   ├── NothingFoundError     the prompt is valid, but nothing is there
│   ├── NoFrameError          a prompt came before the first frame
│   └── StaleFrameError       the prompt's stamp is older than every buffered frame
├── StateError            valid request, wrong moment
│   ├── NotActiveError        the manager is not active
│   ├── CapacityError         a bound is reached (regions, queued requests)
│   ├── TextServerError       the server that generates the texts cannot be used now
│   └── CancelledError        the request was cancelled, or its region removed
└── ModelError            the model cannot be built, loaded or used
    ├── ModelNotFoundError    no such model, folder or file
    ├── CheckpointError       missing, unexpected, mis-shaped or truncated tensors
    ├── DeviceError           an unknown or unavailable device
    ├── MemoryLimitError      not enough memory; the message gives needed and free
    └── InferenceError        the model failed while processing a request
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)

TRAINING_EXTRA = "scenes, training and evaluation need optional packages: pip install '.[training]'"


class PamError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(PamError, ValueError):
    """The input cannot be used; the message says what was received and what is allowed."""


class ImageError(InputError):
    """An image (array, file or message) is empty, truncated, or of an unknown layout."""


class PromptError(InputError):
    """Clicks, box or mask are malformed, outside the image, or empty."""


class GeometryError(InputError):
    """A point has no pixel, or a calibration or a depth image cannot be used for the image."""


class TransformError(GeometryError):
    """The transform between two coordinate frames is not known at the time asked for."""


class TaskError(InputError):
    """The task is not one of `Task`."""


class LanguageError(InputError):
    """The language is not one of `Language`."""


class DatasetError(InputError):
    """A dataset is missing, empty or malformed; the message names the file and the line."""


class OutputError(InputError):
    """A folder or file for results cannot be written; the message says why."""


class UnknownRegionError(InputError):
    """No region has this id; the message lists the ids that exist."""


class NothingFoundError(InputError):
    """The prompt is valid, but no object was found there.

    Attributes:
        mask_score, presence_score: of what was found instead, see `records.Region`.
    """

    def __init__(self, mask_score: float, presence_score: float, where: str = "there") -> None:
        super().__init__(nothing_found(mask_score, presence_score, where))
        self.mask_score, self.presence_score = mask_score, presence_score


def nothing_found(mask_score: float, presence_score: float, where: str = "there") -> str:
    """The message of NothingFoundError: the lower of the two scores says why."""
    return f"nothing found {where} (score {min(mask_score, presence_score):.2g})"


class NoFrameError(InputError):
    """A prompt refers to the newest frame, and no frame has come yet."""


class StaleFrameError(InputError):
    """The frame a prompt refers to is no longer, or not yet, in the buffer."""


class StateError(PamError, RuntimeError):
    """The request is valid but cannot be served now."""


class NotActiveError(StateError):
    """The manager is not active; the message says how to activate it."""


class CapacityError(StateError):
    """A bound (regions, queued requests) is reached."""


class TextServerError(StateError):
    """The server that generates the texts is gone, or serves another model; the message says what to do."""


class CancelledError(StateError):
    """The request was cancelled, or its region was removed, before it was answered."""


class ModelError(PamError, RuntimeError):
    """The model cannot be built, loaded or used."""


class ModelNotFoundError(ModelError):
    """The model name, folder or file does not exist."""


class CheckpointError(ModelError):
    """The weights do not fit the architecture; the message lists the tensor names."""


class DeviceError(ModelError):
    """The device or dtype is unknown or not present on this machine."""


class MemoryLimitError(ModelError):
    """Not enough free memory; the message gives needed and free GiB."""


class InferenceError(ModelError):
    """The model failed while processing a request. Only that request fails; the log has the traceback."""


def without_frames(error: E) -> E:
    """The error without the tracebacks of itself and of what caused it, for one that is kept.

    Their frames hold all that was computed in them, images and a model's tensors among it; and where one of
    these frames holds the error in turn, only Python's garbage collector would free them, seconds later.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
