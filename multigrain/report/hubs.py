"""Hubs: items that are among the first for far more queries than their share, and those that never are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

FIRST = 10


@dataclass(frozen=True)
class Hubness:
    """How often each candidate is among the first `k` of a query."""

    counts: Int[Tensor, "c"]
    k: int
    queries: int

    @property
    def skewness(self) -> float:
        """Of the counts: 0 where they are spread evenly about their mean, the larger, the more there are of hubs.

        The usual measure of hubness (Radovanović et al. 2010).
        """
        x = self.counts.double()
        spread = x.std(correction=0)
        return 0.0 if spread == 0 else float(((x - x.mean()) / spread).pow(3).mean())

    @property
    def chance(self) -> float:
        """The skewness that random orders would give: a binomial's."""
        share = self.k / len(self.counts)
        spread = self.queries * share * (1 - share)
        return 0.0 if spread == 0 else (1 - 2 * share) / math.sqrt(spread)

    @property
    def hubs(self) -> list[int]:
        """The candidates, the most frequent first."""
        return self.counts.argsort(descending=True, stable=True).tolist()


def hubness(scores: Float[Tensor, "q c"], k: int = FIRST) -> Hubness:
    """How often each candidate is among the first k of the queries; of fewer candidates, k is their number."""
    k = min(k, scores.shape[1])
    found = scores.topk(k, 1).indices.flatten()
    return Hubness(torch.bincount(found, minlength=scores.shape[1]), k, len(scores))


def distribution(values: Tensor, edges: tuple[int, ...]) -> list[tuple[str, int]]:
    """How many of the values are in each bin, whose last value is an edge; the last bin is open.

    Args:
        values: numbers; a half, as the rank among ties may be, counts to the lower.
        edges: ascending integers; a first bin of them alone has one value.
    """
    whole = values.double().floor()
    bins: list[tuple[str, int]] = []
    low = edges[0]
    for high in edges:
        bins.append((str(high) if low == high else f"{low:,}–{high:,}", int(((whole >= low) & (whole <= high)).sum())))
        low = high + 1
    beyond = int((whole >= low).sum())
    while not beyond and len(bins) > 1 and bins[-1][1] == 0:
        bins.pop()
    return [*bins, (f"above {low - 1:,}", beyond)] if beyond else bins
