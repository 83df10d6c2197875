"""Temporal encoders: frame features in, frame features that know their neighbours out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .transformer import Transformer


class TemporalTransformer(nn.Module):
    """V = F + Transformer(F + P): X-CLIP's TransEnc (arXiv 2207.07285, section 3.1) with its code's residual.

    The residual lets training start from what the frame tower knows.

    Args:
        width: D of the frame features.
        depth: blocks (3 in the paper, 4 in its code).
        heads: attention heads.
        max_frames: N, the most frames of a video.
        dropout: in [0, 1), in training.
    """

    def __init__(self, width: int, depth: int, heads: int, max_frames: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.position = nn.Parameter(0.3 * torch.randn(max_frames, width))
        self.transformer = Transformer(width, depth, heads, dropout)

    def forward(
        self, frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Frame features [B, N, D] -> [B, N, D]; padded frames (mask False) are neither read nor written.

        Raises:
            ValueError: more frames than there are positions.
        """
        n = frames.shape[1]
        if n > self.max_frames:
            raise ValueError(f"frames: expected at most {self.max_frames} frames (max_frames), got {n}")
        return frames + self.transformer(frames + self.position[:n], mask)
