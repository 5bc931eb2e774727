"""The assembled model: SAM 2 → Semantic Perceiver → projector → Qwen2.5."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from pam_ros.errors import CapacityError, PromptError
from pam_ros.model.config import Architecture
from pam_ros.model.interface import GenerationRequest, ModelInfo, PerceptionModel
from pam_ros.model.perceiver import SemanticPerceiver
from pam_ros.model.projector import Projector
from pam_ros.model.text.language_model import GenerationBatch, LanguageModel, TextGeneration, TextSequence
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE, text_after_image
from pam_ros.model.vision.memory_bank import RegionMemory
from pam_ros.model.vision.segmenter import DecoderFeatures, FrameFeatures, Observation, Segmenter
from pam_ros.records import Prompt, Task

REFERENCE_WINDOW = 4096  # Qwen2's default where config.json is silent
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
    """One frame of a region as embeddings for the language model."""

    tensor: Tensor  # (embeddings, H)

    def __len__(self) -> int:
        return self.tensor.shape[0]


class Pam(nn.Module):
    """Masks and texts of regions; implements `interface.PerceptionModel`. Not thread-safe."""

    def __init__(self, architecture: Architecture, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Builds the modules; torch initialises the weights, a loader replaces them."""
        super().__init__()
        config = Qwen2Config(**language_arguments(architecture.language))
        perceiver = architecture.perceiver
        self.architecture = architecture
        self.info = ModelInfo(name="", device="cpu", dtype="float32", parameters=0, licence="")
        self.max_new_tokens = 512
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
        self.language = LanguageModel(Qwen2ForCausalLM(config), tokenizer, window)
        self.eval()

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the model to a device and casts its parameters.

        Those of `exact_names` stay float32.
        """
        exact = self.exact_names()
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(device, None if name in exact else dtype)
        self.to(device)

    def exact_names(self) -> set[str]:
        """Tensors that keep float32: position codes, rotary frequencies, SAM 2's prompt encoder.

        They are small. In bfloat16 a click would be off by up to a pixel, and a rotary phase by radians
        after a thousand embeddings.
        """
        encoder = "segmenter.sam2.sam_prompt_encoder."
        clicks = {name for name, _ in self.named_parameters() if name.startswith(encoder)}
        return clicks | {name for name, _ in self.named_buffers()}

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

    @torch.inference_mode()
    def segment(
        self, features: FrameFeatures, prompts: Sequence[Prompt], memories: Sequence[RegionMemory]
    ) -> list[Observation]:
        """Segments prompted regions, batched. Raises PromptError where a prompt lies outside the frame."""
        for prompt in prompts:
            prompt.check_size(*features.size)
        return self.segmenter.segment(features, prompts, memories)

    @torch.inference_mode()
    def track(self, features: FrameFeatures, memories: Sequence[RegionMemory]) -> list[Observation]:
        """Finds every remembered region in the next frame, batched. PromptError for an empty memory."""
        if any(memory.is_empty for memory in memories):
            raise PromptError("a region is tracked after it was prompted, not before")
        return self.segmenter.track(features, memories)

    # ---- embeddings

    @torch.inference_mode()
    def embeddings(
        self, observations: Sequence[Observation], *, stride: int, crop: bool = False
    ) -> list[RegionEmbeddings]:
        """Perceiver and projector on B regions, batched → one RegionEmbeddings each.

        `closer`: small regions from a closer look, see `Segmenter.segment_crops`.
        """
        if not observations:
            return []
        region_features = [observation.decoder_features for observation in observations]
        if crop:
            looked = self.segmenter.segment_crops(observations)
            region_features = [
                each.decoder_features if each.crop is None else each.crop.decoder_features for each in looked
            ]
        return [
            RegionEmbeddings(embeddings)
            for embeddings in self.embed_features(region_features, stride=stride).unbind(0)
        ]

    def embed_features(self, region_features: Sequence[DecoderFeatures], *, stride: int) -> Tensor:
        """The same of B region_features as one tensor (B, embeddings, H); gradients flow where they are wanted."""
        image = torch.cat([decoder_features.image for decoder_features in region_features])
        tokens = torch.cat([decoder_features.tokens for decoder_features in region_features])
        semantic, refined = self.perceiver(image, tokens)
        embeddings: Tensor = self.projector(self.perceiver.shuffle(refined, stride=stride), semantic)
        return embeddings

    def prompt_embeddings(self, embeddings: Sequence[RegionEmbeddings], *, clip: bool) -> Tensor:
        """What stands for `<image>` in the prompt: (embeddings, H)."""
        if clip:
            return self.projector.clip_embeddings([frame.tensor for frame in embeddings])
        (frame,) = embeddings
        return frame.tensor

    # ---- texts

    @torch.inference_mode()
    def decode(self, requests: Sequence[GenerationRequest]) -> TextGeneration:
        """Starts decoding a batch of texts. Requests with the same row objects share one prefill.

        Raises CapacityError where a prompt and its answer would not fit the language model's context.
        """
        before = self.language.embed(self.language.encode_text(TEXT_BEFORE_IMAGE))
        prefixes: dict[tuple[int, ...], Tensor] = {}  # keyed by the identity of the embeddings
        by_length: dict[int, list[tuple[tuple[int, ...], TextSequence]]] = defaultdict(list)
        for index, request in enumerate(requests):
            clip = request.task is Task.CLIP
            key = (int(clip), *map(id, request.embeddings))
            if key not in prefixes:
                prefixes[key] = torch.cat([before, self.prompt_embeddings(request.embeddings, clip=clip)])
            sequence = self._sequence(index, request, len(prefixes[key]))
            by_length[len(prefixes[key])].append((key, sequence))
        batches = []
        for members in by_length.values():
            keys = list(dict.fromkeys(key for key, _ in members))
            for key, sequence in members:
                sequence.prefix = keys.index(key)
            stacked = torch.stack([prefixes[key] for key in keys])
            batches.append(
                GenerationBatch(self.language, stacked, [b for _, b in members], self.language.stop_ids)
            )
        return TextGeneration(self.language, batches)

    def _sequence(self, index: int, request: GenerationRequest, prefix_length: int) -> TextSequence:
        text = text_after_image(request.task, request.language, request.previous_caption)
        suffix = self.language.encode_text(text)
        room = self.language.context_length - prefix_length - len(suffix)
        if room < 1:
            raise CapacityError(
                f"the prompt needs {prefix_length + len(suffix)} tokens and one for the answer, the model takes "
                f"{self.language.context_length}; use fewer frames or a shorter previous caption"
            )
        wanted = min(request.max_new_tokens, self.max_new_tokens, room)
        return TextSequence(
            index=index, prefix=0, suffix=suffix, max_new_tokens=wanted, temperature=request.temperature
        )

    # ---- life

    def close(self) -> None:
        """Drops the weights; the model cannot be used afterwards."""
        for name in list(self._modules):
            delattr(self, name)


def attention_window(config: Mapping[str, Any]) -> int | None:
    """How far back a row attends, itself included.

    The reference's attention applies `sliding_window` whatever `use_sliding_window` says, keeps one row
    more than its name promises, and takes 4096 where config.json does not name it. Official checkpoints
    name a window longer than any prompt, so it shows on fixtures only.
    """
    window = config.get("sliding_window", REFERENCE_WINDOW)
    return None if window is None else int(window) + 1


def language_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config.json → arguments of Qwen2Config."""
    kept = {key: value for key, value in config.items() if not key.startswith(NOT_QWEN2)}
    return {"attn_implementation": "sdpa", **kept}


if TYPE_CHECKING:

    def _conforms(pam: Pam) -> PerceptionModel:
        return pam
