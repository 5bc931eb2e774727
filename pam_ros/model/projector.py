"""Projectors: Perceiver tokens → embeddings for the language model, with separators.

Letters: B regions, C Perceiver width, K semantic tokens, V visual tokens, H language width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pam_ros.model.interface import FIRST_FRAME_STRIDE


class Projector(nn.Module):
    """Two MLPs and three learned separator embeddings. Separators stand at the end of what they close."""

    def __init__(self, *, width: int, language_width: int) -> None:
        super().__init__()

        def mlp(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, language_width), nn.GELU(), nn.Linear(language_width, language_width)
            )

        def separator() -> nn.Parameter:
            return nn.Parameter(torch.randn(language_width) * language_width**-0.5)

        self.visual = mlp(width * FIRST_FRAME_STRIDE**2)
        self.semantic = mlp(width)
        self.image_newline = separator()
        self.semantic_newline = separator()
        self.frame_newline = separator()

    def forward(self, visual: Tensor, semantic: Tensor) -> Tensor:
        """(B, V, 4C) and (B, K, C) → embeddings (B, V + 1 + K + 1, H)."""
        count = visual.shape[0]

        def close(separator: Tensor) -> Tensor:
            return separator.expand(count, 1, -1)

        return torch.cat(
            [
                self.visual(visual),
                close(self.image_newline),
                self.semantic(semantic),
                close(self.semantic_newline),
            ],
            dim=1,
        )

    def prompt_embeddings(self, frames: Sequence[Tensor], *, clip: bool) -> Tensor:
        """What replaces `<image>` in a prompt: embeddings of frames (L_i, H), oldest first → (L, H)."""
        return torch.cat(self.prompt_parts(frames, clip=clip))

    def prompt_parts(self, frames: Sequence[Tensor], *, clip: bool) -> list[Tensor]:
        """`prompt_embeddings` before they are joined, so that nothing is copied.

        In a clip, a frame separator ends every frame; an image has one frame and none.
        """
        if not clip:
            (frame,) = frames
            return [frame]
        newline = self.frame_newline[None].to(frames[0].device)
        return [part for frame in frames for part in (frame, newline)]
