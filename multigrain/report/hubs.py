"""Hubs: items that are among the first for far more queries than their share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

FIRST = 10


@dataclass(frozen=True)
class Hubness:
    """Numbers of queries that have each candidate among their first `k`."""

    counts: Int[Tensor, "c"]
    k: int
    queries: int

    @property
    def skewness(self) -> float:
        """Skewness of the counts: 0 if they are spread evenly about their mean, the larger, the more hubs there are.

        This is the usual measure of hubness (Radovanović et al. 2010).
        """
        x = self.counts.double()
        spread = x.std(correction=0)
        return 0.0 if spread == 0 else float(((x - x.mean()) / spread).pow(3).mean())

    @property
    def chance(self) -> float:
        """Skewness that random orders would give: that of a binomial distribution."""
        share = self.k / len(self.counts)
        spread = self.queries * share * (1 - share)
        return 0.0 if spread == 0 else (1 - 2 * share) / math.sqrt(spread)

    @property
    def hubs(self) -> list[int]:
        """Candidates, the most frequent first."""
        return self.counts.argsort(descending=True, stable=True).tolist()


def hubness(scores: Float[Tensor, "q c"], k: int = FIRST) -> Hubness:
    """Count how often each candidate is among the first k (at most the number of candidates) of a query."""
    k = min(k, scores.shape[1])
    found = scores.topk(k, 1).indices.flatten()
    return Hubness(torch.bincount(found, minlength=scores.shape[1]), k, len(scores))


def distribution(values: Tensor, edges: tuple[int, ...]) -> list[tuple[str, int]]:
    """Count the values in each bin; every edge is the last value of a bin, and the bin after the last edge is open.

    Args:
        values: numbers, rounded down (the mean rank of a tie may end with a half).
        edges: ascending integers; the first is a bin of its own.
    """
    values = values.double().floor()
    bins: list[tuple[str, int]] = []
    low = edges[0]
    for high in edges:
        name = str(high) if low == high else f"{low:,}–{high:,}"
        bins.append((name, int(((values >= low) & (values <= high)).sum())))
        low = high + 1
    beyond = int((values >= low).sum())
    while not beyond and len(bins) > 1 and bins[-1][1] == 0:
        bins.pop()
    return [*bins, (f"above {low - 1:,}", beyond)] if beyond else bins
