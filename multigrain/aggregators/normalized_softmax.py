"""NormalizedSoftmax: attention that sees how similarities compare, and not how large they are."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..reduce import attend_normalized
from .base import Axis, LevelAggregator, register_aggregator


@register_aggregator("normalized_softmax")
class NormalizedSoftmax(LevelAggregator):
    """TS2-Net's weighting of frames (Liu et al. 2022, arXiv 2207.07852): one level is sum_k a_k x_k with
    a = softmax(x / (t |x|)), |x| the Euclidean length of the level's real similarities.

    TS2-Net compares one sentence with its frames, where there is one level, and blends that score with a global one:
    MultiGrain(..., weights=[blend, 1 - blend]). Where both sides have tokens, the levels follow each other as in AOSM.

    Args:
        temperature: sharpness t; 1 / t is TS2-Net's factor of 4.
        direction: "both", "query" or "candidate"; all the same where a side has one token.

    Raises:
        ValueError: a temperature that is not positive and finite, or an unknown direction.
    """

    def __init__(self, temperature: float = 0.25, direction: str = "both") -> None:
        super().__init__(direction)
        self.temperature = checks.positive("temperature", temperature)

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """Attention to what stands out among the similarities."""
        return attend_normalized(x, mask, axis.dim, self.temperature)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"temperature={self.temperature}, {super().extra_repr()}"
