"""outer(inner(sim)): means, sums, maxima and their smooth forms. MeanMax has the mean outside."""

from __future__ import annotations

from torch import Tensor

from ..reduce import Reduction
from .base import Axis, LevelAggregator, register_aggregator


class TwoLevel(LevelAggregator):
    """outer(inner(sim)) in one or both orders of the token axes, by reductions that kernels can read.

    Args:
        outer, inner: the reductions.
        direction: "query" (outer over query tokens), "candidate" or "both" (their mean).

    Raises:
        ValueError: unknown direction.
    """

    fusable = True

    def __init__(self, outer: Reduction, inner: Reduction, direction: str) -> None:
        super().__init__(direction)
        self.outer, self.inner = outer, inner

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """The reduction of that depth."""
        return (self.inner if axis.depth == "inner" else self.outer)(x, mask, axis.dim)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        tempered = self.outer.kind in ("softmax", "logsumexp")
        return f"temperature={self.outer.temperature}, " * tempered + super().extra_repr()


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
