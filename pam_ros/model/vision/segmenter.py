"""SAM 2 (package sam2) with PAM's flags: encode a frame, segment prompts, track with memory, decoder_features features.

The parts of `SAM2Base` are driven here frame by frame, so that live frames, several regions
on one encoder pass and bounded memory need no video in advance. What is computed equals
SAM 2's video predictor with PAM's flags (see `docs/reference.md`).

Letters: B regions, C model width, M memory width, S input size, h = w = S / 16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pam_ros.errors import CheckpointError
from pam_ros.model.config import PerceiverInput
from pam_ros.model.vision.memory_bank import MemoryEntry, MemoryTokens, RegionMemory, collate, memory_tokens
from pam_ros.model.vision.region_crop import crop_around
from pam_ros.records import Prompt, crop_mask

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
STABILITY_DELTA = 0.05  # PAM's flags for the stability pick
STABILITY_THRESHOLD = 0.98
MASK_PROMPT_LOGIT = 10.0  # SAM 2 takes a mask prompt as logits of ±10
SMALLEST_CROP_PX = 16  # pixels a side: there is nothing more to see in less
REFINE_LOGIT_CLAMP = 32.0  # SAM 2 clamps the logits it feeds back when clicks refine a mask

# What the flow below takes for granted of a SAM 2 configuration; SAM 2.1's have it.
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

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """One encoded frame."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    embedding: Tensor  # (1, C, h, w)
    position: Tensor  # (1, C, h, w) sine position code
    high_resolution: tuple[Tensor, ...]  # (1, C/8, 4h, 4w), (1, C/4, 2h, 2w)
    image: NDArray[np.uint8] | None = None  # (H, W, 3) RGB, where regions may be looked at closer


def picked(features: FrameFeatures, rows: Tensor | slice | list[int]) -> FrameFeatures:
    """Features of N frames → of B regions; `rows` says on which frame each lies."""
    return FrameFeatures(
        size=features.size,
        embedding=features.embedding[rows],
        position=features.position[rows],
        high_resolution=tuple(level[rows] for level in features.high_resolution),
    )


@dataclass(frozen=True, slots=True)
class DecoderFeatures:
    """What the Semantic Perceiver reads, from inside the mask decoder; where, says `PerceiverInput`."""

    image: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, 2, C): the stability pick, then mask token 0


@dataclass(frozen=True, slots=True)
class RegionCrop:
    """What a closer look at a region shows, see `closer`."""

    box_xyxy: tuple[int, int, int, int]  # the part of the frame that was encoded again, pixels
    mask_logits: Tensor  # (1, 1, 4h, 4w) over the cut
    decoder_features: DecoderFeatures


@dataclass(frozen=True)
class Observation:
    """One region in one frame. Device tensors; `mask` and the scores copy to the host when first read."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    mask_logits: Tensor  # (1, 1, 4h, 4w) over the frame; far below 0 everywhere when the object is absent
    mask_iou: Tensor  # () the model's estimate
    presence_logit: Tensor  # ()
    decoder_features: DecoderFeatures
    given: NDArray[np.bool_] | None = None  # (H, W) a mask prompt: the answer as it came, not resized twice
    image: NDArray[np.uint8] | None = None  # the frame, see `FrameFeatures.image`
    crop: RegionCrop | None = None

    def mask_logits_at_frame_size(self) -> Tensor:
        """(H, W) float32 mask logits at the frame's size: those of the closer look where there is one."""
        if self.crop is None:
            return _resized_logits(self.mask_logits, self.size)
        x1, y1, x2, y2 = self.crop.box_xyxy
        logits = self.mask_logits.new_full(self.size, NO_OBJ_SCORE, dtype=torch.float32)
        logits[y1:y2, x1:x2] = _resized_logits(self.crop.mask_logits, (y2 - y1, x2 - x1))
        return logits

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool of the frame's size."""
        if self.given is not None:
            return self.given
        mask: NDArray[np.bool_] = (self.mask_logits_at_frame_size() > 0).cpu().numpy()
        return mask

    @cached_property
    def mask_score(self) -> float:
        """The model's estimate of the mask's IoU, 0..1."""
        return float(self.mask_iou.clamp(0, 1))

    @cached_property
    def presence_score(self) -> float:
        """Probability that the object is in view, 0..1."""
        return float(self.presence_logit.float().sigmoid())


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Everything the mask decoder says about B regions."""

    masks: Tensor  # (B, 4, 4h, 4w) logits of mask tokens 0..3
    ious: Tensor  # (B, 4)
    presence: Tensor  # (B, 1) logit
    mask_tokens: Tensor  # (B, 4, C)
    image: Tensor  # (B, C, h, w) image embedding after the two-way transformer, or as it entered: `DecoderFeatures.image`


class Segmenter(nn.Module):
    """Masks of prompted and tracked regions, with the features the Semantic Perceiver reads."""

    pixel_mean: Tensor  # (1, 3, 1, 1)
    pixel_std: Tensor  # (1, 3, 1, 1)

    def __init__(
        self,
        sam2: SAM2Base,
        perceiver_input: PerceiverInput = PerceiverInput.AFTER,
        *,
        crop_small_regions: bool = False,
    ) -> None:
        """Drives `sam2`. Raises CheckpointError for a configuration that SAM 2.1's flow does not fit."""
        super().__init__()
        wrong = [f"{name} must be {value}" for name, value in ASSUMED.items() if getattr(sam2, name) != value]
        if wrong:
            raise CheckpointError(f"this SAM 2 configuration is not supported: {', '.join(wrong)}")
        self.sam2 = sam2
        self.perceiver_input = perceiver_input
        self.crop_small_regions = crop_small_regions
        self.image_size: int = sam2.image_size
        self.grid_size: int = sam2.sam_image_embedding_size
        self.width: int = sam2.hidden_dim
        kept: list[Tensor] = []
        self._after_transformer = kept

        # The decoder_features of the reference sits between two lines of the decoder; a hook reaches it in the stock
        # package. It holds the list, not self: a cycle would keep dropped weights until the next collection.
        def keep_image_tokens(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            kept[:] = [output[1]]

        sam2.sam_mask_decoder.transformer.register_forward_hook(keep_image_tokens)
        mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD).view(1, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the image encoder; the prompt encoder always runs in float32."""
        dtype: torch.dtype = self.sam2.no_mem_embed.dtype
        return dtype

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
        tensor = tensor.permute(2, 0, 1)[None].float() / 255
        return ((tensor - self.pixel_mean) / self.pixel_std).to(self.dtype)

    def encode(self, image: NDArray[np.uint8]) -> FrameFeatures:
        """(H, W, 3) uint8 RGB → features; one pass serves every region of the frame."""
        features = self.encode_pixels(self.pixels(image), (image.shape[0], image.shape[1]))
        return replace(features, image=image) if self.crop_small_regions else features

    def encode_pixels(self, pixels: Tensor, size: tuple[int, int]) -> FrameFeatures:
        """(1, 3, S, S) normalised pixels of a frame of `size` (height, width) → features."""
        out = self.sam2.forward_image(pixels)
        # The neck adds its levels in float32 and leaves them so.
        levels = [level.to(self.dtype) for level in out["backbone_fpn"][-self.sam2.num_feature_levels :]]
        return FrameFeatures(
            size=size,
            embedding=levels[-1],
            position=out["vision_pos_enc"][-1].to(self.dtype),
            high_resolution=tuple(levels[:-1]),
        )

    # ---- regions

    def segment(
        self, features: FrameFeatures, prompts: Sequence[Prompt], memories: Sequence[RegionMemory]
    ) -> list[Observation]:
        """Segments prompted regions and remembers them; the frame becomes a conditioning frame of each.

        A memory that already holds frames is refined: the mask found in its newest frame goes back in as a
        dense prompt beside the clicks (as SAM 2 does). The caller passes the features of that same frame.
        """

        def kind(i: int) -> Hashable:  # what must agree within a batch
            prompt = prompts[i]
            clicks = len(prompt.points) + (2 if prompt.box is not None else 0)
            return prompt.mask is not None, clicks, min(memories[i].index, 1)

        def run(chosen: list[int]) -> list[Observation]:
            return self._segment_alike(features, [prompts[i] for i in chosen], [memories[i] for i in chosen])

        fresh = [memory.is_empty for memory in memories]
        found = _in_batches(range(len(prompts)), kind, run)
        # A correction means the mask that was shown, so from nearer it is asked for by that mask's box.
        wanted = [prompt if new else None for prompt, new in zip(prompts, fresh, strict=True)]
        return self.segment_crops(found, wanted)

    def track(self, features: FrameFeatures, memories: Sequence[RegionMemory]) -> list[Observation]:
        """Finds remembered regions in the next frame and remembers them there."""
        tokens = [memory_tokens(self.sam2, memory, memory.index + 1) for memory in memories]

        def run(chosen: list[int]) -> list[Observation]:
            group = [memories[i] for i in chosen]
            conditioned = self._attend_memory(features, collate([tokens[i] for i in chosen]))
            decoded = self._decode_masks(features, conditioned, None, None)
            return self._finish(features, decoded, group, prompted=False)

        return _in_batches(range(len(memories)), lambda i: tokens[i].shape_key, run)

    def segment_crops(
        self, observations: Sequence[Observation], prompts: Sequence[Prompt | None] | None = None
    ) -> list[Observation]:
        """Small regions are segmented again in cuts of their frames, as one batch; others stay as they are.

        By the box of the mask found, or the prompt where one is given. Nothing is remembered of it: tracking
        goes on from the whole frame. Without `crop_small_regions` nothing happens.
        """
        asked = [None] * len(observations) if prompts is None else prompts
        cuts = {
            i: cut
            for i, (observation, prompt) in enumerate(zip(observations, asked, strict=True))
            if (cut := _crop_request(observation, prompt)) is not None
        }
        if not cuts:
            return list(observations)
        pixels = torch.cat([self.pixels(cut.image) for cut in cuts.values()])
        features = self.encode_pixels(pixels, (self.image_size, self.image_size))
        backbone = self.without_memory(features)
        rows = {i: row for row, i in enumerate(cuts)}

        def run(chosen: list[int]) -> list[Observation]:
            where = [rows[i] for i in chosen]
            clicks = self._clicks([cuts[i].image.shape[:2] for i in chosen], [cuts[i].prompt for i in chosen])
            decoded = self._decode_masks(picked(features, where), backbone[where], clicks, None)
            found = (decoded.presence[:, 0] > 0) & (decoded.masks[:, 0].flatten(1) > 0).any(1)
            decoder_features, seen = self._decoder_features(decoded), found.tolist()
            answers = []
            for row, i in enumerate(chosen):
                if not seen[row]:
                    answers.append(observations[i])
                    continue
                one = slice(row, row + 1)
                own = DecoderFeatures(decoder_features.image[one], decoder_features.tokens[one])
                crop = RegionCrop(cuts[i].xyxy, decoded.masks[one, :1].clone(), own)
                given = observations[i].given is not None
                iou = observations[i].mask_iou if given else decoded.ious[row, 0]
                answers.append(replace(observations[i], mask_iou=iou, crop=crop))
            return answers

        looked = _in_batches(list(cuts), lambda i: cuts[i].clicks, run)
        near = dict(zip(cuts, looked, strict=True))
        return [near.get(i, observation) for i, observation in enumerate(observations)]

    def _segment_alike(
        self, features: FrameFeatures, prompts: list[Prompt], memories: list[RegionMemory]
    ) -> list[Observation]:
        """Regions whose prompts have the same number of clicks, as one batch."""
        if prompts[0].mask is not None:
            return self._segment_masks(features, prompts, memories)
        clicks = self._clicks([features.size] * len(prompts), prompts)
        if memories[0].index <= 0:  # new, or still on its first frame: there is no past to attend to
            backbone = self.without_memory(features).expand(len(prompts), -1, -1, -1)
        else:
            parts = [memory_tokens(self.sam2, memory, memory.index) for memory in memories]
            backbone = torch.cat([self._attend_memory(features, part) for part in parts])
        previous = None
        if not memories[0].is_empty:
            previous = torch.cat([_known(memory.mask_logits) for memory in memories])
            previous = previous.float().clamp(-REFINE_LOGIT_CLAMP, REFINE_LOGIT_CLAMP)
        decoded = self._decode_masks(features, backbone, clicks, previous)
        return self._finish(features, decoded, memories, prompted=True)

    def _segment_masks(
        self, features: FrameFeatures, prompts: list[Prompt], memories: list[RegionMemory]
    ) -> list[Observation]:
        """A mask prompt is the answer; the decoder runs for the pointer and the decoder_features only (as in SAM 2)."""
        given = [_known(prompt.mask) for prompt in prompts]
        device, size = self.pixel_mean.device, (self.image_size, self.image_size)
        masks = torch.tensor(np.stack(given), dtype=torch.float32, device=device)[:, None]
        masks = interpolate(masks, size=size, mode="bilinear", align_corners=False, antialias=True)
        # SAM 2 cuts at 0.5 and loses what is thinner than its pixels; the fullest ones stay here.
        masks = (masks >= masks.amax((2, 3), keepdim=True).clamp(max=0.5)).float()
        backbone = features.embedding.expand(len(prompts), -1, -1, -1)
        dense = self.sam2.mask_downsample(masks.to(self.dtype)).float()
        decoded = self._decode_masks(features, backbone, None, dense)
        logits = interpolate(
            (2 * masks - 1) * MASK_PROMPT_LOGIT,
            size=decoded.masks.shape[-2:],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        ).to(decoded.masks.dtype)
        found = self._finish(features, decoded, memories, prompted=True, answer=logits)
        return [replace(observation, given=mask) for observation, mask in zip(found, given, strict=True)]

    def _clicks(self, sizes: Sequence[tuple[int, ...]], prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Prompts of K clicks each → (B, K, 2) float32 input pixels and (B, K) int32; a box is two clicks.

        `sizes`: (height, width) of the picture that each is about, pixels.
        """
        points, labels = [], []
        for (height, width), prompt in zip(sizes, prompts, strict=True):
            scale = np.array([self.image_size / width, self.image_size / height], np.float32)
            corners = np.zeros((0, 2), np.float32) if prompt.box is None else prompt.box.reshape(2, 2)
            points.append(np.concatenate([corners, prompt.points]) * scale)
            labels.append(np.concatenate([np.array([2, 3], np.int32)[: len(corners)], prompt.labels]))
        device = self.pixel_mean.device
        return torch.from_numpy(np.stack(points)).to(device), torch.from_numpy(np.stack(labels)).to(device)

    def _decode_masks(
        self,
        features: FrameFeatures,
        backbone: Tensor,  # (B, C, h, w)
        clicks: tuple[Tensor, Tensor] | None,
        dense: Tensor | None,  # (B, 1, 4h, 4w) mask logits as a dense prompt
    ) -> _Decoded:
        count = backbone.shape[0]
        if clicks is None:  # SAM 2 stands in one "not a point"
            clicks = (
                torch.zeros(count, 1, 2, device=backbone.device),
                torch.full((count, 1), -1, dtype=torch.int32, device=backbone.device),
            )
        prompt_encoder, decoder = self.sam2.sam_prompt_encoder, self.sam2.sam_mask_decoder
        sparse, dense_embedding = prompt_encoder(points=clicks, boxes=None, masks=dense)
        masks, ious, mask_tokens, presence = decoder.predict_masks(
            image_embeddings=backbone,
            image_pe=prompt_encoder.get_dense_pe().to(backbone.dtype),
            sparse_prompt_embeddings=sparse.to(backbone.dtype),
            dense_prompt_embeddings=dense_embedding.to(backbone.dtype),
            repeat_image=False,
            high_res_features=[level.expand(count, -1, -1, -1) for level in features.high_resolution],
        )
        image = self._after_transformer.pop().transpose(1, 2).reshape(backbone.shape)  # from (B, h*w, C)
        if self.perceiver_input is not PerceiverInput.AFTER:
            image = backbone
        return _Decoded(masks, ious, presence, mask_tokens, image)

    def _decoder_features(self, decoded: _Decoded) -> DecoderFeatures:
        """Picks mask tokens: token 0 if its mask is stable, else the best of 1–3; then token 0."""
        first = decoded.masks[:, 0].flatten(1)  # (B, 4h*4w)
        inner = (first > STABILITY_DELTA).sum(1).float()
        outer = (first > -STABILITY_DELTA).sum(1).float()
        stable = torch.where(outer > 0, inner / outer, 1.0) >= STABILITY_THRESHOLD
        best = torch.where(stable, 0, decoded.ious[:, 1:].argmax(1) + 1)  # (B,)
        tokens = decoded.mask_tokens
        if self.perceiver_input is PerceiverInput.BEFORE:  # the decoder's own, the same for every region
            tokens = self.sam2.sam_mask_decoder.mask_tokens.weight.expand_as(tokens)
        pick = tokens[torch.arange(len(tokens), device=tokens.device), best]
        return DecoderFeatures(image=decoded.image, tokens=torch.stack([pick, tokens[:, 0]], dim=1))

    def _finish(
        self,
        features: FrameFeatures,
        decoded: _Decoded,
        memories: Sequence[RegionMemory],
        *,
        prompted: bool,
        answer: Tensor | None = None,  # (B, 1, 4h, 4w) mask logits that stand instead of the decoder's
    ) -> list[Observation]:
        """Gates masks by presence, encodes the memory, and cuts the batch into observations."""
        decoder_features, pointers = self._decoder_features(decoded), self._pointers(decoded)
        logits, ious, presence = decoded.masks[:, :1], decoded.ious[:, 0], decoded.presence
        if answer is not None:
            logits, ious = answer, torch.ones_like(ious)
            presence = torch.full_like(presence, MASK_PROMPT_LOGIT)
        present = presence > 0  # (B, 1)
        logits = torch.where(present[..., None, None], logits, NO_OBJ_SCORE)
        memory_features = self._encode_memory(features, logits, present, prompted)
        observations = []
        for i, memory in enumerate(memories):
            # Copies: a slice would keep the whole batch's memory alive when the other regions are gone.
            memory.mask_logits = logits[i : i + 1].clone()
            if memory.is_empty or not prompted:
                memory.index += 1
            entry = MemoryEntry(memory.index, pointers[i : i + 1].clone(), memory_features[i : i + 1].clone())
            (memory.add_conditioning if prompted else memory.add_recent)(entry)
            observations.append(
                Observation(
                    size=features.size,
                    mask_logits=memory.mask_logits,
                    mask_iou=ious[i],
                    presence_logit=presence[i, 0],
                    decoder_features=DecoderFeatures(
                        decoder_features.image[i : i + 1], decoder_features.tokens[i : i + 1]
                    ),
                    image=features.image,
                )
            )
        return observations

    # ---- memory

    def _pointers(self, decoded: _Decoded) -> Tensor:
        """(B, C) object pointers from mask token 0; the "no object" pointer where the object is absent."""
        pointers: Tensor = self.sam2.obj_ptr_proj(decoded.mask_tokens[:, 0])
        nothing: Tensor = self.sam2.no_obj_ptr
        present = decoded.presence > 0
        if self.sam2.fixed_no_obj_ptr:
            pointers = pointers * present
        return pointers + nothing * ~present

    def _encode_memory(
        self, features: FrameFeatures, logits: Tensor, present: Tensor, prompted: bool
    ) -> Tensor:
        """Mask logits (B, 1, 4h, 4w) on a frame → (B, M, h, w) spatial memory."""
        sam2 = self.sam2
        size = (self.image_size, self.image_size)
        masks = interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        # PAM's flag: masks of prompted frames enter memory binarised.
        masks = (masks > 0).float() if prompted else masks.sigmoid()
        masks = masks * sam2.sigmoid_scale_for_mem_enc + sam2.sigmoid_bias_for_mem_enc
        embedding = features.embedding.expand(logits.shape[0], -1, -1, -1)
        out = sam2.memory_encoder(embedding, masks.to(embedding.dtype), skip_mask_sigmoid=True)
        encoded: Tensor = out["vision_features"]
        if sam2.no_obj_embed_spatial is not None:
            absent = (~present).to(encoded.dtype)[..., None, None]
            encoded = encoded + absent * sam2.no_obj_embed_spatial[..., None, None]
        return encoded

    def without_memory(self, features: FrameFeatures) -> Tensor:
        """The image embedding of regions that have no past, (N, C, h, w)."""
        embedding: Tensor = features.embedding + self.sam2.no_mem_embed.view(1, -1, 1, 1)
        return embedding

    def _attend_memory(self, features: FrameFeatures, memory: MemoryTokens) -> Tensor:
        """Memory attention for B regions → (B, C, h, w)."""
        count = memory.tokens.shape[1]
        current = features.embedding.flatten(2).permute(2, 0, 1).expand(-1, count, -1)  # (h*w, B, C)
        position = features.position.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
        fused: Tensor = self.sam2.memory_attention(
            curr=[current],
            curr_pos=[position],
            memory=memory.tokens,
            memory_pos=memory.positions,
            num_obj_ptr_tokens=memory.pointer_count,
        )
        return fused.permute(1, 2, 0).reshape(count, *features.embedding.shape[1:])


@dataclass(frozen=True, slots=True)
class _CropRequest:
    """A part of a frame, and what is asked for in it."""

    xyxy: tuple[int, int, int, int]  # pixels of the frame
    image: NDArray[np.uint8]
    prompt: Prompt  # in pixels of the cut

    @property
    def clicks(self) -> int:
        """How many, the corners of a box with them."""
        return len(self.prompt.points) + (2 if self.prompt.box is not None else 0)


def _crop_request(observation: Observation, prompt: Prompt | None) -> _CropRequest | None:
    """The closer look at a region; None where it is large, absent, was had, or the frame was not kept."""
    image = observation.image
    if image is None or observation.crop is not None:
        return None
    height, width = observation.size
    box = crop_mask(observation.mask)[0]
    x1, y1, x2, y2 = (float(side) for side in box / np.array([width, height] * 2))
    shares = crop_around((x1, y1, x2, y2))
    if shares is None:
        return None
    left, top, right, bottom = (
        round(share * length) for share, length in zip(shares, (width, height) * 2, strict=True)
    )
    if min(right - left, bottom - top) < SMALLEST_CROP_PX:
        return None
    cut = np.ascontiguousarray(image[top:bottom, left:right])
    asked = _within(prompt, (left, top, right, bottom)) if prompt is not None else None
    corner = np.array([left, top] * 2, np.float32)
    return _CropRequest((left, top, right, bottom), cut, asked or Prompt(box=box - corner))


def _within(prompt: Prompt, box_xyxy: tuple[int, int, int, int]) -> Prompt | None:
    """A prompt in pixels of a cut, without what lies outside; None for a mask or where nothing is left."""
    left, top, right, bottom = box_xyxy
    limits = np.array([right - left, bottom - top] * 2, np.float32)
    points = prompt.points - np.array([left, top], np.float32)
    inside = ((points >= 0) & (points < limits[:2])).all(1)
    box = None
    if prompt.box is not None:
        box = np.clip(prompt.box - np.array([left, top] * 2, np.float32), 0, limits)
    if prompt.mask is not None or (box is not None and (box[:2] >= box[2:]).any()):
        return None
    if box is None and not (prompt.labels[inside] == 1).any():
        return None
    return Prompt(points=points[inside], labels=prompt.labels[inside], box=box)


def _resized_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0, 0]


def _in_batches(
    indices: Sequence[int], key: Callable[[int], Hashable], run: Callable[[list[int]], list[T]]
) -> list[T]:
    """Runs items of equal key as one batch and puts the results back in order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i in indices:
        groups[key(i)].append(i)
    results: dict[int, T] = {}
    for group in groups.values():
        results.update(zip(group, run(group), strict=True))
    return [results[i] for i in indices]


def _known(value: T | None) -> T:
    assert value is not None
    return value
