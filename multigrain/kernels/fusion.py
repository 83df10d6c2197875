"""Two-level aggregators, translated into the arguments of a fused kernel."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from .. import checks
from ..aggregators import AOSM, Aggregator, TwoLevel
from ..reduce import without_autocast
from ..similarity import UNWEIGHTED, TokenWeights
from ..tokens import Tokens
from .ops import fused_scores
from .spec import Operand, Spec

LINEAR = ("mean", "sum")


def fuses(aggregator: Aggregator, backend: str) -> TypeGuard[TwoLevel]:
    """Tell whether a backend's kernel may serve: an outer(inner(sim)) and nothing else, without hooks and patches;
    mixing matrices are for "triton" alone."""
    if not (isinstance(aggregator, TwoLevel) and aggregator.fusable) or (_mixes(aggregator) and backend != "triton"):
        return False
    return not (vars(aggregator).keys() & _PATCHES or any(getattr(aggregator, hooks) for hooks in _HOOKS))


def _mixes(aggregator: TwoLevel) -> TypeGuard[AOSM]:
    return isinstance(aggregator, AOSM) and aggregator.mixes


_PATCHES = {"forward", "level"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def two_level_scores(
    aggregator: TwoLevel, query: Tokens, candidate: Tokens, backend: str, weights: TokenWeights = UNWEIGHTED
) -> Tensor:
    """Compute scores [q, c] of an aggregator that `fuses`; weights take the place of a linear outer reduction's own."""
    direction = aggregator.direction
    if _mixes(aggregator):
        return _mixed(aggregator, query, candidate, backend)
    if aggregator.inner.kind in LINEAR:
        return _pooled(aggregator, query, candidate, backend)
    if direction == "both" and _commutes(aggregator, query, candidate):
        direction = "query" if candidate.length > 1 else "candidate"
    if direction == "candidate":
        return _fused(aggregator, candidate, query, False, backend, weights[::-1]).T
    return _fused(aggregator, query, candidate, direction == "both", backend, weights)


def _commutes(aggregator: TwoLevel, query: Tokens, candidate: Tokens) -> bool:
    """Tell whether both directions give the same score, so that one of them will do."""
    coarse = 1 in (query.length, candidate.length)
    return aggregator.outer == aggregator.inner and (coarse or aggregator.inner.kind == "logsumexp")


def _fused(
    aggregator: TwoLevel,
    query: Tokens,
    candidate: Tokens,
    both: bool,
    backend: str,
    weights: tuple[Tensor | None, ...] = (None, None),
) -> Tensor:
    outer, inner = aggregator.outer, aggregator.inner
    kind = "linear" if outer.kind in LINEAR else outer.kind
    dtype = _wide(query, candidate)
    return fused_scores(
        _operand(query, outer.kind, dtype, weights[0]),
        _operand(candidate, outer.kind if both else None, dtype, weights[1]),
        Spec(inner.kind, inner.temperature, kind, outer.temperature, both),
        backend,
    )


def _mixed(aggregator: AOSM, query: Tokens, candidate: Tokens, backend: str) -> Tensor:
    """Score by AOSM with mixing matrices; a matrix that a direction does not use gets no gradient."""
    dtype, t = _wide(query, candidate), aggregator.inner.temperature
    q, c = _operand(query, None, dtype), _operand(candidate, None, dtype)
    (q_inner, q_outer), (c_inner, c_outer) = (
        [aggregator.matrix(name, depth, side.length) for depth in ("inner", "outer")]
        for name, side in (("query", query), ("candidate", candidate))
    )
    # With one matrix there is one direction, its side the inner one: attention of one token to itself is nothing.
    direction = "query" if q_inner is None else "candidate" if c_inner is None else aggregator.direction
    spec = Spec("softmax", t, "softmax", t, direction == "both")
    if direction == "both":
        q, c = q._replace(inner=q_inner, outer=q_outer), c._replace(inner=c_inner, outer=c_outer)
        return fused_scores(q, c, spec, backend)
    if direction == "query":
        return fused_scores(q._replace(outer=q_outer), c._replace(inner=c_inner), spec, backend)
    return fused_scores(c._replace(outer=c_outer), q._replace(inner=q_inner), spec, backend).T


def _wide(query: Tokens, candidate: Tokens) -> torch.dtype | None:
    """fp64 where either side is; else None: kernels widen half precision as they read it."""
    return torch.float64 if torch.float64 in (query.dtype, candidate.dtype) else None


def _operand(tokens: Tokens, outer: str | None, dtype: torch.dtype | None, given: Tensor | None = None) -> Operand:
    tokens = tokens.tokenwise().to(dtype=dtype)
    if not tokens.unit and _long(tokens.features):
        tokens = tokens.normalized()
    weights = None
    if outer in LINEAR:
        weights = linear_weights(tokens, outer) if given is None else given.to(dtype=dtype)
    return Operand(tokens.features, tokens.mask, weights, not tokens.unit)


def _long(x: Tensor) -> bool:
    """Tell whether fp32 might not hold a squared norm. False where a look would hold things up: kernels then score such
    tokens NaN."""
    if x.dtype == torch.float16 or not checks.readable(x):
        return False
    low, high = x.detach().aminmax()
    return not (low > -_LONG and high < _LONG)  # NaN, of a token that is not real say, hides others


_LONG = 1e16


def linear_weights(tokens: Tokens, kind: str) -> Tensor:
    """TokenWeights [B, L]: 1 / number of real tokens for "mean", 1 for "sum", 0 at padding."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if tokens.mask is None:
        value = 1 / tokens.length if kind == "mean" else 1.0
        return torch.full((len(tokens), tokens.length), value, dtype=dtype, device=tokens.device)
    real = tokens.mask.to(dtype)
    return real / real.sum(1, keepdim=True).clamp_min(1) if kind == "mean" else real


def _pooled(aggregator: TwoLevel, query: Tokens, candidate: Tokens, backend: str) -> Tensor:
    """Score with a linear inner reduction before the product: the mean of cosines is the cosine with a mean."""
    directions = ("query", "candidate") if aggregator.direction == "both" else (aggregator.direction,)
    out: list[Tensor] = []
    for direction in directions:
        a, b = (query, candidate) if direction == "query" else (candidate, query)
        b = _pool(b, aggregator.inner.kind)
        if aggregator.outer.kind in LINEAR:
            vectors = _pool(a, aggregator.outer.kind).features, b.features
            dtype = torch.promote_types(*(x.dtype for x in vectors))
            with without_autocast(vectors[0]):
                scores = vectors[0][:, 0].to(dtype) @ vectors[1][:, 0].to(dtype).T  # [q, D] @ [D, c]
        else:
            # One candidate token: its inner reduction is the identity, whichever it is.
            scores = _fused(TwoLevel(aggregator.outer, aggregator.outer, "query"), b, a, False, backend).T
        out.append(scores if direction == "query" else scores.T)
    return sum(out[1:], out[0]) / len(out)


def _pool(tokens: Tokens, kind: str) -> Tokens:
    unit = tokens.normalized()
    weights = linear_weights(unit, kind)
    with without_autocast(unit.features):
        return Tokens(weights.unsqueeze(1) @ unit.features, unit=True)  # [B, 1, L] @ [B, L, D]
