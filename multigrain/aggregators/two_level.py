"""outer(inner(sim)): means, sums, maxima and their smooth forms. MeanMax has the mean outside."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from .. import checks
from ..reduce import Reduction
from .base import DIRECTIONS, Aggregator, register_aggregator, two_orders


class TwoLevel(Aggregator):
    """outer(inner(sim)) in one or both orders of the token axes, by reductions that kernels can read.

    Args:
        outer, inner: the reductions.
        direction: "query" (outer over query tokens), "candidate" or "both" (their mean).

    Raises:
        ValueError: unknown direction.
    """

    def __init__(self, outer: Reduction, inner: Reduction, direction: str) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
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
        return (self.inner if depth == "inner" else self.outer)(x, mask, dim)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        tempered = self.outer.kind in ("softmax", "logsumexp")
        return f"temperature={self.outer.temperature}, " * tempered + f"direction={self.direction!r}"


@register_aggregator("mean_mean")
class MeanMean(TwoLevel):
    """The mean over all token pairs; `direction` changes nothing."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("mean"), Reduction("mean"), direction)


@register_aggregator("mean_max")
class MeanMax(TwoLevel):
    """mean_i max_j x_ij: each token's best match, averaged. FILIP per direction; X-CLIP's Mean-Max; DRL's TI.

    Args:
        direction: whose tokens are i: "query" the query's, "candidate" the candidate's, "both" the mean of the two.

    Raises:
        ValueError: an unknown direction.
    """

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("mean"), Reduction("max"), direction)


@register_aggregator("max_mean")
class MaxMean(TwoLevel):
    """max_i mean_j x_ij: the token that matches the other side best as a whole (X-CLIP's Max-Mean).

    Args:
        direction: as in MeanMax.

    Raises:
        ValueError: an unknown direction.
    """

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("max"), Reduction("mean"), direction)


@register_aggregator("max_max")
class MaxMax(TwoLevel):
    """The best token pair (X-CLIP's Max-Max); `direction` changes nothing."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("max"), Reduction("max"), direction)


@register_aggregator("max_sim")
class MaxSim(TwoLevel):
    """sum_i max_j x_ij over query tokens i (ColBERT: Khattab and Zaharia 2020, arXiv 2004.12832).

    Unlike MeanMax, it grows with the query's length.

    Args:
        direction: as in MeanMax.

    Raises:
        ValueError: an unknown direction.
    """

    def __init__(self, direction: str = "query") -> None:
        super().__init__(Reduction("sum"), Reduction("max"), direction)


@register_aggregator("logsumexp")
class LogSumExp(TwoLevel):
    """t log sum_ij exp(x_ij / t), a smooth maximum over token pairs: max <= LogSumExp <= max + t log(m n).

    Args:
        temperature: sharpness t.
        direction: changes nothing.

    Raises:
        ValueError: a temperature that is not positive and finite, an unknown direction.
    """

    def __init__(self, temperature: float = 0.1, direction: str = "both") -> None:
        super().__init__(Reduction("logsumexp", temperature), Reduction("logsumexp", temperature), direction)
