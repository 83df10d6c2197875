"""Means over seeds and the intervals around them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# The 0.975 quantile of Student's t with 1, 2, ... degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval."""

    mean: float
    half: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        return (self.mean > self.half) - (self.mean < -self.half)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half:.1f}"

    @property
    def signed(self) -> str:
        """The estimate with its sign, for a difference."""
        return f"{round(self.mean, 1) + 0.0:+.1f} ± {self.half:.1f}".replace("-", "−")


def interval(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, with Student's t for its interval.

    Raises:
        ValueError: fewer than two values, or more than the table is for.
    """
    n = len(values)
    if not 2 <= n <= len(T) + 1:
        raise ValueError(f"values: expected those of 2 to {len(T) + 1} seeds, got {n}")
    return Estimate(statistics.mean(values), T[n - 2] * statistics.stdev(values) / math.sqrt(n))


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b, seed by seed: what seeds do to both cancels."""
    return interval([x - y for x, y in zip(a, b, strict=True)])
