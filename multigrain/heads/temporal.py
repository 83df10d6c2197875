"""Temporal encoders: each frame feature is encoded together with the other frames of its video."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..reduce import without_autocast
from .transformer import Transformer


class TemporalTransformer(nn.Module):
    """V = F + Transformer(F + P): X-CLIP's TransEnc (arXiv 2207.07285, section 3.1) with its code's residual.

    The residual lets training start from the features of the frame tower.

    Args:
        width: D of the frame features.
        depth: number of blocks (3 in the paper, 4 in its code).
        heads: attention heads.
        max_frames: N, the most frames of a video.
        dropout: in [0, 1), in training.
        quick_gelu, norm_eps: see TransformerBlock; X-CLIP's code has QuickGELU and 1e-12.
        positions: the number of positions in P, by default max_frames; X-CLIP's code has as many as CLIP's text tower.

    Raises:
        ValueError: fewer positions than frames, or heads that do not divide the width.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        max_frames: int,
        dropout: float = 0.0,
        quick_gelu: bool = False,
        norm_eps: float = 1e-5,
        positions: int | None = None,
    ) -> None:
        super().__init__()
        checks.count("width", width)
        positions = max_frames if positions is None else positions
        if positions < max_frames:
            raise ValueError(
                f"max_frames: expected at most {positions} frames (one for each position), got {max_frames}"
            )
        self.max_frames = max_frames
        self.position = nn.Parameter(0.3 * torch.randn(positions, width))
        self.transformer = Transformer(width, depth, heads, dropout, quick_gelu, norm_eps)

    def forward(
        self, frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Encode frame features [B, N, D] as [B, N, D]; padded frames (mask False) are neither read nor written.

        Raises:
            ValueError: more frames than max_frames, or of another width.
        """
        n, width = frames.shape[1], self.position.shape[1]
        if frames.shape[2] != width:
            raise ValueError(f"frames: expected features of width {width}, got {frames.shape[2]}")
        if n > self.max_frames:
            raise ValueError(f"frames: expected at most {self.max_frames} frames (max_frames), got {n}")
        return frames + self.transformer(frames + self.position[:n], mask)

    def clip_names(self, position: str, blocks: str) -> dict[str, str]:
        """The name of each parameter here -> that of the tensor of the same shape in a transformer of CLIP.

        Args:
            position: CLIP's name of the positions, "positional_embedding" in its text tower.
            blocks: the prefix of CLIP's blocks, "transformer.resblocks" there.
        """
        names = {"position": position}
        for i in range(len(self.transformer.blocks)):
            for ours, theirs in _BLOCK.items():
                names[f"transformer.blocks.{i}.{ours}"] = f"{blocks}.{i}.{theirs}"
        return names


_LAYERS = {
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "out": "attn.out_proj",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
}
_BLOCK = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in _LAYERS.items() for kind in ("weight", "bias")} | {
    f"qkv.{kind}": f"attn.in_proj_{kind}" for kind in ("weight", "bias")
}


class TemporalLSTM(nn.Module):
    """V = F + LSTM(F): CLIP4Clip's seqLSTM (Luo et al. 2021, arXiv 2104.08860), one layer from first to last frame.

    Args:
        width: D of the frame features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(checks.count("width", width), width, batch_first=True)

    def forward(
        self, frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Encode frame features [B, N, D] as [B, N, D]; padded frames (mask False) are skipped and left as they are."""
        if mask is None:
            return frames + self._hidden(frames)
        # The real frames come first, so that no padding is read before a real frame.
        order = repeat((~mask).long().argsort(dim=1, stable=True), "b n -> b n d", d=frames.shape[-1])
        padding = rearrange(~mask, "b n -> b n 1")
        hidden = self._hidden(frames.masked_fill(padding, 0.0).gather(1, order))
        hidden = torch.zeros_like(hidden).scatter(1, order, hidden)
        return frames + hidden.masked_fill(padding, 0.0)

    def _hidden(self, frames: Tensor) -> Tensor:
        """Run the LSTM in the precision of its weights: most processors have none in half precision."""
        with without_autocast(frames):
            return self.lstm(frames.to(next(self.lstm.parameters()).dtype))[0].to(frames.dtype)
