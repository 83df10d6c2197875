"""Criterion: a loss of a matrix of scores that is a mean over its rows, and the same over its columns.

    L_q = 1/q sum_i row(x_i)        every query among the candidates
    L_c = 1/c sum_j row(x^T_j)      every candidate among the queries
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .. import checks
from ..aggregators.base import DIRECTIONS
from .base import Loss

Ids: TypeAlias = "Tensor | tuple[Tensor, Tensor]"


class Criterion(Loss):
    """A loss of scores [q, c]. Subclass it and write `rows`; RetrievalLoss can then use it in every way.

    Args:
        direction: "both", or only "query" (each query among the candidates) or "candidate".
        reduction: "mean" (L_q + L_c) / 2 or "sum" L_q + L_c; with one direction both are that one.

    Raises:
        ValueError: an unknown direction or reduction.
    """

    def __init__(self, direction: str = "both", reduction: str = "mean") -> None:
        super().__init__()
        self.direction = checks.choice("direction", direction, DIRECTIONS)
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum"))

    @abstractmethod
    def rows(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q"]:
        """Compute the loss of each query, from its scores of all candidates; `positives` are those that belong to it.

        Scores may come in half precision: widen them.
        """

    @property
    def shares(self) -> tuple[float, float]:
        """Weights of L_q and L_c in the loss."""
        if self.direction != "both":
            return (1.0, 0.0) if self.direction == "query" else (0.0, 1.0)
        return (0.5, 0.5) if self.reduction == "mean" else (1.0, 1.0)

    def forward(self, scores: Float[Tensor, "q c"], ids: Ids | None = None) -> Float[Tensor, ""]:
        """Compute the loss, a scalar.

        Args:
            scores: [queries, candidates]; square unless both ids are given. Half precision is widened to fp32. -inf
                leaves out a pair that does not belong together.
            ids: integers [B] shared by both sides (row i and column i are a pair), or a pair
                ([queries], [candidates]); equal ids are positives. None: the diagonal.

        Raises:
            ValueError: scores or ids of the wrong shape; a row or column without a positive; NaN or infinity, its
                row and column named (on the CPU, where looking for it holds nothing up; elsewhere the loss is NaN).
        """
        positives = matches(scores, ids)
        return self._both_ways(scores, positives, positives)

    def _both_ways(self, scores: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        checks.contrasted(scores, (of_rows > 0) | (of_columns > 0))
        by_query, by_candidate = self.shares
        parts = list[Tensor]()
        if by_query:
            parts.append(by_query * self._rows(scores, of_rows).mean())
        if by_candidate:
            parts.append(by_candidate * self._rows(*(rearrange(x, "q c -> c q") for x in (scores, of_columns))).mean())
        return torch.stack(parts).sum()

    def _rows(self, scores: Tensor, positives: Tensor) -> Tensor:
        return checks.shaped(f"rows of {type(self).__name__}", self.rows(scores, positives), (len(scores),))


class PartialCriterion(Criterion):
    """A criterion whose rows can be computed in parts: a few numbers say all about some columns of a row.

    Ranks exchange these numbers in place of scores. Subclass it and write `partial` and `join`.
    """

    @abstractmethod
    def partial(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q k"]:
        """Compute the numbers that `join` needs from some columns of each row."""

    @abstractmethod
    def join(self, parts: Float[Tensor, "parts q k"]) -> Float[Tensor, "q"]:
        """Compute the loss of each row, from the numbers of all parts of it."""

    def rows(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q"]:
        """Compute the loss of each query, from its scores of all candidates."""
        return self.join(self.partial(scores, positives)[None])


def split_ids(ids: Ids) -> tuple[Tensor, Tensor]:
    """Ids of the queries and of the candidates."""
    if not isinstance(ids, tuple):
        return ids, ids
    checks.require(len(ids) == 2, "ids", "integers [B] or a pair ([queries], [candidates])", f"{len(ids)} of them")
    return ids


def ids_of_scores(scores: Tensor, ids: Ids | None) -> tuple[Tensor, Tensor]:
    """Ids of the queries and of the candidates, numbers where None are given; an error where they do not fit."""
    checks.scores(scores)
    if ids is None:
        checks.square(scores)
        ids = torch.arange(len(scores), device=scores.device)
    queries, candidates = split_ids(ids)
    checks.labels("ids of the queries", queries, scores.shape[0])
    checks.labels("ids of the candidates", candidates, scores.shape[1])
    return queries.to(scores.device), candidates.to(scores.device)


def matches(scores: Tensor, ids: Ids | None) -> Tensor:
    """Positives [queries, candidates], bool: the diagonal, or equal ids; an error where they do not fit the scores."""
    queries, candidates = ids_of_scores(scores, ids)
    positives = rearrange(queries, "q -> q 1") == candidates
    if isinstance(ids, tuple):
        checks.positives(positives)
    return positives
