"""The fast paths of a model: vision engine, text engine, and the region embeddings between them.

`FastModel` makes a model of them. They read the paper's decoder features only and do not crop small regions.

Letters: B regions, C Perceiver width, H language width, L embeddings of a region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.errors import CheckpointError
from pam_ros.model.config import PerceiverInput
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.pam import Pam
from pam_ros.model.text.fast.decoder_weights import fuse
from pam_ros.model.text.fast.text_engine import CACHE_TOKENS, TextEngine
from pam_ros.model.vision.fast.preprocessing import Preprocessor
from pam_ros.model.vision.fast.vision_engine import (
    BATCHES,
    PREPARED_BATCHES,
    EncodedFrame,
    VisionEngine,
)
from pam_ros.model.vision.features import DecoderFeatures
from pam_ros.model.vision.segmenter import PIXEL_MEAN, PIXEL_STD


class Engines:
    """Vision and text engine of one model."""

    def __init__(
        self,
        model: Pam,
        *,
        cache_tokens: int = CACHE_TOKENS,
        regions: int = 16,
        graphs: bool = True,
        stop_ids: Sequence[int] = (),
        texts: bool = True,
    ) -> None:
        """`model` gives its weights and may still be used itself.

        Args:
            cache_tokens: of all prompts and texts together.
            regions: most regions that are remembered at a time.
            graphs: use CUDA graphs on a CUDA device.
            stop_ids: tokens that end a text.
            texts: False leaves out the text engine, for a model without a decoder.

        Raises CheckpointError if the Perceiver does not read the paper's decoder features.
        """
        if model.segmenter.perceiver_input is not PerceiverInput.AFTER:
            raise CheckpointError(
                f"the fast engines need a Perceiver with input {PerceiverInput.AFTER.value!r}, "
                f"not {model.segmenter.perceiver_input.value!r}; use the plain path"
            )
        self.model = model
        self.vision = VisionEngine(model.segmenter.sam2, regions=regions, graphs=graphs)
        self._text: TextEngine | None = None
        if texts:
            language = model.language
            weights = fuse(
                language.transformer, vocabulary=language.tokens, positions=language.context_length
            )
            self._text = TextEngine(
                weights, stop_ids=stop_ids, cache_tokens=cache_tokens, window=language.window
            )
        device, dtype = self.vision.device, self.vision.dtype
        self.preprocessor = Preprocessor(
            size=model.segmenter.image_size, mean=PIXEL_MEAN, std=PIXEL_STD, dtype=dtype, device=device
        )
        self._graphs = self.vision.graphs  # embeddings follow masks on one thread, so they share memory

    @property
    def text(self) -> TextEngine:
        """The text engine."""
        assert self._text is not None, "made without texts"
        return self._text

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> EncodedFrame:
        """(H, W, 3) uint8 RGB → features of the frame."""
        pixels = self.preprocessor.pixels(self.preprocessor.upload(image))
        return self.vision.encode(pixels, (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def region_embeddings(self, features: DecoderFeatures, *, stride: int) -> Tensor:
        """Perceiver and projector: decoder features of B regions → (B, L, H), at stride 2 or 4."""
        count = len(features.image)
        batch = next((b for b in BATCHES if b >= count), count) if self._graphs.enabled else count
        image, tokens = (_padded(each, batch) for each in (features.image, features.tokens))
        (out,) = self._graphs.run(f"embed {batch} {stride}", partial(self._embed, stride), image, tokens)
        return out[:count].clone()

    def _embed(self, stride: int, image: Tensor, tokens: Tensor) -> tuple[Tensor]:
        return (self.model.embed_features([DecoderFeatures(image, tokens)], stride=stride),)

    def vision_preparations(self, *, batches: Sequence[int] = PREPARED_BATCHES) -> list[Callable[[], None]]:
        """What captures graphs for `batches` of regions, piece by piece; see `VisionEngine.preparations`."""
        pieces = self.vision.preparations(batches=batches)
        if pieces:
            blank = self._blank_features(max(batches))
            pieces += [partial(self._capture_embedding, blank, batch) for batch in batches]
        return pieces

    def first_runs(self) -> list[Callable[[], object]]:
        """What runs every step once, so that its kernels compile."""
        frame = np.zeros((4, 4, 3), np.uint8)
        upload, pixels = self.preprocessor.upload, self.preprocessor.pixels
        texts = [] if self._text is None else self._text.first_runs()
        return [lambda: pixels(upload(frame)), *self.vision.first_runs(), *texts]

    def warm_up(self, *, batches: Sequence[int] = PREPARED_BATCHES) -> None:
        """Compiles kernels and captures graphs for `batches` of regions; until then all runs eagerly."""
        for prepare in (*self.vision_preparations(batches=batches), *self.text.preparations()):
            prepare()

    def _blank_features(self, batch: int) -> DecoderFeatures:
        side, width = self.vision.side, self.model.segmenter.width
        image = torch.zeros(batch, width, side, side, dtype=self.vision.dtype, device=self.vision.device)
        return DecoderFeatures(image, image.new_zeros(batch, 2, width))

    @torch.inference_mode()
    def _capture_embedding(self, features: DecoderFeatures, batch: int) -> None:
        for stride in (FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE):
            self._graphs.capture(
                f"embed {batch} {stride}",
                partial(self._embed, stride),
                features.image[:batch],
                features.tokens[:batch],
                kind=f"embed {stride}",
                rows=len(features.image),
            )


def _padded(x: Tensor, batch: int) -> Tensor:
    """x (B, …) with zeros up to `batch`."""
    return x if len(x) == batch else torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])])
