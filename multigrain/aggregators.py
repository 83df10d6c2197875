"""Aggregators: from the similarities of all token pairs to one score per (query, candidate) pair.

    sim             [q, c, m, n]   q queries of m tokens, c candidates of n tokens
    query_mask      [q, m]         bool, True = a real token; None = all
    candidate_mask  [c, n]
    scores          [q, c]         fp32 (fp64 stays), before any logit scale

The two-level ones reduce one token axis, then the other. With direction "query" the outer reduction runs over
query tokens of the inner reduction over candidate tokens, with "candidate" the converse; "both" is the mean of
the two. MeanMax has the mean outside. A score depends on its own pair alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from . import checks
from .reduce import Reduction, attend

DIRECTIONS = ("both", "query", "candidate")


class Aggregator(nn.Module, ABC):
    """Turns sim [q, c, m, n] into scores [q, c]. Subclass it and write `forward`; nothing else is needed.

    A score may depend on its own pair alone, and not on what lies behind a mask. The grain zeroes the scores of
    items without a real token, so `forward` need not.
    """

    @abstractmethod
    def forward(
        self,
        sim: Float[Tensor, "q c m n"],
        query_mask: Bool[Tensor, "q m"] | None = None,
        candidate_mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c"]:
        """Scores [q, c] of sim [q, c, m, n] under masks [q, m] and [c, n]."""


class TwoLevel(Aggregator):
    """outer(inner(sim)) in one or both orders of the token axes: the base of all aggregators here.

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
        sim = clean(sim, query_mask, candidate_mask)
        q_mask = None if query_mask is None else query_mask[:, None, :, None]
        c_mask = None if candidate_mask is None else candidate_mask[None, :, None, :]
        scores: list[Tensor] = []
        if self.direction != "candidate":
            by_query = self.inner(sim, c_mask, 3)
            scores.append(self.outer(by_query, None if q_mask is None else q_mask[..., 0], 2))
        if self.direction != "query":
            by_candidate = self.inner(sim, q_mask, 2)
            scores.append(self.outer(by_candidate, None if c_mask is None else c_mask[:, :, 0], 2))
        return zero_empty(sum(scores[1:], scores[0]) / len(scores), query_mask, candidate_mask)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        tempered = self.outer.kind in ("softmax", "logsumexp")
        return f"temperature={self.outer.temperature}, " * tempered + f"direction={self.direction!r}"


class MeanMean(TwoLevel):
    """The mean over all token pairs; `direction` changes nothing."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("mean"), Reduction("mean"), direction)


class MeanMax(TwoLevel):
    """mean_i max_j: each token's best match, averaged. FILIP per direction; X-CLIP's Mean-Max; DRL's TI."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("mean"), Reduction("max"), direction)


class MaxMean(TwoLevel):
    """max_i mean_j: the token that matches the other side best as a whole (X-CLIP's Max-Mean)."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("max"), Reduction("mean"), direction)


class MaxMax(TwoLevel):
    """The best token pair (X-CLIP's Max-Max); `direction` changes nothing."""

    def __init__(self, direction: str = "both") -> None:
        super().__init__(Reduction("max"), Reduction("max"), direction)


class MaxSim(TwoLevel):
    """sum_i max_j over query tokens i (ColBERT). Unlike MeanMax, it grows with the query's length."""

    def __init__(self, direction: str = "query") -> None:
        super().__init__(Reduction("sum"), Reduction("max"), direction)


class LogSumExp(TwoLevel):
    """t log sum_ij exp(sim_ij / t), a smooth maximum over token pairs; `direction` changes nothing.

    max <= LogSumExp <= max + t log(m n). Raises ValueError for a temperature that is not positive and finite.
    """

    def __init__(self, temperature: float = 0.1, direction: str = "both") -> None:
        super().__init__(Reduction("logsumexp", temperature), Reduction("logsumexp", temperature), direction)


class AOSM(TwoLevel):
    """Attention over the similarity matrix (Ma et al. 2022, arXiv 2207.07285, section 3.3).

    One level is sum_k softmax(x / t)_k x_k. The query direction attends over candidate tokens, then over query
    tokens; the candidate direction the converse; "both" averages them, as the paper. Where a side has one token
    this is the single softmax of the paper's video-word and sentence-frame scores. It tends to MeanMean as the
    temperature grows and to MaxMax as it goes to 0.

    Args:
        temperature: sharpness t, the paper's tau.
        direction: "both", "query" or "candidate".
        query_tokens, candidate_tokens: the most tokens of that side. They switch on the identity-initialised
            mixing matrices that the code of X-CLIP (not the paper) multiplies into the attention after the
            softmax; shorter inputs slice them from the top left. With one of the two given, the other side
            must be coarse and one matrix is learned (`inner_query` or `inner_candidate`); with both, four.

    Raises:
        ValueError: a temperature that is not positive and finite, an unknown direction; in forward, more tokens
            than the matrices have, or a side without a matrix that is not coarse.
    """

    inner_query: Tensor | None
    outer_query: Tensor | None
    inner_candidate: Tensor | None
    outer_candidate: Tensor | None

    def __init__(
        self,
        temperature: float = 0.01,
        direction: str = "both",
        query_tokens: int | None = None,
        candidate_tokens: int | None = None,
    ) -> None:
        super().__init__(Reduction("softmax", temperature), Reduction("softmax", temperature), direction)
        both = query_tokens is not None and candidate_tokens is not None
        for side, size in (("query", query_tokens), ("candidate", candidate_tokens)):
            self.register_parameter(f"inner_{side}", _identity(f"{side}_tokens", size))
            self.register_parameter(f"outer_{side}", _identity(f"{side}_tokens", size) if both else None)

    @property
    def mixes(self) -> bool:
        """Whether there are learned mixing matrices."""
        return self.inner_query is not None or self.inner_candidate is not None

    def forward(
        self,
        sim: Float[Tensor, "q c m n"],
        query_mask: Bool[Tensor, "q m"] | None = None,
        candidate_mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c"]:
        """Scores [q, c]; 0 with zero gradient where an item has no real token."""
        if not self.mixes:
            return super().forward(sim, query_mask, candidate_mask)
        sim = clean(sim, query_mask, candidate_mask)
        t = self.inner.temperature
        q_mask = None if query_mask is None else query_mask[:, None, :]
        c_mask = None if candidate_mask is None else candidate_mask[None]
        query = (q_mask, self.mixing("query", sim.shape[2]))
        candidate = (c_mask, self.mixing("candidate", sim.shape[3]))
        if self.inner_candidate is None:
            return zero_empty(attend(sim[..., 0], query[0], 2, t, query[1][0]), query_mask, candidate_mask)
        if self.inner_query is None:
            return zero_empty(attend(sim[:, :, 0], candidate[0], 2, t, candidate[1][0]), query_mask, candidate_mask)
        scores: list[Tensor] = []
        for name, x, inner, outer in (("query", sim, candidate, query), ("candidate", sim.mT, query, candidate)):
            if self.direction in ("both", name):
                tokens = attend(x, None if inner[0] is None else inner[0][:, :, None], 3, t, inner[1][0])
                scores.append(attend(tokens, outer[0], 2, t, outer[1][1]))
        return zero_empty(sum(scores[1:], scores[0]) / len(scores), query_mask, candidate_mask)

    def mixing(self, side: str, length: int) -> tuple[Tensor | None, Tensor | None]:
        """The inner and the outer matrix [length, length] of a side of so many tokens; None where there is none.

        Raises:
            ValueError: more tokens than the matrices have, or a side without a matrix that is not coarse.
        """
        inner, outer = getattr(self, f"inner_{side}"), getattr(self, f"outer_{side}")
        limit = 1 if inner is None else inner.shape[0]
        if length > limit:
            raise ValueError(
                f"sim: expected at most {limit} {side} tokens (the size of AOSM's mixing matrix; "
                f"1 where it has none), got {length}"
            )
        return tuple(None if w is None else w[:length, :length] for w in (inner, outer))  # type: ignore[return-value]


def clean(sim: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> Tensor:
    """A checked sim [q, c, m, n] with zeros behind the masks, so that NaN there stays out of every gradient."""
    checks.similarity(sim, query_mask, candidate_mask)
    if query_mask is not None:
        sim = torch.where(query_mask[:, None, :, None], sim, 0.0)
    if candidate_mask is not None:
        sim = torch.where(candidate_mask[None, :, None, :], sim, 0.0)
    return sim


def zero_empty(scores: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> Tensor:
    """Scores [q, c] with zeros, and zero gradient, where the query or the candidate has no real token."""
    if query_mask is not None:
        scores = torch.where(query_mask.any(1)[:, None], scores, 0.0)
    if candidate_mask is not None:
        scores = torch.where(candidate_mask.any(1)[None], scores, 0.0)
    return scores


def _identity(name: str, size: int | None) -> nn.Parameter | None:
    return None if size is None else nn.Parameter(torch.eye(checks.count(name, size)))


_REGISTRY: dict[str, type[Aggregator]] = {
    "aosm": AOSM,
    "mean_mean": MeanMean,
    "mean_max": MeanMax,
    "max_mean": MaxMean,
    "max_max": MaxMax,
    "max_sim": MaxSim,
    "logsumexp": LogSumExp,
}

AggregatorClass = TypeVar("AggregatorClass", bound=type[Aggregator])


def register_aggregator(name: str) -> Callable[[AggregatorClass], AggregatorClass]:
    """A class decorator that gives an Aggregator a name, so that Grain("word", "frame", name) and YAML find it.

    Raises:
        ValueError: the name is taken by another class.
        TypeError: the class is not an Aggregator.
    """

    def decorate(cls: AggregatorClass) -> AggregatorClass:
        if not issubclass(cls, Aggregator):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"aggregator {name!r}: expected a subclass of Aggregator, got {cls!r}")
        if _REGISTRY.get(name, cls) is not cls:
            raise ValueError(f"aggregator {name!r}: the name is taken by {_REGISTRY[name].__name__}")
        _REGISTRY[name] = cls
        return cls

    return decorate


def aggregator_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_REGISTRY)


def build_aggregator(name: str, **settings: Any) -> Aggregator:
    """The aggregator of a registered name, with its settings.

    Raises:
        ValueError: no such name; the message lists them.
    """
    return _REGISTRY[checks.choice("aggregator", name, _REGISTRY)](**settings)
