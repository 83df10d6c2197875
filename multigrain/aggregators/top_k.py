"""TopK: the mean over the tokens that match best."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..reduce import maximum, mean_of_top
from .base import Axis, LevelAggregator, register_aggregator


@register_aggregator("top_k")
class TopK(LevelAggregator):
    """mean over the k best i of max_j: MeanMax of the tokens that match best, as FILIP keeps 25 % of its tokens.

    FILIP (Yao et al. 2021, arXiv 2111.07783) chooses the tokens of a whole batch before it gathers them; here each
    pair chooses its own, so that a score depends on its own pair alone. k = all is MeanMax, k = 1 MaxMax.

    Args:
        k: how many tokens count; of an item with fewer, all.
        share: instead of k, which share of an item's real tokens counts, rounded up; default 0.25.
        direction: "both", "query" (the best query tokens) or "candidate".

    Raises:
        ValueError: both k and share, k below 1, a share outside (0, 1], an unknown direction.
    """

    def __init__(self, k: int | None = None, share: float | None = None, direction: str = "both") -> None:
        super().__init__(direction)
        checks.require(k is None or share is None, "share", "none beside k", share)
        self.k = None if k is None else checks.count("k", k)
        self.share = None if k is not None else checks.positive("share", 0.25 if share is None else share)
        checks.require(self.share is None or self.share <= 1, "share", "at most 1", share)

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """The best match, then the mean of the best of these."""
        if axis.depth == "inner":
            return maximum(x, mask, axis.dim)
        return mean_of_top(x, self._count(x, mask, axis.dim), mask, axis.dim)

    def _count(self, x: Tensor, mask: Tensor | None, dim: int) -> Tensor | int:
        """The number of entries that count: one for all, or one for each item, with `dim` kept as 1."""
        if self.share is None:
            assert self.k is not None
            return self.k
        if mask is None:
            return math.ceil(self.share * x.shape[dim])
        return torch.ceil(self.share * mask.sum(dim, keepdim=True).double()).long()

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        size = f"share={self.share}" if self.k is None else f"k={self.k}"
        return f"{size}, {super().extra_repr()}"
