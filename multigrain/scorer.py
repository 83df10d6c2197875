"""MultiGrain: several grains combined into one score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import checks
from .grains import Grain
from .grains.pooled import PooledGrain
from .kernels import dispatch
from .tokens import Features, check_finite


class MultiGrain(nn.Module):
    """scores = sum_g w_g grain_g(query, candidate).

    Args:
        grains: Grain or PooledGrain, with distinct names.
        weights: "mean" (1 / number of grains, as X-CLIP), one number per grain, or "learned" (a softmax over one
            parameter per grain, the mean at first).
        backend: the backend that computes the scores of the grains; see `Grain.forward`.
        strict: raise where a real token holds NaN or infinity, or an item has no real token, instead of scoring
            the latter 0. It reads the values, which synchronises a GPU.

    Raises:
        ValueError: no grain, a name twice, or weights that do not fit.

    Example:
        >>> scorer = MultiGrain(Grain("sentence", "video"), Grain("sentence", "frame", "aosm"))
        >>> text = Features(sentence=torch.randn(3, 16))
        >>> video = Features(video=torch.randn(5, 16), frame=torch.randn(5, 4, 16))
        >>> scorer(text, video).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        *grains: Grain | PooledGrain,
        weights: str | Sequence[float] = "mean",
        strict: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _check_grains(grains)
        self.grains = nn.ModuleList(grains)
        self.strict, self.backend = strict, None if backend is None else dispatch.choice(backend)
        self.weight_logits: nn.Parameter | None = None
        # Python floats, not a buffer: `.half()` or fp64 scores must not meet weights rounded to fp32.
        self._fixed_weights = [1 / len(grains)] * len(grains)
        if not isinstance(weights, str):
            self._fixed_weights = _checked_weights(weights, len(grains))
        elif checks.choice("weights", weights, ("mean", "learned")) == "learned":
            self.weight_logits = nn.Parameter(torch.zeros(len(grains)))

    @property
    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of all grains that the scores depend on, of the query and of the candidate."""
        of_query, of_candidate = zip(*(grain.reads for grain in grains_of(self)), strict=True)
        return frozenset[str]().union(*of_query), frozenset[str]().union(*of_candidate)

    @property
    def weights(self) -> Sequence[float] | Float[Tensor, "g"]:
        """The weight of each grain, in their order: numbers, or a tensor where they are learned."""
        return self._fixed_weights if self.weight_logits is None else self.weight_logits.softmax(0)

    def forward(self, query: Features, candidate: Features) -> Float[Tensor, "q c"]:
        """Scores [queries, candidates] of all pairs (texts x videos), before any logit scale.

        Raises:
            KeyError: a grain that the features lack; the message lists those that are there.
            ValueError: features that do not fit together; with strict, bad values, naming grain and row.
        """
        scores = self.scores_by_grain(query, candidate).values()
        first, *rest = (weight * score for weight, score in zip(self.weights, scores, strict=True))
        return sum(rest, first)

    def scores_by_grain(self, query: Features, candidate: Features) -> dict[str, Float[Tensor, "q c"]]:
        """Each grain's own scores [queries, candidates], by its name, unweighted. Raises what a call raises."""
        checks.instances(Features, query=query, candidate=candidate)
        if self.strict:
            for names, features in zip(self.reads, (query, candidate), strict=True):
                for name in sorted(names):
                    check_finite(name, features[name])
        return {grain.name: grain(query, candidate, self.backend) for grain in grains_of(self)}


def grains_of(scorer: nn.Module) -> list[Grain]:
    """The grains of a MultiGrain; an empty list for any other scorer."""
    return cast("list[Grain]", list(scorer.grains)) if isinstance(scorer, MultiGrain) else []


def _check_grains(grains: Sequence[Grain | PooledGrain]) -> None:
    """Refuse an empty list, an object that is no grain, and a name that occurs twice."""
    if not grains:
        raise ValueError("grains: expected at least one Grain, got none")
    for i, grain in enumerate(grains):
        if isinstance(grain, type) or not hasattr(grain, "similarity"):
            raise TypeError(f"grains[{i}]: expected a Grain, got {checks.named(grain)}")
    names = [grain.name for grain in grains]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"grains: expected distinct names, got {', '.join(repeated)} more than once; pass name=")


def _checked_weights(values: Sequence[float], grains: int) -> list[float]:
    """One finite number for each grain, or an error."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise TypeError(f"weights: expected {grains} numbers, one for each grain, got {checks.short(values)}") from None
    if len(numbers) != grains or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"weights: expected {grains} finite numbers, one for each grain, got {checks.short(numbers)}")
    return numbers
