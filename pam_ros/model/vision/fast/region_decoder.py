"""One batch of regions on the device: memory attention, mask decoding, memory encoding.

Letters: B regions, C model width, M memory width, N = h·w grid cells (stride 16), S spatial slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from pam_ros.model.vision.fast.memory_slots import BankPlan, SlotBank
from pam_ros.model.vision.fast.sam2_ops import BatchedMemory, RotaryCode, attend_memory
from pam_ros.model.vision.mask_decoder import decode_masks, stability_pick
from pam_ros.model.vision.memory_bank import encode_memory, object_pointers
from pam_ros.model.vision.prompt_tensors import MASK_PROMPT_LOGIT

ATTENTION_BATCH = 3  # regions that attend to their memories at once
MAX_POINTER_AGE = 2**16  # frames; a pointer that is older keeps this age (36 minutes at 30 frames a second)


class FrameTensors(NamedTuple):
    """Features of one frame."""

    embedding: Tensor  # (1, C, h, w)
    stride_4: Tensor  # (1, C/8, 4h, 4w)
    stride_8: Tensor  # (1, C/4, 2h, 2w)


class RegionDecoder:
    """SAM 2's flow for B regions at once, at fixed shapes; reads and writes a memory bank."""

    def __init__(self, sam2: SAM2Base, bank: SlotBank) -> None:
        self.sam2, self.bank = sam2, bank
        weight = sam2.no_mem_embed
        self.dtype, self.device = weight.dtype, weight.device
        self.side: int = sam2.sam_image_embedding_size
        self.pieces: int = sam2.hidden_dim // sam2.mem_dim  # tokens that a pointer enters as
        self.constants = Constants.of(sam2, bank.pointer_span, self.dtype)
        shape = (bank.scratch + 1, 1, 4 * self.side, 4 * self.side)
        # Mask logits of each region's newest frame.
        self.logits = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._code = RotaryCode(sam2.memory_attention.layers[0].self_attn, self.side, self.device)

    def without_memory(self, embedding: Tensor) -> Tensor:
        """The image embedding (1, C, h, w) of regions that have no past."""
        out: Tensor = embedding + self.sam2.no_mem_embed.view(1, -1, 1, 1)
        return out

    def attend(self, embedding: Tensor, plan: Tensor, batch: int, spatial: int) -> Tensor:
        """Memory attention of B regions by a plan (see `plan_numbers`) → (B, C, h, w)."""
        pointers = self.bank.max_pointers
        sizes = [batch * spatial] * 2 + [batch * pointers] * 2 + [batch] * 2
        slots, ages, given, given_ages, firsts, lengths = (
            part.view(batch, -1) for part in torch.split(plan, sizes)
        )
        current = embedding.flatten(2).transpose(1, 2)
        parts = []
        for start in range(0, batch, ATTENTION_BATCH):  # a few at a time: as fast, and memory for a few
            few = slice(start, min(start + ATTENTION_BATCH, batch))
            tokens, positions = self._memory_tokens(slots[few], ages[few], given[few], given_ages[few])
            count, length, _ = tokens.shape
            steps = torch.arange(0, count * length, length, dtype=torch.int32, device=self.device)
            memory = BatchedMemory(
                tokens,
                positions,
                pointers * self.pieces,
                firsts[few, 0] + steps,
                lengths[few, 0].contiguous(),
            )
            frame = current.expand(count, -1, -1)
            position = self.constants.position.expand(count, -1, -1)
            parts.append(attend_memory(self.sam2.memory_attention, self._code, frame, position, memory))
        return torch.cat(parts).transpose(1, 2).reshape(batch, -1, self.side, self.side)

    def _memory_tokens(
        self, slots: Tensor, ages: Tensor, pointers: Tensor, pointer_ages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slots and ages, each (B, …) int32 → tokens and their position codes (B, L, M)."""
        bank, constants = self.bank, self.constants
        batch, width = len(slots), bank.features.shape[2]
        cells = bank.features.index_select(0, slots.flatten()).view(batch, -1, width)
        # Age 0 means prompted and has the last code.
        age_codes = self.sam2.maskmem_tpos_enc[:, 0, 0].roll(1, 0).index_select(0, ages.flatten())
        cell_codes = (constants.cell_position[None] + age_codes[:, None]).view(cells.shape)
        given = bank.pointers.index_select(0, pointers.flatten()).view(batch, -1, width)
        codes = constants.pointer_codes.index_select(0, pointer_ages.flatten()).view(batch, -1, 1, width)
        codes = codes.expand(-1, -1, self.pieces, -1).flatten(1, 2)
        return torch.cat([given, cells], dim=1), torch.cat([codes, cell_codes], dim=1)

    def finish(
        self,
        frame: FrameTensors,
        backbone: Tensor,  # (B, C, h, w)
        sparse: Tensor,  # (B, K, C) prompt embeddings
        dense: Tensor,  # (B, C, h, w)
        written: Tensor,  # (3, B) slots of region, features and pointer that this frame is written to
        *,
        prompted: bool,
        answer: Tensor | None = None,  # (B, 1, 4h, 4w) mask logits that replace the decoder's
    ) -> tuple[Tensor, ...]:
        """Decodes masks, gates them by presence, writes the memory.

        Returns mask logits (B, 1, 4h, 4w), estimated IoUs (B), presence logits (B), and the decoder features:
        image (B, C, h, w), tokens (B, 2, C).
        """
        kind = backbone.dtype
        decoded = decode_masks(
            self.sam2.sam_mask_decoder,
            backbone,
            self.constants.image_code,
            sparse.to(kind),
            dense.to(kind),
            (frame.stride_4, frame.stride_8),
        )
        logits, ious, presence = decoded.masks[:, :1], decoded.ious[:, 0], decoded.presence
        pointers = object_pointers(self.sam2, decoded)
        if answer is not None:
            logits, ious = answer.to(kind), torch.ones_like(ious)
            presence = torch.full_like(presence, MASK_PROMPT_LOGIT)
        present = presence > 0  # (B, 1)
        logits = torch.where(present[..., None, None], logits, NO_OBJ_SCORE)
        features = encode_memory(self.sam2, frame.embedding, logits, present, binarise=prompted)
        regions, feature_slots, pointer_slots = written.long()
        self.bank.features.index_copy_(0, feature_slots, features.flatten(2).transpose(1, 2))
        self.bank.pointers.index_copy_(0, pointer_slots, pointers)
        self.logits.index_copy_(0, regions, logits)
        tokens = torch.stack([stability_pick(decoded, decoded.mask_tokens), decoded.mask_tokens[:, 0]], dim=1)
        return logits, ious, presence[:, 0], decoded.image, tokens


@dataclass(frozen=True, slots=True)
class Constants:
    """Tensors that are the same for every frame."""

    position: Tensor  # (1, N, C) sine code of the grid
    cell_position: Tensor  # (N, M) sine code of memory features
    pointer_codes: Tensor  # (ages, M) temporal code of object pointers by their age in frames
    image_code: Tensor  # (1, C, h, w) the prompt encoder's code of the grid
    no_click: Tensor  # (1, K, C) stands in for clicks
    no_mask: Tensor  # (1, C, 1, 1) stands in for a mask prompt

    @classmethod
    @torch.inference_mode()
    def of(cls, sam2: SAM2Base, pointer_span: int, dtype: torch.dtype) -> Constants:
        """Computed once from the weights."""
        device, side = sam2.no_mem_embed.device, sam2.sam_image_embedding_size
        grid = torch.zeros(1, 1, side, side, device=device)
        position = sam2.image_encoder.neck.position_encoding(grid).to(dtype)
        cell = sam2.memory_encoder.position_encoding(grid).to(dtype)
        width = sam2.hidden_dim if sam2.proj_tpos_enc_in_obj_ptrs else sam2.mem_dim
        ages = torch.arange(MAX_POINTER_AGE + 1, device=device)
        codes = get_1d_sine_pe(ages / pointer_span, dim=width).to(dtype)
        clicks = torch.zeros(1, 1, 2, device=device), torch.full((1, 1), -1, dtype=torch.int32, device=device)
        sparse, _ = sam2.sam_prompt_encoder(points=clicks, boxes=None, masks=None)
        return cls(
            position=position.flatten(2).transpose(1, 2),
            cell_position=cell.flatten(2)[0].T.contiguous(),
            pointer_codes=sam2.obj_ptr_tpos_proj(codes),
            image_code=sam2.sam_prompt_encoder.get_dense_pe().to(dtype),
            no_click=sparse.to(dtype),
            no_mask=sam2.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).to(dtype),
        )


def plan_numbers(plan: BankPlan, pieces: int, cells: int) -> NDArray[np.int32]:
    """A plan as flat int32: slots, ages, pointers, their ages, first valid tokens and their counts.

    `pieces`: tokens that a pointer enters as; `cells`: tokens of a spatial slot.
    """
    firsts = (plan.pointers.shape[1] - plan.pointer_counts) * pieces
    lengths = plan.pointer_counts * pieces + plan.spatial_counts * cells
    ages = plan.pointer_ages.clip(max=MAX_POINTER_AGE)
    parts = plan.spatial, plan.spatial_ages, plan.pointers, ages, firsts, lengths
    return np.concatenate([np.asarray(part, np.int32).ravel() for part in parts])
