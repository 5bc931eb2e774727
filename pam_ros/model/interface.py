"""What the runtime needs of a model: a vision and a text protocol. `Pam` provides both, tests use fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pam_ros.model.text.names import ObjectNames
from pam_ros.model.vision.grid import Candidates
from pam_ros.records import Language, Prompt, Task

# Pixel shuffle of the Perceiver's image tokens (paper, section 3.2): an image and the first frame of a clip
# keep one visual token for 2 × 2 of them, the later frames of a clip one for 4 × 4.
FIRST_FRAME_STRIDE = 2
LATER_FRAME_STRIDE = 4


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model, for logs and diagnostics."""

    name: str
    device: str
    dtype: str
    parameters: int  # count
    licence: str
    crop_small_regions: bool = False  # see `VisionModel.embeddings`
    quantization: str = "none"  # of the language model's linear layers: none, int8, int4
    text_server: str = ""  # where texts are generated; empty = in this process
    calibrated: bool = False  # whether confidences are calibrated, see `model.text.confidence`
    min_confidence: float = 0.5  # below it a text is unsure, as calibrated
    demonstration: bool = False  # it knows rendered objects only
    max_regions: int = 0  # regions that it can track at a time; 0 = any number

    @property
    def mark(self) -> str:
        """What images with its texts say in a corner; empty unless it is a demonstration model."""
        return f"{self.name}: demonstration model" if self.demonstration else ""


# ---- vision


class FrameFeatures(Protocol):
    """SAM 2's features of one encoded frame. They stay on the device."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame, pixels."""


class RegionMemory(Protocol):
    """SAM 2's memory bank of one region: bounded; `segment` and `track` write it."""


class Observation(Protocol):
    """One region in one frame."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool at the frame's size; empty if the object is not in view."""

    @property
    def mask_score(self) -> float:
        """The model's own estimate of the mask's IoU, 0..1."""

    @property
    def presence_score(self) -> float:
        """Probability that the object is in view, 0..1."""


class RegionEmbeddings(Protocol):
    """One region in one frame as the language model reads it: visual tokens, semantic tokens, separators.

    They stay on the device.
    """

    def __len__(self) -> int:
        """Number of embeddings."""


class VisionModel(Protocol):
    """Masks and embeddings of regions. Not thread-safe: one thread owns it.

    Only the model that made features, memories, observations and embeddings can read them; so they come
    out as protocols and go back in as `Any`.
    """

    def encode(self, image: NDArray[np.uint8]) -> FrameFeatures:
        """(H, W, 3) uint8 RGB → features. One encoder pass serves every region of the frame."""

    def new_memory(self) -> RegionMemory:
        """An empty memory for a new region."""

    def saved(self, memory: Any) -> Callable[[], None]:
        """What puts a memory back to how it is now, whatever is written to it until then; for one use."""

    def segment(
        self, features: Any, prompts: Sequence[Prompt], memories: Sequence[Any]
    ) -> Sequence[Observation]:
        """Segments prompted regions as one batch. An empty memory is started.

        A memory that holds frames is refined: `features` are those of the newest frame it holds.
        Raises PromptError if a prompt lies outside the frame.
        """

    def candidates(self, features: Any, points_xy: NDArray[np.float32]) -> Candidates:
        """Masks at N single points (N, 2), (x, y) pixels of the frame, as one batch; nothing is remembered.

        SAM 2's three masks for each point, unfiltered.
        """

    def track(self, features: Any, memories: Sequence[Any]) -> Sequence[Observation]:
        """Finds every remembered region in the next frame, as one batch, and remembers it there.

        Raises PromptError for an empty memory.
        """

    def embeddings(
        self, observations: Sequence[Any], *, stride: int, crop: bool = False
    ) -> Sequence[RegionEmbeddings]:
        """Semantic Perceiver and projector, as one batch.

        Args:
            stride: FIRST_FRAME_STRIDE or LATER_FRAME_STRIDE.
            crop: for texts about images: read small regions from a crop of the frame, if the model does that.
        """


# ---- text


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One text to generate about a prompt."""

    task: Task
    language: Language
    previous_caption: str | None = None  # Task.CLIP only
    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 = greedy, a robot's default; the reference samples at 0.1
    beginning: str = ""  # of the answer, which is not generated; the text starts with it
    mask_score: float | None = None  # of the region, 0..1; some models are calibrated with it


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A text so far.

    Attributes:
        text_id: as `TextGenerator.generate` returned it.
        final: the text is complete; nothing more is reported about it.
        error: why the text ended without being complete; None otherwise. `text` is then what there was.
        new_tokens: that the text grew by, the stop token included.
        confidence: of a final text, the probability that it is right, 0..1; None if it is not known.
    """

    text_id: int
    text: str
    final: bool
    error: Exception | None = None
    new_tokens: int = 1
    confidence: float | None = None


class TextGenerator(Protocol):
    """Texts about regions. Not thread-safe: one thread owns it.

    A prompt is opened and extended by the embeddings of one frame or, for a clip, of its frames as they
    arrive; texts branch off it. `step` does all the work, a bounded piece at a time, unless the generator
    works in the background: then `step` only reports.
    """

    @property
    def busy(self) -> bool:
        """True while a text is not final."""

    @property
    def problem(self) -> str:
        """Why no text can be generated now, and what to do; empty if texts can be generated."""

    @property
    def in_background(self) -> bool:
        """True if texts grow on another thread or machine, so that `step` returns immediately."""

    def notify(self, wake: Callable[[], None]) -> None:
        """In the background, calls `wake` whenever `step` has something to report; on any thread."""

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        """Starts a prompt about one frame, or about a clip; returns its id, which is never used again.

        `frames`: the most it will be extended by.
        """

    def extend_prompt(self, prompt_id: int, embeddings: Any) -> None:
        """Appends one frame's RegionEmbeddings, oldest first."""

    def release_prompt(self, prompt_id: int) -> None:
        """No more texts will branch off this prompt; its memory is freed when the last of them ends."""

    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        """Starts texts that branch off prompts, (prompt id, request) each; returns an id for each text.

        Texts that start together run as one batch. Raises CapacityError, and starts none, if a prompt and its
        answer do not fit into the language model's context.
        """

    def step(self) -> list[TextDelta]:
        """Does one bounded piece of work: prefills a chunk, or adds a token to every text of one batch.

        In the background: takes what has arrived. Returns the texts that changed. If the model fails, the
        texts concerned end with `TextDelta.error`.
        """

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report. Does nothing if it has ended already."""


class Described(NamedTuple):
    """What was said of a region, in one language; "" if unknown.

    `confidence` is that of the explanation, 0..1; None if it is not known.
    """

    label: str
    explanation: str
    confidence: float | None = None


class PurposeJudge(Protocol):
    """Judges what regions are good for, by their texts."""

    def fits(self, purpose: str, regions: Sequence[Described], language: Language) -> Sequence[float]:
        """How well each region fits the purpose, 0..1.

        Args:
            purpose: what is needed, in words: "something to cut with".
            regions: what was said of each, in `language`.
        """


class PerceptionModel(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""

    @property
    def vision(self) -> VisionModel:
        """Masks and embeddings."""

    @property
    def text(self) -> TextGenerator:
        """Texts."""

    @property
    def judge(self) -> PurposeJudge:
        """Judges what regions are good for. Raises StateError if this model cannot judge."""

    @property
    def names(self) -> ObjectNames | None:
        """The names of what the model knows; None if it has no list of them."""

    def close(self) -> None:
        """Frees the memory; the model cannot be used afterwards."""
