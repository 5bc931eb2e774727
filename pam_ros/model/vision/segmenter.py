"""SAM 2 (package sam2) with PAM's flags: encodes a frame, segments prompts, tracks regions with memory.

`Segmenter` drives the parts of `SAM2Base` frame by frame, so that live frames, several regions on one encoder
pass and bounded memory need no video in advance. It computes what SAM 2's video predictor computes with PAM's
flags (see `docs/reference.md`), and returns the decoder features that the Semantic Perceiver reads.

Letters: B regions, C model width, K clicks, S input size, h = w = S / 16.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn

from pam_ros.errors import CheckpointError
from pam_ros.model.config import PerceiverInput
from pam_ros.model.vision.candidates import mask_candidates
from pam_ros.model.vision.features import DecoderFeatures, FrameFeatures, Observation, RegionCrop, of_regions
from pam_ros.model.vision.grid import Candidates
from pam_ros.model.vision.mask_decoder import DecodedMasks, stability_pick
from pam_ros.model.vision.memory_bank import (
    MemoryEntry,
    RegionMemory,
    collate,
    memory_tokens,
    object_pointers,
)
from pam_ros.model.vision.networks import Networks, TorchNetworks
from pam_ros.model.vision.prompt_tensors import (
    MASK_PROMPT_LOGIT,
    binary_masks,
    click_arrays,
    click_count,
    fed_back,
    in_batches,
    mask_answer,
)
from pam_ros.model.vision.region_crop import CropRequest, crop_request
from pam_ros.records import Prompt

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# What `Segmenter` assumes of a SAM 2 configuration. SAM 2.1's configurations have it.
ASSUMED = {
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "pred_obj_scores": True,
    "soft_no_obj_ptr": False,
    "non_overlap_masks_for_mem_enc": False,
    "memory_temporal_stride_for_eval": 1,
}

Clicks = tuple[Tensor, Tensor]  # (B, K, 2) float32 input pixels, (B, K) int32 labels; a box is two clicks
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SegmentedBatch:
    """What the mask decoder predicts for B regions in one frame, before the masks are gated by presence."""

    masks: Tensor  # (B, 4, 4h, 4w) logits of mask tokens 0..3
    ious: Tensor  # (B, 4)
    presence: Tensor  # (B, 1) logit
    decoder_features: DecoderFeatures


class Segmenter(nn.Module):
    """Masks of prompted and tracked regions, with the features that the Semantic Perceiver reads."""

    pixel_mean: Tensor  # (1, 3, 1, 1)
    pixel_std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        sam2: SAM2Base,
        perceiver_input: PerceiverInput = PerceiverInput.AFTER,
        *,
        crop_small_regions: bool = False,
    ) -> None:
        """Drives `sam2`. Raises CheckpointError for a configuration that is not like SAM 2.1's."""
        super().__init__()
        wrong = [f"{name} must be {value}" for name, value in ASSUMED.items() if getattr(sam2, name) != value]
        if wrong:
            raise CheckpointError(f"this SAM 2 configuration is not supported: {', '.join(wrong)}")
        self.sam2 = sam2
        self.perceiver_input = perceiver_input
        self.crop_small_regions = crop_small_regions
        self.inference: Networks | None = None  # runs in place of PyTorch where no gradients are needed
        self._training = TorchNetworks(sam2)
        self.image_size: int = sam2.image_size
        self.grid_size: int = sam2.sam_image_embedding_size
        self.width: int = sam2.hidden_dim
        mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD).view(1, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the image encoder; the prompt encoder always runs in float32."""
        dtype: torch.dtype = self.sam2.no_mem_embed.dtype
        return dtype

    @property
    def networks(self) -> Networks:
        """What runs SAM 2's networks."""
        return self._training if self.inference is None or torch.is_grad_enabled() else self.inference

    def new_memory(self) -> RegionMemory:
        """An empty memory with SAM 2's spans."""
        sam2 = self.sam2
        return RegionMemory(feature_span=sam2.num_maskmem - 1, pointer_span=sam2.max_obj_ptrs_in_encoder - 1)

    # ---- frames

    def pixels(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 RGB → (1, 3, S, S) normalised; as in PAM, the aspect ratio is not kept."""
        # PIL's own resampling (bicubic): the reference's pixels to the last bit.
        resized = Image.fromarray(image).resize((self.image_size, self.image_size))
        tensor = torch.from_numpy(np.array(resized)).to(self.pixel_mean.device)
        tensor = tensor.permute(2, 0, 1)[None].contiguous().float()  # contiguous: eight times as fast
        return tensor.div_(255).sub_(self.pixel_mean).div_(self.pixel_std).to(self.dtype)

    def encode(self, image: NDArray[np.uint8]) -> FrameFeatures:
        """(H, W, 3) uint8 RGB → features; one pass serves every region of the frame."""
        features = self.encode_pixels(self.pixels(image), (image.shape[0], image.shape[1]))
        return replace(features, image=image) if self.crop_small_regions else features

    def encode_pixels(self, pixels: Tensor, size: tuple[int, int]) -> FrameFeatures:
        """(B, 3, S, S) normalised pixels of frames of `size` (height, width) → features."""
        levels = self.networks.encode(pixels)
        position = self.sam2.image_encoder.neck.position_encoding(levels[-1])
        return FrameFeatures(
            size=size,
            embedding=levels[-1],
            position=position.to(self.dtype),
            high_resolution=tuple(levels[:-1]),
        )

    # ---- regions, each with a memory of its own

    def segment(
        self, features: FrameFeatures, prompts: Sequence[Prompt], memories: Sequence[RegionMemory]
    ) -> list[Observation]:
        """Segments prompted regions and remembers them; the frame becomes a conditioning frame of each.

        A memory that already holds frames is refined: the mask found in its newest frame goes back in as a
        dense prompt beside the clicks (as SAM 2 does). The caller passes the features of that same frame.
        """

        def kind(i: int) -> Hashable:  # what must agree within a batch
            return prompts[i].mask is not None, click_count(prompts[i]), min(memories[i].index, 1)

        def run(chosen: list[int]) -> list[Observation]:
            return self._segment_alike(features, [prompts[i] for i in chosen], [memories[i] for i in chosen])

        new = [memory.is_empty for memory in memories]
        observations = in_batches(range(len(prompts)), kind, run)
        # A correction refers to the mask that was shown, so its crop is prompted by that mask's box.
        crop_prompts = [prompt if first else None for prompt, first in zip(prompts, new, strict=True)]
        return self.segment_crops(observations, crop_prompts)

    def candidates(self, features: FrameFeatures, points_xy: NDArray[np.float32]) -> Candidates:
        """Masks at single points (N, 2), pixels of the frame; nothing is remembered. See `VisionModel`."""
        prompts = [Prompt.from_clicks([point]) for point in points_xy]
        clicks = self._clicks([features.size] * len(prompts), prompts)
        embedding = self._without_memory(features).expand(len(prompts), -1, -1, -1)
        return mask_candidates(self._decode(features, embedding, clicks, None), features.size)

    def track(self, features: FrameFeatures, memories: Sequence[RegionMemory]) -> list[Observation]:
        """Finds remembered regions in the next frame and remembers them there."""
        tokens = [memory_tokens(self.sam2, memory, memory.index + 1) for memory in memories]

        def run(chosen: list[int]) -> list[Observation]:
            group = [memories[i] for i in chosen]
            embedding = self.networks.attend(features, collate([tokens[i] for i in chosen]))
            decoded = self._decode(features, embedding, None, None)
            return self._finish(features, decoded, group, prompted=False)

        return in_batches(range(len(memories)), lambda i: tokens[i].shape_key, run)

    def segment_crops(
        self, observations: Sequence[Observation], prompts: Sequence[Prompt | None] | None = None
    ) -> list[Observation]:
        """Segments small regions once more in crops of their frames, as one batch; leaves others as they are.

        Each crop is prompted by the box of the region's mask, or by the region's prompt if one is given.
        Memory does not change: tracking continues on whole frames. Does nothing without `crop_small_regions`.
        """
        given = [None] * len(observations) if prompts is None else prompts
        crops = {
            i: crop
            for i, (observation, prompt) in enumerate(zip(observations, given, strict=True))
            if (crop := crop_request(observation, prompt)) is not None
        }
        if not crops:
            return list(observations)
        pixels = torch.cat([self.pixels(crop.image) for crop in crops.values()])
        features = self.encode_pixels(pixels, (self.image_size, self.image_size))
        place = {i: number for number, i in enumerate(crops)}

        def run(chosen: list[int]) -> list[Observation]:
            own = of_regions(features, [place[i] for i in chosen])
            return self._segment_in_crops(own, [crops[i] for i in chosen], [observations[i] for i in chosen])

        results = in_batches(list(crops), lambda i: click_count(crops[i].prompt), run)
        cropped = dict(zip(crops, results, strict=True))
        return [cropped.get(i, observation) for i, observation in enumerate(observations)]

    # ---- regions whose memories are one batch (training)

    def step(
        self,
        features: FrameFeatures,
        memory: RegionMemory,
        prompts: Sequence[Clicks] | None = None,
        *,
        remember: bool = True,
    ) -> SegmentedBatch:
        """Segments or tracks B regions that share one batched memory, with gradients.

        Args:
            features: of each region's frame, batch B (see `of_regions`).
            memory: every entry has batch B; `step` writes it.
            prompts: clicks of the B regions in order, in groups of equal numbers of clicks; None tracks.
                If the memory holds a mask of this frame, the clicks refine it.
            remember: False keeps only the mask, for corrections: nothing will be tracked from here.
        """
        if prompts is None:
            tokens = memory_tokens(self.sam2, memory, memory.index + 1)
            parts = [self._decode(features, self.networks.attend(features, tokens), None, None)]
        else:
            parts = self._decode_groups(features, memory, prompts)
        decoded = DecodedMasks(
            masks=torch.cat([part.masks for part in parts]),
            ious=torch.cat([part.ious for part in parts]),
            presence=torch.cat([part.presence for part in parts]),
            mask_tokens=torch.cat([part.mask_tokens for part in parts]),
            image=torch.cat([part.image for part in parts]),
        )
        present = decoded.presence > 0  # (B, 1)
        logits = torch.where(present[..., None, None], decoded.masks[:, :1], NO_OBJ_SCORE)
        memory.mask_logits = logits.detach()
        if remember:
            prompted = prompts is not None
            spatial = self.networks.remember(features.embedding, logits, present, binarise=prompted)
            if memory.is_empty or not prompted:
                memory.index += 1
            entry = MemoryEntry(memory.index, object_pointers(self.sam2, decoded), spatial)
            (memory.add_conditioning if prompted else memory.add_recent)(entry)
        return SegmentedBatch(decoded.masks, decoded.ious, decoded.presence, self._decoder_features(decoded))

    def _decode_groups(
        self, features: FrameFeatures, memory: RegionMemory, prompts: Sequence[Clicks]
    ) -> list[DecodedMasks]:
        if memory.index <= 0:
            embedding = self._without_memory(features)
        else:
            tokens = memory_tokens(self.sam2, memory, memory.index)
            embedding = self.networks.attend(features, tokens)
        previous = None if memory.mask_logits is None else fed_back(memory.mask_logits)
        parts, start = [], 0
        for clicks in prompts:
            group = slice(start, start + len(clicks[0]))
            start = group.stop
            dense = None if previous is None else previous[group]
            parts.append(self._decode(of_regions(features, group), embedding[group], clicks, dense))
        return parts

    # ---- the steps

    def _segment_alike(
        self, features: FrameFeatures, prompts: list[Prompt], memories: list[RegionMemory]
    ) -> list[Observation]:
        """Regions whose prompts have the same number of clicks, as one batch."""
        if prompts[0].mask is not None:
            return self._segment_masks(features, prompts, memories)
        clicks = self._clicks([features.size] * len(prompts), prompts)
        if memories[0].index <= 0:  # new, or still on its first frame: there is no past to attend to
            embedding = self._without_memory(features).expand(len(prompts), -1, -1, -1)
        else:
            parts = [memory_tokens(self.sam2, memory, memory.index) for memory in memories]
            embedding = torch.cat([self.networks.attend(features, part) for part in parts])
        previous = None
        if not memories[0].is_empty:
            previous = fed_back(torch.cat([_known(memory.mask_logits) for memory in memories]))
        decoded = self._decode(features, embedding, clicks, previous)
        return self._finish(features, decoded, memories, prompted=True)

    def _segment_masks(
        self, features: FrameFeatures, prompts: list[Prompt], memories: list[RegionMemory]
    ) -> list[Observation]:
        """A mask prompt is the answer; the decoder only adds pointer and decoder features (as in SAM 2)."""
        given = [_known(prompt.mask) for prompt in prompts]
        masks = torch.from_numpy(np.stack(given)).to(self.pixel_mean.device)[:, None]
        masks = binary_masks(masks, self.image_size)
        embedding = features.embedding.expand(len(prompts), -1, -1, -1)
        dense = self.sam2.mask_downsample(masks.to(self.dtype)).float()
        decoded = self._decode(features, embedding, None, dense)
        logits = mask_answer(masks, decoded.masks.shape[-1]).to(decoded.masks.dtype)
        found = self._finish(features, decoded, memories, prompted=True, answer=logits)
        return [replace(observation, given=mask) for observation, mask in zip(found, given, strict=True)]

    def _segment_in_crops(
        self, features: FrameFeatures, crops: list[CropRequest], observations: list[Observation]
    ) -> list[Observation]:
        """Regions with equally many clicks in encoded crops; one that is not found there stays as it was."""
        clicks = self._clicks([crop.image.shape[:2] for crop in crops], [crop.prompt for crop in crops])
        decoded = self._decode(features, self._without_memory(features), clicks, None)
        found = (decoded.presence[:, 0] > 0) & (decoded.masks[:, 0].flatten(1) > 0).any(1)
        decoder_features, in_crop = self._decoder_features(decoded).split(), found.tolist()
        results = []
        for i, (crop, observation) in enumerate(zip(crops, observations, strict=True)):
            if not in_crop[i]:
                results.append(observation)
                continue
            logits = decoded.masks[i : i + 1, :1].clone()
            region_crop = RegionCrop(crop.box_xyxy, logits, decoder_features[i])
            iou = observation.mask_iou if observation.given is not None else decoded.ious[i, 0]
            results.append(replace(observation, mask_iou=iou, crop=region_crop))
        return results

    def _clicks(self, sizes: Sequence[tuple[int, ...]], prompts: Sequence[Prompt]) -> Clicks:
        """See `click_arrays`."""
        points, labels = click_arrays(self.image_size, sizes, prompts)
        device = self.pixel_mean.device
        return torch.from_numpy(points).to(device), torch.from_numpy(labels).to(device)

    def _decode(
        self,
        features: FrameFeatures,
        embedding: Tensor,  # (B, C, h, w)
        clicks: Clicks | None,
        dense: Tensor | None,  # (B, 1, 4h, 4w) mask logits as a dense prompt
    ) -> DecodedMasks:
        count = embedding.shape[0]
        if clicks is None:  # SAM 2 stands in one "not a point"
            clicks = (
                torch.zeros(count, 1, 2, device=embedding.device),
                torch.full((count, 1), -1, dtype=torch.int32, device=embedding.device),
            )
        encoder = self.sam2.sam_prompt_encoder
        sparse, dense_embedding = encoder(points=clicks, boxes=None, masks=dense)
        decoded = self.networks.decode(
            embedding,
            sparse.to(embedding.dtype),
            dense_embedding.to(embedding.dtype),
            features.high_resolution,
        )
        if self.perceiver_input is not PerceiverInput.AFTER:
            decoded = replace(decoded, image=embedding)
        return decoded

    def _decoder_features(self, decoded: DecodedMasks) -> DecoderFeatures:
        """The image embedding and two mask tokens: the stability pick, then token 0."""
        tokens = decoded.mask_tokens
        if self.perceiver_input is PerceiverInput.BEFORE:  # the decoder's own, the same for every region
            tokens = self.sam2.sam_mask_decoder.mask_tokens.weight.expand_as(tokens)
        tokens = torch.stack([stability_pick(decoded, tokens), tokens[:, 0]], dim=1)
        return DecoderFeatures(image=decoded.image, tokens=tokens)

    def _finish(
        self,
        features: FrameFeatures,
        decoded: DecodedMasks,
        memories: Sequence[RegionMemory],
        *,
        prompted: bool,
        answer: Tensor | None = None,  # (B, 1, 4h, 4w) mask logits that replace the decoder's
    ) -> list[Observation]:
        """Gates masks by presence, writes the memories, and splits the batch into observations."""
        decoder_features = self._decoder_features(decoded).split()
        pointers = object_pointers(self.sam2, decoded)
        logits, ious, presence = decoded.masks[:, :1], decoded.ious[:, 0], decoded.presence
        if answer is not None:
            logits, ious = answer, torch.ones_like(ious)
            presence = torch.full_like(presence, MASK_PROMPT_LOGIT)
        present = presence > 0  # (B, 1)
        logits = torch.where(present[..., None, None], logits, NO_OBJ_SCORE)
        embedding = features.embedding.expand(len(logits), -1, -1, -1)
        spatial = self.networks.remember(embedding, logits, present, binarise=prompted)
        observations = []
        for i, memory in enumerate(memories):
            # Copies: a slice would keep the whole batch's memory alive when the other regions are gone.
            one = slice(i, i + 1)
            memory.mask_logits = logits[one].clone()
            if memory.is_empty or not prompted:
                memory.index += 1
            entry = MemoryEntry(memory.index, pointers[one].clone(), spatial[one].clone())
            (memory.add_conditioning if prompted else memory.add_recent)(entry)
            observations.append(
                Observation(
                    size=features.size,
                    mask_logits=memory.mask_logits,
                    mask_iou=ious[i],
                    presence_logit=presence[i, 0],
                    decoder_features=decoder_features[i],
                    image=features.image,
                )
            )
        return observations

    def _without_memory(self, features: FrameFeatures) -> Tensor:
        """The image embedding of regions that have no past, (N, C, h, w)."""
        embedding: Tensor = features.embedding + self.sam2.no_mem_embed.view(1, -1, 1, 1)
        return embedding


def _known(value: T | None) -> T:
    assert value is not None
    return value
