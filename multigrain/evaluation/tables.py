"""An evaluation in words: the table (each grain by itself, all together, chance), its title, a verdict, the scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from ..grains import Grain
from ..metrics import RetrievalMetrics
from ..recipes import Recipe
from ..scorer import MultiGrain, grains_of

COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
DIRECTION_NAMES = (("t2v", "text → video"), ("v2t", "video → text"))


class Row(NamedTuple):
    """A line of the table: a name, then `COLUMNS` in either direction."""

    name: str
    cells: list[str]
    kind: str
    """"grain", "all" or "chance"""


def chance(candidates: int, protocol: str = "diagonal") -> RetrievalMetrics | None:
    """Return the expected metrics of a random order of so many videos; None where they depend on the captions."""
    if protocol == "all_captions":
        return None
    middle = (candidates + 1) / 2
    one = {f"R@{k}": 100 * min(k, candidates) / candidates for k in (1, 5, 10)} | {"MdR": middle, "MnR": middle}
    return {"t2v": dict(one), "v2t": dict(one), "protocol": protocol, "ties": "mean"}


def rows(metrics: Mapping[str, RetrievalMetrics], candidates: int) -> list[Row]:
    """List every entry of `metrics` (grains, and "all"), then chance where there is one figure for it."""
    grains = len(metrics.keys() - {"all"})
    shown = {name: values for name, values in metrics.items() if name != "all" or grains > 1}
    named = [(name, values, "all" if name == "all" else "grain") for name, values in shown.items()]
    protocol = next((values["protocol"] for values in metrics.values()), "diagonal")
    random = chance(candidates, protocol)
    lines = named if random is None else [*named, ("chance", random, "chance")]
    words = {2: "both", 3: "all three", 4: "all four"}
    together = words.get(grains, "together")
    return [Row(together if kind == "all" else name, _cells(values), kind) for name, values, kind in lines]


def title(texts: int, videos: int, hubness: str | None = None) -> str:
    """Say how many were measured, and whether the scores were corrected by those of the other queries of the test."""
    measured = f"{texts:,} sentences against {videos:,} videos"
    return measured if hubness is None else f"{measured}, corrected by {hubness} (transductive)"


def recall_at_1(metrics: RetrievalMetrics) -> float:
    """Compute R@1 in per cent, the mean of both directions."""
    return (metrics["t2v"]["R@1"] + metrics["v2t"]["R@1"]) / 2


def standard_error(per_cent: float, queries: int) -> float:
    """Compute the binomial standard error of a recall in per cent that was measured with so many queries."""
    share = per_cent / 100
    return 100 * math.sqrt(share * (1 - share) / queries)


def verdict(metrics: Mapping[str, RetrievalMetrics], candidates: int) -> str:
    """Say the result in one sentence."""
    best = recall_at_1(metrics["all"])
    return (
        f"R@1 {best:.1f} % among {candidates:,} (mean of both directions; chance {100 / candidates:.3g} %; "
        f"standard error of one direction {standard_error(best, candidates):.1f})"
    )


def in_words(scorer: nn.Module) -> str:
    """Say what scores, such as "the mean of sentence-video, word-video AOSM(temperature=0.01)"."""
    if isinstance(scorer, Recipe):
        return f"the recipe {scorer.name}"
    if not isinstance(scorer, MultiGrain):
        return type(scorer).__name__
    grains = [_grain_in_words(grain) for grain in grains_of(scorer)]
    weights = [float(weight) for weight in scorer.weights]
    if len(set(weights)) == 1 and abs(sum(weights) - 1) < 1e-6:
        return ("the mean of " if len(grains) > 1 else "") + ", ".join(grains)
    return " + ".join(f"{weight:.3g} {grain}" for weight, grain in zip(weights, grains, strict=True))


def _grain_in_words(grain: Grain) -> str:
    # A PooledGrain has another repr, and no aggregator.
    aggregator = getattr(grain, "aggregator", None)
    if aggregator is None:
        return grain.name
    words = " ".join(repr(aggregator).split()).replace(", direction='both'", "").replace("(direction='both')", "")
    return f"{grain.name} {words}"


def _cells(metrics: RetrievalMetrics) -> list[str]:
    values = [(key, metrics[direction][key]) for direction in ("t2v", "v2t") for key in COLUMNS]
    return [f"{value:g}" if key == "MdR" else f"{value:.1f}" for key, value in values]
