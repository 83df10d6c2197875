"""Aggregator, those of two levels, and the registry of names.

    sim             [q, c, m, n]   q queries of m tokens, c candidates of n tokens
    query_mask      [q, m]         bool, True = a real token; None = all
    candidate_mask  [c, n]
    scores          [q, c]         fp32 (fp64 stays), before any logit scale

Most aggregators reduce one token axis, then the other. With direction "query" the outer reduction runs over query
tokens of the inner reduction over candidate tokens, with "candidate" the converse; "both" is the mean of the two.
A score depends on its own pair alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, final

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..tokens import Features

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
        """Scores [q, c] of all pairs, before any logit scale.

        Args:
            sim: similarities [q, c, m, n] of m query tokens with n candidate tokens.
            query_mask, candidate_mask: [q, m] and [c, n], True = a real token; None: all are.
        """

    def reads(self, side: str) -> tuple[str, ...]:
        """Names of the grains that `weigh` reads of a side ("query" or "candidate"), beside the compared one."""
        return ()

    def weigh(self, side: str, features: Features, grain: str) -> Float[Tensor, "b l"] | None:
        """Weights of the tokens of a side's grain, for `forward` to take as query_weights or candidate_weights.

        None, as here, where similarities are all that counts: `forward` then takes sim and masks alone.

        Args:
            side: "query" or "candidate".
            features: that side, as given to the grain: neither normalised nor behind a bilinear matrix.
            grain: the name of the compared grain.
        """
        return None


class Axis(NamedTuple):
    """A token axis that a level reduces."""

    dim: int
    """of x"""
    side: str
    """"query" or "candidate": whose tokens they are"""
    depth: str
    """"inner" or "outer" """
    weights: Tensor | None = None
    """of these tokens, broadcastable to x; None: none were given"""


class LevelAggregator(Aggregator):
    """outer(inner(sim)): one token axis is reduced, then the other. Subclass it and write `level`.

    Args:
        direction: "query": the outer level runs over query tokens, "candidate": over candidate tokens, "both": the mean
            of the two orders.

    Raises:
        ValueError: an unknown direction.
    """

    fusable: ClassVar[bool] = False
    """Whether `level` is the `outer` and `inner` reduction that the kernels read; a new `level` says so anew."""

    def __init__(self, direction: str) -> None:
        super().__init__()
        self.direction = checks.choice("direction", direction, DIRECTIONS)
        self.order = self.direction  # in which the levels follow each other, where that differs

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "level" in vars(cls) or "forward" in vars(cls):
            cls.fusable = vars(cls).get("fusable", False)

    @abstractmethod
    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """X without an axis of tokens.

        Args:
            x: similarities, [q, c, m, n] at the inner level, [q, c, m] or [q, c, n] at the outer one.
            mask: broadcastable to x, True = a real token; None: all are.
            axis: which, whose and at what depth.
        """

    @final
    def forward(
        self,
        sim: Float[Tensor, "q c m n"],
        query_mask: Bool[Tensor, "q m"] | None = None,
        candidate_mask: Bool[Tensor, "c n"] | None = None,
        query_weights: Float[Tensor, "q m"] | None = None,
        candidate_weights: Float[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c"]:
        """Scores [q, c]; 0 with zero gradient where an item has no real token.

        Args:
            query_weights, candidate_weights: what `weigh` gave; None: nothing.
        """
        sim = clean(sim, query_mask, candidate_mask)
        scores: list[Tensor] = []
        if self.order != "candidate":
            inner = Axis(3, "candidate", "inner")
            outer = Axis(2, "query", "outer", _axes(query_weights, "q m -> q 1 m"))
            by_query = self.level(sim, _axes(candidate_mask, "c n -> 1 c 1 n"), inner)
            scores.append(self.level(by_query, _axes(query_mask, "q m -> q 1 m"), outer))
        if self.order != "query":
            inner = Axis(2, "query", "inner")
            outer = Axis(2, "candidate", "outer", _axes(candidate_weights, "c n -> 1 c n"))
            by_candidate = self.level(sim, _axes(query_mask, "q m -> q 1 m 1"), inner)
            scores.append(self.level(by_candidate, _axes(candidate_mask, "c n -> 1 c n"), outer))
        return zero_empty(sum(scores[1:], scores[0]) / len(scores), query_mask, candidate_mask)

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"direction={self.direction!r}"


def _axes(t: Tensor | None, pattern: str) -> Tensor | None:
    return None if t is None else rearrange(t, pattern)


def clean(sim: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> Tensor:
    """A checked sim [q, c, m, n] with zeros behind the masks, so that NaN there stays out of every gradient."""
    _check_similarity(sim, query_mask, candidate_mask)
    if query_mask is not None:
        sim = torch.where(rearrange(query_mask, "q m -> q 1 m 1"), sim, 0.0)
    if candidate_mask is not None:
        sim = torch.where(rearrange(candidate_mask, "c n -> 1 c 1 n"), sim, 0.0)
    return sim


def zero_empty(scores: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> Tensor:
    """Scores [q, c] with zeros, and zero gradient, where the query or the candidate has no real token."""
    if query_mask is not None:
        scores = torch.where(reduce(query_mask, "q m -> q 1", "any"), scores, 0.0)
    if candidate_mask is not None:
        scores = torch.where(reduce(candidate_mask, "c n -> 1 c", "any"), scores, 0.0)
    return scores


def _check_similarity(sim: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> None:
    """Check sim [q, c, m, n] and its masks [q, m] and [c, n] (True = a real token)."""
    checks.instance("sim", sim, Tensor)
    if sim.ndim != 4:
        raise ValueError(f"sim: expected [query, candidate, query_token, candidate_token], got {checks.shape(sim)}")
    q, c, m, n = sim.shape
    for name, value, expected in (("query_mask", query_mask, (q, m)), ("candidate_mask", candidate_mask, (c, n))):
        if value is not None:
            checks.mask(name, checks.instance(name, value, Tensor), expected, sim.device)


_REGISTRY: dict[str, type[Aggregator]] = {}

AggregatorClass = TypeVar("AggregatorClass", bound=type[Aggregator])


def register_aggregator(name: str) -> Callable[[AggregatorClass], AggregatorClass]:
    """A class decorator that gives an Aggregator a name, so that Grain("word", "frame", name) and YAML find it.

    Args:
        name: not taken yet, but by a class of the same place: a cell of a notebook may run again.
            `multigrain.aggregators.aggregator_names()` lists those that are.

    Raises:
        ValueError: the name is taken by another class.
        TypeError: the name is no string, or the class not an Aggregator.
    """
    checks.instance("name", name, str)

    def decorate(cls: AggregatorClass) -> AggregatorClass:
        if not (isinstance(cls, type) and issubclass(cls, Aggregator)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"aggregator {name!r}: expected a subclass of Aggregator, got {cls!r}")
        if checks.origin(_REGISTRY.get(name, cls)) != checks.origin(cls):
            raise ValueError(f"aggregator {name!r}: the name is taken by {_REGISTRY[name].__name__}")
        _REGISTRY[name] = cls
        return cls

    return decorate


def aggregator_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_REGISTRY)


def aggregator_classes() -> tuple[type[Aggregator], ...]:
    """The registered classes."""
    return tuple(_REGISTRY.values())


def aggregator_of(value: object) -> Aggregator:
    """An aggregator, as it is or of a registered name with its defaults; an error for anything else."""
    if isinstance(value, str):
        return build_aggregator(value)
    return checks.instance("aggregator", value, Aggregator)


def build_aggregator(name: str, **settings: Any) -> Aggregator:
    """The aggregator of a registered name, with its settings.

    Args:
        name: such as "aosm" or "mean_max", or one of your own.
        settings: the arguments of its class.

    Raises:
        ValueError: no such name, the message lists them; or settings out of range.
        TypeError: settings that the class does not have.
    """
    return _REGISTRY[checks.choice("aggregator", name, _REGISTRY)](**settings)
