"""NormalizedSoftmax: attention that sees how similarities compare, and not how large they are."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from .. import checks
from ..reduce import attend_normalized
from .base import DIRECTIONS, Aggregator, register_aggregator, two_orders


@register_aggregator("normalized_softmax")
class NormalizedSoftmax(Aggregator):
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
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)
        self.direction = checks.choice("direction", direction, DIRECTIONS)

    def forward(
        self,
        sim: Float[Tensor, "q c m n"],
        query_mask: Bool[Tensor, "q m"] | None = None,
        candidate_mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c"]:
        """Scores [q, c]; 0 with zero gradient where an item has no real token."""
        return two_orders(self._level, sim, query_mask, candidate_mask, self.direction)

    def _level(self, x: Tensor, mask: Tensor | None, dim: int, side: str, depth: str) -> Tensor:
        return attend_normalized(x, mask, dim, self.temperature)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"temperature={self.temperature}, direction={self.direction!r}"
