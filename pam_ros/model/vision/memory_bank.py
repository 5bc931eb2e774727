"""SAM 2's memory bank of one region: bounded; how it is read by memory attention, and written.

Letters: B regions, C model width, M memory width, h × w the stride-16 grid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor
from torch.nn.functional import interpolate

from pam_ros.model.vision.features import FrameFeatures
from pam_ros.model.vision.mask_decoder import DecodedMasks

# Prompted frames kept: the first (what the object was) and the latest corrections.
MAX_CONDITIONING = 4


@dataclass(slots=True)
class MemoryEntry:
    """What is remembered of one frame."""

    index: int  # frames since the region's first
    pointer: Tensor  # (1, C) object pointer
    features: Tensor | None  # (1, M, h, w); None once too old to be attended to


@dataclass(slots=True)
class RegionMemory:
    """Empty for a new region; `Segmenter` writes it.

    `recent` holds the frames that were tracked, newest last; `conditioning` those that were
    prompted. Both are bounded, so a region costs the same after a minute and after a day.
    """

    feature_span: int  # how many frames back spatial features are attended to (SAM 2: 6)
    pointer_span: int  # how many frames back object pointers are (SAM 2: 15)
    index: int = -1  # of the newest frame
    conditioning: list[MemoryEntry] = field(default_factory=list)
    recent: deque[MemoryEntry] = field(default_factory=deque)
    mask_logits: Tensor | None = None  # (1, 1, 4h, 4w) of the newest frame, for refining clicks

    @property
    def is_empty(self) -> bool:
        """True before the first prompt."""
        return not self.conditioning

    def add_conditioning(self, entry: MemoryEntry) -> None:
        """Remembers a prompted frame; a tracked result of the same frame gives way to it."""
        self.recent = deque(kept for kept in self.recent if kept.index != entry.index)
        self.conditioning = [kept for kept in self.conditioning if kept.index != entry.index]
        self.conditioning.append(entry)
        if len(self.conditioning) > MAX_CONDITIONING:
            del self.conditioning[1]  # keep the first: it is what the user pointed at

    def add_recent(self, entry: MemoryEntry) -> None:
        """Remembers a tracked frame and lets the oldest go.

        Keeps one frame more than the next frame needs, because a correction of `entry` looks back as far.
        """
        self.recent.append(entry)
        while self.recent[0].index < entry.index - self.pointer_span:
            self.recent.popleft()
        for kept in self.recent:
            if kept.index < entry.index - self.feature_span:
                kept.features = None

    def saved(self) -> Callable[[], None]:
        """See `VisionModel.saved`. Tensors are replaced, never written to, so they need no copies."""
        kept = self.index, list(self.conditioning), deque(self.recent), self.mask_logits
        spatial = [entry.features for entry in self.recent]

        def restore() -> None:
            self.index, self.conditioning, self.recent, self.mask_logits = kept
            for entry, features in zip(self.recent, spatial, strict=True):
                entry.features = features

        return restore


@dataclass(frozen=True, slots=True)
class MemoryTokens:
    """A region's memory laid out for memory attention: spatial tokens first, then pointer tokens."""

    tokens: Tensor  # (N, B, M)
    positions: Tensor  # (N, B, M)
    pointer_count: int  # of the N, how many (at the end) come from object pointers

    @property
    def shape_key(self) -> tuple[int, int]:
        """Regions with equal keys can be attended to as one batch."""
        return self.tokens.shape[0], self.pointer_count


def memory_tokens(sam2: SAM2Base, memory: RegionMemory, index: int) -> MemoryTokens:
    """What frame `index` of one region attends to: prompted frames, the last frames, and object pointers.

    Training keeps B regions of B videos in one memory; every entry's leading axis is then B.
    """
    past = [(index - entry.index, entry) for entry in memory.recent if entry.index < index]
    # Age 0 means "prompted", whenever that was; otherwise 1 is the frame just before.
    spatial = [(0, entry) for entry in memory.conditioning]
    spatial += [(age, entry) for age, entry in past if age <= memory.feature_span]
    tokens, positions = [], []
    for age, entry in spatial:
        assert entry.features is not None
        tokens.append(entry.features.flatten(2).permute(2, 0, 1))  # (h*w, B, M)
        code = sam2.memory_encoder.position_encoding(entry.features).to(entry.features.dtype)
        positions.append(code.flatten(2).permute(2, 0, 1) + sam2.maskmem_tpos_enc[age - 1])
    pointed = [(index - entry.index, entry) for entry in memory.conditioning]
    pointed += [(age, entry) for age, entry in reversed(past) if age <= memory.pointer_span]
    pointers = torch.stack([entry.pointer for _, entry in pointed])  # (P, B, C)
    pieces = pointers.shape[2] // sam2.mem_dim  # a pointer enters as C / M tokens
    tokens.append(pointers.view(*pointers.shape[:2], pieces, sam2.mem_dim).permute(0, 2, 1, 3).flatten(0, 1))
    code = _pointer_positions(sam2, [age for age, _ in pointed], memory.pointer_span, pointers)
    positions.append(code[:, None].repeat_interleave(pieces, dim=0).expand(-1, pointers.shape[1], -1))
    return MemoryTokens(torch.cat(tokens), torch.cat(positions), len(pointed) * pieces)


def _pointer_positions(sam2: SAM2Base, ages: Sequence[int], span: int, like: Tensor) -> Tensor:
    """P ages in frames → (P, M) temporal position code, of the dtype and device of `like`."""
    width = sam2.hidden_dim if sam2.proj_tpos_enc_in_obj_ptrs else sam2.mem_dim
    code = _sine_code(tuple(ages), span, width, like.device, torch.is_inference_mode_enabled())
    projected: Tensor = sam2.obj_ptr_tpos_proj(code.to(like.dtype))
    return projected


@lru_cache(maxsize=256)
def _sine_code(ages: tuple[int, ...], span: int, width: int, device: torch.device, inference: bool) -> Tensor:
    """StageCache: to send ages is to wait for the device. What inference mode made cannot be trained with."""
    code: Tensor = get_1d_sine_pe(torch.tensor(ages, device=device) / span, dim=width)
    return code


def collate(parts: Sequence[MemoryTokens]) -> MemoryTokens:
    """Joins tokens of equal `shape_key` along the batch axis."""
    return MemoryTokens(
        tokens=torch.cat([part.tokens for part in parts], dim=1),
        positions=torch.cat([part.positions for part in parts], dim=1),
        pointer_count=parts[0].pointer_count,
    )


def attend_memory(sam2: SAM2Base, features: FrameFeatures, memory: MemoryTokens) -> Tensor:
    """Memory attention for B regions → (B, C, h, w)."""
    count = memory.tokens.shape[1]
    current = features.embedding.flatten(2).permute(2, 0, 1).expand(-1, count, -1)  # (h*w, B, C)
    position = features.position.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
    fused: Tensor = sam2.memory_attention(
        curr=[current],
        curr_pos=[position],
        memory=memory.tokens,
        memory_pos=memory.positions,
        num_obj_ptr_tokens=memory.pointer_count,
    )
    return fused.permute(1, 2, 0).reshape(count, *features.embedding.shape[1:])


def encode_memory(
    sam2: SAM2Base, embedding: Tensor, logits: Tensor, present: Tensor, *, binarise: bool
) -> Tensor:
    """Mask logits (B, 1, 4h, 4w) and presence (B, 1) bool in a frame → (B, M, h, w) spatial memory.

    `embedding`: (B or 1, C, h, w), the frame's.

    PAM's flags: masks of prompted frames enter memory binarised.
    """
    size = (sam2.image_size, sam2.image_size)
    masks = interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    masks = (masks > 0).float() if binarise else masks.sigmoid()
    return fuse_memory(sam2, embedding, masks, present)


def fuse_memory(sam2: SAM2Base, embedding: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Masks (B, 1, S, S), 0..1, and presence (B, 1) bool → (B, M, h, w); see `encode_memory`."""
    masks = masks * sam2.sigmoid_scale_for_mem_enc + sam2.sigmoid_bias_for_mem_enc
    encoder = sam2.memory_encoder  # its steps, without the position code that nobody reads
    fused = encoder.pix_feat_proj(embedding) + encoder.mask_downsampler(masks.to(embedding.dtype))
    encoded: Tensor = encoder.out_proj(encoder.fuser(fused))
    if sam2.no_obj_embed_spatial is not None:
        absent = (~present).to(encoded.dtype)[..., None, None]
        encoded = encoded + absent * sam2.no_obj_embed_spatial[..., None, None]
    return encoded


def object_pointers(sam2: SAM2Base, decoded: DecodedMasks) -> Tensor:
    """(B, C) object pointers from mask token 0; the "no object" pointer if the object is absent."""
    pointers: Tensor = sam2.obj_ptr_proj(decoded.mask_tokens[:, 0])
    nothing: Tensor = sam2.no_obj_ptr
    present = decoded.presence > 0
    if sam2.fixed_no_obj_ptr:
        pointers = pointers * present
    return pointers + nothing * ~present
