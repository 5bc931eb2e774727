"""Projectors: Perceiver tokens → embeddings for the language model, with separators.

Letters: B regions, C Perceiver width, K semantic tokens, V visual tokens, H language width.
"""

from __future__ import annotations

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

        seen = [self.visual(visual), close(self.image_newline)]
        meant = [self.semantic(semantic), close(self.semantic_newline)]
        return torch.cat(seen + meant, dim=1)

    def clip_embeddings(self, frames: list[Tensor]) -> Tensor:
        """Rows of each frame (R_i, H), oldest first → embeddings of the clip; a frame separator closes each."""
        return torch.cat([part for embeddings in frames for part in (embeddings, self.frame_newline[None])])
