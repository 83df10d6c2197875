"""Why a pair has its score: each grain's part in it, and the weight of every pair of tokens.

A score of AOSM is a sum over token pairs, and its weights are those of its two softmaxes:

    query direction      p_ij over candidate tokens j for each query token i, a_i over i:  sum_ij a_i p_ij x_ij
    candidate direction  r_ij over query tokens i for each candidate token j, b_j over j:  sum_ij b_j r_ij x_ij
    both                 their mean, so token pair (i, j) has the weight (a_i p_ij + b_j r_ij) / 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from . import checks
from .aggregators import AOSM, Aggregator, TwoLevel
from .grains import Grain
from .grains.pooled import PooledGrain
from .reduce import Reduction
from .scorer import MultiGrain
from .tokens import Features, Tokens


@dataclass(frozen=True)
class Levels:
    """The weights of one direction: inner first, then outer."""

    inner: Float[Tensor, "m n"]
    """p_ij of the query direction, or r_ij of the candidate direction"""
    outer: Float[Tensor, "m"] | Float[Tensor, "n"]
    """a_i over query tokens, or b_j over candidate tokens"""


@dataclass(frozen=True)
class Weights:
    """The weights of one pair's token similarities x [m, n] in its score: score = sum_ij cells_ij x_ij.

    The score of a PooledGrain is no such sum: its cells are the change of the score by each candidate token.
    """

    cells: Float[Tensor, "m n"]
    """the weight of every token pair, both levels and directions together"""
    query: Levels | None = None
    """outer over query tokens; None where that direction is not used"""
    candidate: Levels | None = None
    """outer over candidate tokens"""


@dataclass(frozen=True)
class Part:
    """One grain's part in the score of one pair; tokens are the real ones."""

    query: str
    candidate: str
    sim: Float[Tensor, "m n"]
    weights: Weights
    score: float
    share: float
    """the grain's weight in the combined score, which is the sum of share * score over the grains"""


@torch.no_grad()
def explain(scorer: nn.Module, text: Features, video: Features) -> dict[str, Part]:
    """Each grain's part in the score of one text and one video, by the grain's name.

    Args:
        scorer: the MultiGrain that gives the score.
        text, video: features of one item each.

    Raises:
        TypeError: a scorer that is no MultiGrain.
        ValueError: more than one item, or a score that is NaN or infinite.
    """
    scorer = checks.instance("scorer", scorer, MultiGrain)
    for name, features in (("text", text), ("video", video)):
        if len(features) != 1:
            raise ValueError(f"{name}: expected the features of one item, got {len(features)}")
    scores = scorer.scores_by_grain(text, video)
    for name, score in scores.items():
        if not score.isfinite():
            raise ValueError(f"grain {name!r}: expected a finite score, got {float(score)}")
    parts: dict[str, Part] = {}
    for grain, share in zip(cast("list[Grain | PooledGrain]", list(scorer.grains)), scorer.weights, strict=True):
        sim = grain.similarity(text, video)[0, 0]
        sim = sim[text[grain.query].real_mask[0]][:, video[grain.candidate].real_mask[0]]
        if isinstance(grain, PooledGrain):
            weights = Weights(_contributions(grain, text, video, scores[grain.name]))
        else:
            sides = zip(grain.weigh(text, video), (text[grain.query], video[grain.candidate]), strict=True)
            given = [None if w is None else w[0][side.real_mask[0]] for w, side in sides]
            weights = token_weights(grain.aggregator, sim, *given)
        parts[grain.name] = Part(grain.query, grain.candidate, sim, weights, float(scores[grain.name]), float(share))
    return parts


def token_weights(
    aggregator: Aggregator | None,
    sim: Float[Tensor, "m n"],
    query_weights: Float[Tensor, "m"] | None = None,
    candidate_weights: Float[Tensor, "n"] | None = None,
) -> Weights:
    """The weights by which an aggregator turns the similarities [m, n] of one pair's real tokens into its score.

    Exact for means, sums, maxima (ties share), TokenWeighted with the weights that it gave to the tokens, and AOSM with
    its mixing matrices. For `LogSumExp`, `cells` are the gradient of the score instead; so they are for an aggregator
    that is not two-level, such as one of your own, which has no levels.
    """
    if aggregator is None:
        return Weights(torch.ones_like(sim))
    if not isinstance(aggregator, TwoLevel):
        with torch.enable_grad():
            x = sim.detach().requires_grad_()
            (cells,) = torch.autograd.grad(aggregator(x[None, None]).sum(), x)
        return Weights(cells)
    query = candidate = None
    terms: list[Tensor] = []
    if aggregator.direction != "candidate":
        query = _levels(aggregator, sim, "candidate", "query", query_weights)
        terms.append(einsum(query.outer, query.inner, "m, m n -> m n"))
    if aggregator.direction != "query":
        turned = _levels(aggregator, sim.T, "query", "candidate", candidate_weights)
        candidate = Levels(turned.inner.T, turned.outer)
        terms.append(einsum(candidate.outer, candidate.inner, "n, m n -> m n"))
    return Weights(reduce(terms, "direction m n -> m n", "mean"), query, candidate)


def _contributions(grain: PooledGrain, text: Features, video: Features, score: Tensor) -> Tensor:
    """The changes [1, n] of a pair's score by each real candidate token: the score minus the score without it."""
    tokens = video[grain.candidate].tokenwise()
    real = tokens.real_mask[0]
    others = ~torch.eye(len(real), dtype=torch.bool, device=real.device)[real] & real
    each = Tokens(repeat(tokens.features, "1 n d -> k n d", k=len(others)), others, unit=tokens.unit)
    return score - grain(text, Features(**{grain.candidate: each}))


def _levels(aggregator: TwoLevel, x: Tensor, inner_side: str, outer_side: str, given: Tensor | None) -> Levels:
    """The weights along the last axis of x (inner) and then along the first (outer), unless those are given."""
    inner = _level(aggregator.inner, x, _mixing(aggregator, f"inner_{inner_side}", x.shape[1]))
    if given is not None:
        return Levels(inner, given)
    logs = aggregator.inner.kind == "logsumexp"
    value = aggregator.inner(x, None, 1) if logs else (inner * x).sum(1)
    return Levels(inner, _level(aggregator.outer, value, _mixing(aggregator, f"outer_{outer_side}", len(x))))


def _level(reduction: Reduction, x: Tensor, mixing: Tensor | None) -> Tensor:
    """The weights of one reduction along the last axis."""
    if reduction.kind in ("softmax", "logsumexp"):
        weights = (x / reduction.temperature).softmax(-1)
        return weights if mixing is None else weights @ mixing
    if reduction.kind == "max":
        best = (x == x.amax(-1, keepdim=True)).to(x.dtype)
        return best / best.sum(-1, keepdim=True)
    return torch.full_like(x, 1 / x.shape[-1] if reduction.kind == "mean" else 1)


def _mixing(aggregator: TwoLevel, name: str, size: int) -> Tensor | None:
    """One of AOSM's learned matrices, cut to the tokens that are here."""
    if not isinstance(aggregator, AOSM):
        return None
    matrix: Tensor | None = getattr(aggregator, name)
    if matrix is None:
        # Where one side is mixed there is one matrix, called inner; the other side is a single token.
        matrix = getattr(aggregator, name.replace("outer", "inner"))
    return None if matrix is None else matrix[:size, :size]
