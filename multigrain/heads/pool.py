"""Poolers: from the tokens of an item to one vector.

    tokens        [B, L, D]    of their own length: cosines are taken by whoever compares them
    mask          [B, L]       bool, True = a real token; None = all
    pooled        [B, D]       fp32 (fp64 stays); zeros where an item has no real token

`Pool` makes a grain of it. A pooler is called with padded slots that are zero. Those that see the query as well are in
multigrain.grains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..reduce import mean, project, softmax, without_autocast
from ..similarity import nonempty
from ..tokens import Features, Tokens, unit_vectors


class Pooler(nn.Module, ABC):
    """One vector of each item's tokens. Subclass it and write `forward`."""

    @abstractmethod
    def forward(self, tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b d"]:
        """Vectors [B, D] of tokens [B, L, D]."""


class MeanPool(Pooler):
    """The mean of the real tokens.

    Args:
        normalize: the mean of unit tokens, as CLIP4Clip (Luo et al. 2021, arXiv 2104.08860); otherwise long tokens
            count more.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b d"]:
        """Vectors [B, D] of tokens [B, L, D]."""
        if self.normalize:
            tokens = unit_vectors(tokens)
        return mean(tokens, None if mask is None else rearrange(mask, "b l -> b l 1"), 1)


class AttentionPool(Pooler):
    """sum_k a_k x_k, a = softmax over the real tokens of w . x_k, w learned.

    HERO's query (Li et al. 2020, arXiv 2005.00200): one vector of a sentence's words, compared with every frame.

    Args:
        dim: D, the width of the tokens.

    Raises:
        ValueError: dim below 1; in forward, tokens of another width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(checks.count("dim", dim), 1, bias=False)  # softmax takes no notice of a bias

    def forward(self, tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b d"]:
        """Vectors [B, D] of tokens [B, L, D]."""
        checks.width("AttentionPool", self.score.in_features, tokens.shape[-1])
        attention = softmax(rearrange(project(self.score, tokens), "b l 1 -> b l"), mask)
        return einsum(attention, tokens, "b l, b l d -> b d")


def check_target(target: str, features: Features, source: str) -> None:
    """Refuse features that have the grain that a head is about to make: it would be overwritten."""
    if target in features:
        raise ValueError(
            f"target: expected features without {target!r}, which is made of {source!r} here, got one; "
            "features.only(...) leaves it out"
        )


class Pool(nn.Module):
    """A head: Features -> Features with one more grain, the pooled vector of another.

    Args:
        source, target: names of the grain that is pooled and of the new one.
        pooler: a Pooler.

    Raises:
        TypeError: no Pooler.
        KeyError, ValueError: in forward, features without the source, or that have the target already.

    Example:
        >>> video = Pool("frame", "video", MeanPool())(Features(frame=torch.randn(5, 4, 16)))
        >>> video.names, video["video"].features.shape
        (('frame', 'video'), torch.Size([5, 16]))
    """

    def __init__(self, source: str, target: str, pooler: Pooler) -> None:
        super().__init__()
        checks.instances(str, source=source, target=target)
        self.source, self.target, self.pooler = source, target, checks.instance("pooler", pooler, Pooler)

    def forward(self, features: Features) -> Features:
        """The features and the new grain [B, D]; an item without a real token of the source has none of the target."""
        checks.instance("features", features, Features)
        tokens = features[self.source].tokenwise()
        check_target(self.target, features, self.source)
        with without_autocast(tokens.features):
            pooled = self.pooler(tokens.filled(), nonempty(tokens.mask))
        real = None if tokens.mask is None else reduce(tokens.mask, "b l -> b 1", "any")
        if real is not None:
            pooled = torch.where(real, pooled, 0.0)
        return Features(**{name: features[name] for name in features.names}, **{self.target: Tokens(pooled, real)})

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"{self.source!r}, {self.target!r}"
