"""A small pre-norm transformer over masked tokens, shared by the text tower and the temporal encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..similarity import nonempty


class QuickGELU(nn.Module):
    """The activation x sigmoid(1.702 x), which OpenAI's CLIP was trained with."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Apply it to each element."""
        return x * torch.sigmoid(1.702 * x)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Dropout is on the two residual branches only: dropout inside the attention would rule out the fused kernel.

    Args:
        width: D of the tokens.
        heads: attention heads; must divide the width.
        dropout: in [0, 1), in training.
        quick_gelu: use QuickGELU in the mlp in place of GELU.
        norm_eps: the epsilon of the layer norms.

    Raises:
        ValueError: a number of heads that does not divide the width.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, quick_gelu: bool = False, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        checks.keeps("dropout", checks.SHARE, dropout)
        if width % heads:
            raise ValueError(f"heads: expected a divisor of width {width}, got {heads}")
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        activation = QuickGELU() if quick_gelu else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b l d"], keys: Bool[Tensor, "b 1 1 l"] | None, first: bool = False
    ) -> Float[Tensor, "b l d"]:
        """Tokens after attention to the real `keys` (True; None = all) and the mlp; with `first`, the first alone."""
        x = (x[:, :1] if first else x) + self.dropout(self._attend(self.attention_norm(x), keys, first))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def _attend(self, x: Tensor, keys: Tensor | None, first: bool) -> Tensor:
        if first:
            (of_q, of_kv), (q_bias, kv_bias) = (p.split((x.shape[-1], 2 * x.shape[-1])) for p in self.qkv.parameters())
            q = rearrange(F.linear(x[:, :1], of_q, q_bias), "b l (h d) -> b h l d", h=self.heads)
            k, v = rearrange(F.linear(x, of_kv, kv_bias), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        else:
            q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=keys), "b h l d -> b l (h d)"))


class Transformer(nn.Module):
    """`depth` blocks (see TransformerBlock) over tokens [B, L, D] under a mask [B, L] (True = real).

    A padded token is zeroed on the way in and out and no token attends to it, so that its values, NaN included,
    change nothing. An item without a real token comes out as zeros.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        quick_gelu: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout, quick_gelu, norm_eps) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """The tokens after all blocks."""
        x, keys = _filled(x, mask)
        for block in self.blocks:
            x = block(x, keys)
        return x if mask is None else x.masked_fill(rearrange(~mask, "b l -> b l 1"), 0.0)

    def first(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b d"]:
        """The first token, which must be real, after all blocks; the last block computes no other."""
        x, keys = _filled(x, mask)
        for i, block in enumerate(self.blocks, 1):
            x = block(x, keys, i == len(self.blocks))
        return x[:, 0]


def _filled(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens with zeros for padding, and the keys that they may attend to, [B, 1, 1, L]."""
    if mask is None:
        return x, None
    # An item without a real token may attend to its zeros: a softmax over nothing would be NaN.
    return x.masked_fill(rearrange(~mask, "b l -> b l 1"), 0.0), rearrange(nonempty(mask), "b l -> b 1 1 l")
