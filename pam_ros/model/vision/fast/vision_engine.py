"""SAM 2 at fixed shapes: encodes a frame, segments prompts, tracks every region of a frame as one batch.

    pixels → encode → EncodedFrame → segment / track → MaskBatch → to_host

1. `encode` runs the image encoder once a frame.
2. `segment` (clicks) and `track` read the memory bank by a plan, decode masks, and write the frame's memory.
3. `to_host` copies the masks and scores of all regions to the host at once.

Each runs as a CUDA graph if its shapes were captured, else eagerly; the results are the same.
Letters: B regions, C model width, M memory width, N = h·w grid cells (stride 16), S spatial slots, K clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from torch.nn.functional import interpolate

from pam_ros.model.graphs import GraphCache
from pam_ros.model.vision.fast.image_encoder import ImageEncoder
from pam_ros.model.vision.fast.memory_slots import RegionSlots, SlotBank
from pam_ros.model.vision.fast.region_decoder import FrameTensors, RegionDecoder, plan_numbers
from pam_ros.model.vision.features import DecoderFeatures, FrameFeatures
from pam_ros.model.vision.prompt_tensors import binary_masks, fed_back, mask_answer

BATCHES = (1, 2, 3, 5, 8, 12, 16)  # of regions; others run as the next larger one
PREPARED_BATCHES = (1, 2, 3, 5, 8)  # captured unless asked otherwise
SPATIAL = (7, 10)  # spatial slots attended to, likewise; padding costs next to nothing


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One encoded frame."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    tensors: FrameTensors


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """B regions in one frame, on the device."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    logits: Tensor  # (B, 1, 4h, 4w) mask logits; far below 0 everywhere if the object is absent
    ious: Tensor  # (B) the model's estimates
    presence: Tensor  # (B) logits
    features: DecoderFeatures

    def to_host(self) -> HostMasks:
        """Masks at the frame's size and scores, in one copy."""
        masks = (
            interpolate(self.logits.float(), size=self.size, mode="bilinear", align_corners=False)[:, 0] > 0
        )
        scores = torch.stack([self.ious.float().clamp(0, 1), self.presence.float().sigmoid()], dim=1)
        packed = torch.cat(
            [scores.contiguous().view(torch.uint8).flatten(), masks.view(torch.uint8).flatten()]
        )
        pinned = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=packed.is_cuda)
        pinned.copy_(packed, non_blocking=True)
        if packed.is_cuda:
            torch.cuda.current_stream().synchronize()
        count = len(self.logits)
        numbers = pinned[: 8 * count].numpy().view(np.float32).reshape(count, 2)
        return HostMasks(
            pinned[8 * count :].view(masks.shape).numpy().view(np.bool_), numbers[:, 0], numbers[:, 1]
        )


@dataclass(frozen=True, slots=True)
class HostMasks:
    """Masks and scores of B regions on the host."""

    masks: NDArray[np.bool_]  # (B, H, W)
    mask_scores: NDArray[np.float32]  # (B) estimated IoU, 0..1
    presence_scores: NDArray[np.float32]  # (B) probability that the object is in view, 0..1


class VisionEngine:
    """Masks of prompted and tracked regions. Not thread-safe: one thread owns it."""

    def __init__(self, sam2: SAM2Base, *, regions: int = 16, graphs: bool = True) -> None:
        """`regions`: how many can be tracked at a time; `graphs`: use CUDA graphs on a CUDA device."""
        self.sam2 = sam2
        weight = sam2.no_mem_embed
        self.dtype, self.device = weight.dtype, weight.device
        self.side: int = sam2.sam_image_embedding_size
        self.bank = SlotBank(
            regions=regions,
            feature_span=sam2.num_maskmem - 1,
            pointer_span=sam2.max_obj_ptrs_in_encoder - 1,
            cells=self.side**2,
            width=sam2.mem_dim,
            pointer_width=sam2.hidden_dim,
            dtype=self.dtype,
            device=self.device,
        )
        self._decoder = RegionDecoder(sam2, self.bank)
        self._encoder = ImageEncoder(sam2)
        for module in sam2.modules():
            if isinstance(module, PositionEmbeddingSine):
                module.cache.clear()  # 0.1 GiB for levels that the engine does not read
        self.graphs = GraphCache(self.device, enabled=graphs and self.device.type == "cuda", urgent=True)

    def open(self) -> RegionSlots:
        """Opens an empty memory for a new region. Raises CapacityError if every slot is in use."""
        return self.bank.open()

    @torch.inference_mode()
    def saved(self, memory: RegionSlots) -> Callable[[], None]:
        """See `interface.VisionModel`. What the region's slots hold is copied on the device."""
        tensors = (*self.bank.contents(memory), self._decoder.logits[memory.slot])
        copies, restore_slots = [each.clone() for each in tensors], memory.saved()

        @torch.inference_mode()
        def restore() -> None:
            restore_slots()
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)

        return restore

    def preparations(
        self, *, batches: Sequence[int] = PREPARED_BATCHES, clicks: Sequence[int] = (1, 2)
    ) -> list[Callable[[], None]]:
        """What captures graphs for `batches` of regions and prompts of so many `clicks`; a box is two.

        Each piece may run on any thread, while frames are processed on another.
        """
        if not self.graphs.enabled:
            return []
        pixels, frame = self._blank_frame()  # all graphs read the same copies
        pieces: list[Callable[[], None]] = [partial(self.graphs.capture, "encode", self._encode, pixels)]
        most = max(batches)
        for batch in batches:
            pieces += [partial(self._capture_track, frame, batch, spatial, most) for spatial in SPATIAL]
            pieces += [partial(self._capture_segment, frame, batch, count, most) for count in clicks]
        return pieces

    def warm_up(self, *, batches: Sequence[int] = PREPARED_BATCHES, clicks: Sequence[int] = (1, 2)) -> None:
        """Runs every preparation."""
        for prepare in self.preparations(batches=batches, clicks=clicks):
            prepare()

    def first_runs(self) -> list[Callable[[], object]]:
        """What runs every step once on a blank frame, so that its kernels compile."""
        pixels, frame = self._blank_frame()
        written = self._upload(self._write_slots([], 1, prompted=False))
        points = torch.ones(1, 1, 3, device=self.device)
        numbers = np.concatenate(
            [self._write_slots([], 1, prompted=False).ravel(), self._plan_numbers([], [], 1, SPATIAL[0])]
        )
        return [
            partial(self._encode, pixels),
            partial(self._segment, *frame, points, written),
            partial(self._tracker(1, SPATIAL[0]), *frame, self._upload(numbers)),
        ]

    def _blank_frame(self) -> tuple[Tensor, FrameTensors]:
        """The encoder's input and features, all zeros."""
        size, side, width = self.sam2.image_size, self.side, self.sam2.hidden_dim
        pixels = torch.zeros(1, 3, size, size, dtype=self.dtype, device=self.device)
        frame = FrameTensors(
            pixels.new_zeros(1, width, side, side),
            pixels.new_zeros(1, width // 8, 4 * side, 4 * side),
            pixels.new_zeros(1, width // 4, 2 * side, 2 * side),
        )
        return pixels, frame

    @torch.inference_mode()
    def _capture_segment(self, frame: FrameTensors, batch: int, count: int, most: int) -> None:
        points = torch.ones(batch, count, 3, device=self.device)
        written = self._upload(self._write_slots([], batch, prompted=False))
        self.graphs.capture(
            f"segment {batch} {count}", self._segment, *frame, points, written, kind="masks", rows=most
        )

    @torch.inference_mode()
    def _capture_track(self, frame: FrameTensors, batch: int, spatial: int, most: int) -> None:
        written = self._write_slots([], batch, prompted=False)
        numbers = np.concatenate([written.ravel(), self._plan_numbers([], [], batch, spatial)])
        self.graphs.capture(
            f"track {batch} {spatial}",
            self._tracker(batch, spatial),
            *frame,
            self._upload(numbers),
            kind="masks",
            rows=most,
        )

    # ---- frames

    @torch.inference_mode()
    def encode(self, pixels: Tensor, size: tuple[int, int]) -> EncodedFrame:
        """(1, 3, 16h, 16w) normalised pixels of a frame of `size` (height, width) → features."""
        embedding, *levels = self.graphs.run("encode", self._encode, pixels)
        return EncodedFrame(size, FrameTensors(embedding.clone(), levels[0].clone(), levels[1].clone()))

    def _encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        # The neck adds its levels in float32 and leaves them so.
        stride_4, stride_8, embedding = (level.to(self.dtype) for level in self._encoder.levels(pixels))
        return embedding, stride_4, stride_8

    # ---- regions

    @torch.inference_mode()
    def segment(
        self,
        features: EncodedFrame,
        points: NDArray[np.float32],
        labels: NDArray[np.int32],
        memories: Sequence[RegionSlots],
    ) -> MaskBatch:
        """Segments B new regions by K clicks each; this becomes a conditioning frame of each.

        `points` (B, K, 2): (x, y) in encoder pixels; `labels` (B, K): 1 inside, 0 outside, 2 and 3 corners.
        """
        count = len(memories)
        batch = self._bucket(count, BATCHES)
        for memory in memories:
            memory.index = max(memory.index, 0)
        written = self._write_slots(memories, batch, prompted=True)
        clicks = np.zeros((batch, labels.shape[1], 3), np.float32)
        clicks[:count, :, :2], clicks[:count, :, 2] = points, labels
        inputs = *features.tensors, self._upload(clicks), self._upload(written)
        outputs = self.graphs.run(f"segment {batch} {labels.shape[1]}", self._segment, *inputs)
        return self._result(features, count, outputs)

    def _segment(
        self, embedding: Tensor, stride_4: Tensor, stride_8: Tensor, clicks: Tensor, written: Tensor
    ) -> tuple[Tensor, ...]:
        """`clicks` (B, K, 3): x, y, label; `written` (3, B), see `_write_slots`."""
        backbone = self._decoder.without_memory(embedding).expand(len(clicks), -1, -1, -1)
        points = clicks[..., :2], clicks[..., 2].int()
        sparse, dense = self.sam2.sam_prompt_encoder(points=points, boxes=None, masks=None)
        frame = FrameTensors(embedding, stride_4, stride_8)
        return self._decoder.finish(frame, backbone, sparse, dense, written, prompted=True)

    @torch.inference_mode()
    def refine(
        self,
        features: EncodedFrame,
        points: NDArray[np.float32],
        labels: NDArray[np.int32],
        memories: Sequence[RegionSlots],
    ) -> MaskBatch:
        """Corrects B regions in their newest frame by K clicks each; the masks found there are fed back."""
        embedding, batch = features.tensors.embedding, len(memories)
        if all(memory.index == 0 for memory in memories):  # there is no past to attend to
            backbone = self._decoder.without_memory(embedding).expand(batch, -1, -1, -1)
        else:
            indices = [memory.index for memory in memories]
            used = max(len(list(memory.spatial(memory.index))) for memory in memories)
            plan = self._upload(self._plan_numbers(memories, indices, batch, used))
            backbone = self._decoder.attend(embedding, plan, batch, used)
        regions = torch.tensor([memory.slot for memory in memories], device=self.device)
        previous = fed_back(self._decoder.logits[regions])
        written = self._upload(self._write_slots(memories, batch, prompted=True))
        clicks = torch.from_numpy(points).to(self.device), torch.from_numpy(labels).to(self.device)
        sparse, dense = self.sam2.sam_prompt_encoder(points=clicks, boxes=None, masks=previous)
        outputs = self._decoder.finish(features.tensors, backbone, sparse, dense, written, prompted=True)
        return self._result(features, batch, outputs)

    @torch.inference_mode()
    def segment_masks(
        self, features: EncodedFrame, masks: NDArray[np.bool_], memories: Sequence[RegionSlots]
    ) -> MaskBatch:
        """Regions given by masks (B, H, W): the decoder runs for the pointer and its features only."""
        batch = len(memories)
        for memory in memories:
            memory.index = max(memory.index, 0)
        written = self._upload(self._write_slots(memories, batch, prompted=True))
        resized = binary_masks(self._upload(masks)[:, None], self.sam2.image_size)
        dense = self.sam2.mask_downsample(resized.to(self.dtype)).float()
        clicks = torch.zeros(batch, 1, 2, device=self.device), -torch.ones(batch, 1, device=self.device)
        sparse, dense = self.sam2.sam_prompt_encoder(points=clicks, boxes=None, masks=dense)
        backbone = features.tensors.embedding.expand(batch, -1, -1, -1)
        answer = mask_answer(resized, 4 * self.side)
        outputs = self._decoder.finish(
            features.tensors, backbone, sparse, dense, written, prompted=True, answer=answer
        )
        return self._result(features, batch, outputs)

    @torch.inference_mode()
    def track(self, features: EncodedFrame, memories: Sequence[RegionSlots]) -> MaskBatch:
        """Finds B remembered regions in the next frame, as one batch, and remembers them there."""
        count = len(memories)
        batch = self._bucket(count, BATCHES)
        indices = [memory.index + 1 for memory in memories]
        pairs = zip(memories, indices, strict=True)
        spatial = self._bucket(max(len(list(memory.spatial(index))) for memory, index in pairs), SPATIAL)
        plan = self._plan_numbers(memories, indices, batch, spatial)
        for memory in memories:
            memory.index += 1
        written = self._write_slots(memories, batch, prompted=False)
        numbers = self._upload(np.concatenate([written.ravel(), plan]))
        inputs = (*features.tensors, numbers)
        outputs = self.graphs.run(f"track {batch} {spatial}", self._tracker(batch, spatial), *inputs)
        return self._result(features, count, outputs)

    def _tracker(self, batch: int, spatial: int) -> Callable[..., tuple[Tensor, ...]]:
        decoder, constants = self._decoder, self._decoder.constants

        def track(
            embedding: Tensor, stride_4: Tensor, stride_8: Tensor, numbers: Tensor
        ) -> tuple[Tensor, ...]:
            written, plan = numbers[: 3 * batch].view(3, batch), numbers[3 * batch :]
            backbone = decoder.attend(embedding, plan, batch, spatial)
            sparse = constants.no_click.expand(batch, -1, -1)
            dense = constants.no_mask.expand(batch, -1, *backbone.shape[2:])
            frame = FrameTensors(embedding, stride_4, stride_8)
            return decoder.finish(frame, backbone, sparse, dense, written, prompted=False)

        return track

    def plain_features(self, features: EncodedFrame) -> FrameFeatures:
        """The same features, as `Segmenter` reads them."""
        embedding, *high_resolution = features.tensors
        position = self._decoder.constants.position.transpose(1, 2).reshape(embedding.shape)
        return FrameFeatures(features.size, embedding, position, tuple(high_resolution))

    # ---- host

    def _bucket(self, count: int, sizes: Sequence[int]) -> int:
        """The captured size for `count`; without graphs nothing is padded."""
        return next((size for size in sizes if size >= count), count) if self.graphs.enabled else count

    def _plan_numbers(
        self, memories: Sequence[RegionSlots], indices: Sequence[int], batch: int, spatial: int
    ) -> NDArray[np.int32]:
        plan = self.bank.plan(memories, indices, batch, spatial)
        return plan_numbers(plan, self._decoder.pieces, self.side**2)

    def _write_slots(
        self, memories: Sequence[RegionSlots], batch: int, *, prompted: bool
    ) -> NDArray[np.int32]:
        """Reserves slots for this frame → (3, B): region, features, pointer. Padding gets scratch slots."""
        bank = self.bank
        scratch = (bank.scratch, bank.scratch * bank.feature_slots + 1, bank.scratch * bank.pointer_slots)
        numbers = np.repeat(np.array(scratch, np.int32)[:, None], batch, axis=1)
        for b, memory in enumerate(memories):
            feature_slot, pointer_slot = memory.add(prompted=prompted)
            numbers[:, b] = memory.slot, feature_slot, pointer_slot
        return numbers

    def _upload(self, numbers: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(numbers)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
        )

    def _result(self, features: EncodedFrame, count: int, outputs: tuple[Tensor, ...]) -> MaskBatch:
        logits, ious, presence, image, tokens = (each[:count].clone() for each in outputs)
        return MaskBatch(features.size, logits, ious, presence, DecoderFeatures(image, tokens))
