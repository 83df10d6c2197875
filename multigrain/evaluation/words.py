"""A scorer in words."""

from __future__ import annotations

from torch import nn

from ..grains import Grain
from ..recipes import Recipe
from ..scorer import MultiGrain, grains_of


def in_words(scorer: nn.Module) -> str:
    """Such as "the mean of sentence-video, word-video AOSM(temperature=0.01)"."""
    if isinstance(scorer, Recipe):
        return f"the recipe {scorer.name}"
    if not isinstance(scorer, MultiGrain):
        return type(scorer).__name__
    grains = [_grain(grain) for grain in grains_of(scorer)]
    weights = [float(weight) for weight in scorer.weights]
    if len(set(weights)) == 1 and abs(sum(weights) - 1) < 1e-6:
        return ("the mean of " if len(grains) > 1 else "") + ", ".join(grains)
    return " + ".join(f"{weight:.3g} {grain}" for weight, grain in zip(weights, grains, strict=True))


def _grain(grain: Grain) -> str:
    # A PooledGrain has another repr, and no aggregator.
    aggregator = getattr(grain, "aggregator", None)
    if aggregator is None:
        return grain.name
    words = " ".join(repr(aggregator).split()).replace(", direction='both'", "").replace("(direction='both')", "")
    return f"{grain.name} {words}"
