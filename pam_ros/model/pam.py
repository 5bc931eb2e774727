"""The assembled model: SAM 2 → Semantic Perceiver → projector → Qwen2.5."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from pam_ros.errors import PromptError, StateError
from pam_ros.model.config import Architecture
from pam_ros.model.interface import ModelInfo, PerceptionModel, PurposeJudge, VisionModel
from pam_ros.model.perceiver import SemanticPerceiver
from pam_ros.model.projector import Projector
from pam_ros.model.text.confidence import ConfidenceModel
from pam_ros.model.text.generator import InProcessGenerator
from pam_ros.model.text.judging import LikelihoodJudge
from pam_ros.model.text.language_model import EmbeddingTable, LanguageModel
from pam_ros.model.text.matching import PurposeMatcher
from pam_ros.model.text.names import ObjectNames
from pam_ros.model.vision.features import DecoderFeatures, FrameFeatures, Observation, split_regions
from pam_ros.model.vision.grid import Candidates
from pam_ros.model.vision.memory_bank import RegionMemory
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.records import Prompt

REFERENCE_WINDOW = 4096  # Qwen2's default if config.json has none
# Keys of a config.json that are PAM's own, are dealt with here, or say how the file came about.
NOT_QWEN2 = (
    "mm_",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
)


@dataclass(frozen=True, slots=True)
class RegionEmbeddings:
    """One region in one frame as the language model reads it."""

    tensor: Tensor  # (L, H): visual tokens, separator, semantic tokens, separator

    def __len__(self) -> int:
        return self.tensor.shape[0]


class Pam(nn.Module):
    """Masks and texts; implements `interface.PerceptionModel` and `VisionModel`. Not thread-safe."""

    def __init__(
        self,
        architecture: Architecture,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        decoder: bool = True,
    ) -> None:
        """Builds the modules; torch initialises the weights, a loader replaces them.

        `decoder`: False leaves out the language model's decoder; then `text` cannot be used.
        """
        super().__init__()
        config = Qwen2Config(**language_arguments(architecture.language))
        perceiver = architecture.perceiver
        self.architecture = architecture
        self.info = ModelInfo(name="", device="cpu", dtype="float32", parameters=0, licence="")
        self.segmenter = Segmenter(
            instantiate(dict(architecture.sam2)),
            perceiver.input,
            crop_small_regions=perceiver.crop_small_regions,
        )
        self.perceiver = SemanticPerceiver(
            width=self.segmenter.width,
            semantic_tokens=perceiver.semantic_tokens,
            depth=perceiver.depth,
            heads=perceiver.heads,
            hidden=perceiver.hidden,
        )
        self.projector = Projector(width=self.segmenter.width, language_width=config.hidden_size)
        window = attention_window(architecture.language)
        transformer = Qwen2ForCausalLM(config) if decoder else EmbeddingTable(config)
        self.language = LanguageModel(transformer, tokenizer, window)
        self.matcher: PurposeMatcher | None = None  # judges purposes if the language model cannot
        self.names: ObjectNames | None = None  # of what it knows, if it has a list of them
        self.confidence = ConfidenceModel()
        self._generator: InProcessGenerator | None = None
        if decoder:
            self._generator = InProcessGenerator(self.language, self.projector)
        self.eval()

    @property
    def parameter_count(self) -> int:
        """Parameters of all parts, quantised weights included."""
        plain = sum(parameter.numel() for parameter in self.parameters())
        dense = sum(parameter.numel() for parameter in self.language.parameters())
        return plain - dense + self.language.parameter_count

    def place(self, device: torch.device, dtype: torch.dtype, *, values: bool = True) -> None:
        """Moves the model to a device and casts its parameters; `values`: False if they are yet to come.

        Those of `exact_names` stay float32. On a GPU, float32 then means float32 in convolutions, too, for
        the whole process: cuDNN would round to TF32.
        """
        if device.type == "cuda" and dtype is torch.float32:
            torch.backends.cudnn.allow_tf32 = False
        exact = self.exact_names()
        for name, parameter in self.named_parameters():
            if parameter.is_meta:  # see `loading.quantization`
                continue
            kind = parameter.dtype if name in exact else dtype
            if values or (parameter.device, parameter.dtype) == (device, kind):
                parameter.data = parameter.data.to(device, kind)
            else:
                parameter.data = torch.empty_like(parameter, device=device, dtype=kind)
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def exact_names(self) -> set[str]:
        """Tensors that keep float32: position codes, rotary frequencies, SAM 2's prompt encoder.

        They are small. In bfloat16 a click would be off by up to a pixel, and a rotary phase by radians
        after a thousand tokens.
        """
        encoder = "segmenter.sam2.sam_prompt_encoder."
        clicks = {name for name, _ in self.named_parameters() if name.startswith(encoder)}
        return clicks | {name for name, _ in self.named_buffers()}

    @property
    def vision(self) -> Pam:
        """Masks and embeddings: this object itself."""
        return self

    @property
    def text(self) -> InProcessGenerator:
        """Texts. Raises StateError if it is closed, or has no decoder."""
        if self._generator is None:
            raise StateError("the model is closed, or was loaded without a decoder; load it again")
        return self._generator

    @property
    def judge(self) -> PurposeJudge:
        """Judges what regions are good for. Raises StateError without a decoder."""
        if self.matcher is not None:
            return self.matcher
        if self._generator is None:
            raise StateError(
                "finding by purpose needs the language model in this process; it is on a text server. "
                "Load the model without one"
            )
        return LikelihoodJudge(self.language)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.segmenter.pixel_mean.device

    # ---- masks

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> FrameFeatures:
        """(H, W, 3) uint8 RGB → features. One encoder pass serves every region of the frame."""
        return self.segmenter.encode(image)

    def new_memory(self) -> RegionMemory:
        """An empty memory for a new region."""
        return self.segmenter.new_memory()

    def saved(self, memory: RegionMemory) -> Callable[[], None]:
        """What puts a memory back to how it is now, whatever is written to it until then."""
        return memory.saved()

    @torch.inference_mode()
    def segment(
        self, features: FrameFeatures, prompts: Sequence[Prompt], memories: Sequence[RegionMemory]
    ) -> list[Observation]:
        """Segments prompted regions, as one batch. Raises PromptError if a prompt lies outside the frame."""
        for prompt in prompts:
            prompt.check_size(*features.size)
        return self.segmenter.segment(features, prompts, memories)

    @torch.inference_mode()
    def candidates(self, features: FrameFeatures, points_xy: NDArray[np.float32]) -> Candidates:
        """Masks at single points (N, 2), pixels of the frame, as one batch; nothing is remembered."""
        return self.segmenter.candidates(features, points_xy)

    @torch.inference_mode()
    def track(self, features: FrameFeatures, memories: Sequence[RegionMemory]) -> list[Observation]:
        """Finds every remembered region in the next frame, as one batch. PromptError for an empty memory."""
        if any(memory.is_empty for memory in memories):
            raise PromptError("the region has no memory yet; prompt it before tracking")
        return self.segmenter.track(features, memories)

    # ---- embeddings

    @torch.inference_mode()
    def embeddings(
        self, observations: Sequence[Observation], *, stride: int, crop: bool = False
    ) -> list[RegionEmbeddings]:
        """Semantic Perceiver and projector on B regions, as one batch. See `interface.VisionModel`."""
        if not observations:
            return []
        features = [observation.decoder_features for observation in observations]
        if crop:
            for i, observation in enumerate(self.segmenter.segment_crops(observations)):
                if observation.crop is not None:
                    features[i] = observation.crop.decoder_features
        tensors = split_regions(self.embed_features(features, stride=stride))
        return [RegionEmbeddings(tensor[0]) for tensor in tensors]

    def embed_features(self, features: Sequence[DecoderFeatures], *, stride: int) -> Tensor:
        """Decoder features of B regions → embeddings (B, L, H), with gradients."""
        image = torch.cat([each.image for each in features])
        tokens = torch.cat([each.tokens for each in features])
        semantic, refined = self.perceiver(image, tokens)
        embeddings: Tensor = self.projector(self.perceiver.shuffle(refined, stride=stride), semantic)
        return embeddings

    def region_tokens(self, stride: int) -> int:
        """Embeddings of a region in one frame: visual and semantic tokens, and two separators."""
        side = self.segmenter.grid_size // stride
        return side**2 + self.architecture.perceiver.semantic_tokens + 2

    # ---- life

    def close(self) -> None:
        """Drops the weights; the model cannot be used afterwards."""
        self._generator = None
        for name in list(self._modules):
            delattr(self, name)


def attention_window(config: Mapping[str, Any]) -> int | None:
    """How many tokens back a token attends, itself included.

    The reference's attention applies `sliding_window` whatever `use_sliding_window` says, keeps one token
    more than its name promises, and takes 4096 if config.json has none. Official checkpoints
    name a window longer than any prompt, so it shows on fixtures only.
    """
    window = config.get("sliding_window", REFERENCE_WINDOW)
    return None if window is None else int(window) + 1


def language_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config.json → arguments of Qwen2Config."""
    kept = {key: value for key, value in config.items() if not key.startswith(NOT_QWEN2)}
    return {**kept, "attn_implementation": "sdpa"}


if TYPE_CHECKING:

    def _conforms(pam: Pam) -> tuple[PerceptionModel, VisionModel]:
        return pam, pam
