"""The backend table: who computes the scores of a grain, and how "auto" chooses.

    eager     the definition: cosines [q, c, m, n], then Aggregator.forward
    blocked   any device, any aggregator, in the memory of one block; closed-form gradient for two-level ones
              without mixing matrices
    triton    CUDA, two-level ones, fused

"auto" takes the first that serves. Only `Unsupported` makes it try the next; a backend asked for by name raises
it. Every other exception surfaces.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from .. import checks
from ..aggregators import Aggregator
from ..reduce import without_autocast
from ..tokens import Tokens
from . import fusion, recompute
from .spec import Unsupported, Weights

# (aggregator, query tokens, candidate tokens, weights of both) -> scores [q, c]: finite, and passing on no gradient
# but its own, where an item has no real token; the grain zeroes both.
Backend = Callable[[Aggregator, Tokens, Tokens, Weights], Tensor]
UNWEIGHTED: Weights = (None, None)


def similarity(query: Tokens, candidate: Tokens) -> Tensor:
    """Cosines [q, c, m, n] of all token pairs of all item pairs, fp32 (fp64 stays); 0 at padded tokens."""
    q, c = query.normalized().features, candidate.normalized().features
    dtype = torch.promote_types(q.dtype, c.dtype)
    with without_autocast(q):
        sim = rearrange(q.to(dtype), "q m d -> (q m) d") @ rearrange(c.to(dtype), "c n d -> (c n) d").T
    return rearrange(sim, "(q m) (c n) -> q c m n", q=len(query), c=len(candidate))


def eager(aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: Weights = UNWEIGHTED) -> Tensor:
    """The definition of every score."""
    sim = similarity(query, candidate)
    with without_autocast(sim):
        more = () if weights[0] is None and weights[1] is None else weights
        scores = aggregator(sim, _nonempty(query.mask), _nonempty(candidate.mask), *more)
        return checks.shaped(f"scores of {type(aggregator).__name__}", scores, (len(query), len(candidate)))


def _nonempty(mask: Tensor | None) -> Tensor | None:
    """An item without a real token passes as one of zeros: no aggregator meets an empty softmax."""
    return None if mask is None else mask | ~mask.any(1, keepdim=True)


def blocked(aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: Weights = UNWEIGHTED) -> Tensor:
    """Block by block: the closed form for two-level aggregators, the definition recomputed for all others."""
    if fusion.fuses(aggregator, "blocked"):
        return fusion.scores(aggregator, query, candidate, "blocked", weights)
    return recompute.scores(functools.partial(eager, aggregator), query, candidate, weights)


def triton(aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: Weights = UNWEIGHTED) -> Tensor:
    """Fused, on CUDA."""
    for tokens in (query, candidate):
        if tokens.device.type != "cuda":
            raise Unsupported(f"triton serves features on CUDA, not on {tokens.device}")
    if not fusion.fuses(aggregator, "triton"):
        raise Unsupported(f"triton serves two-level aggregators as they are, not {aggregator!r}")
    return fusion.scores(aggregator, query, candidate, "triton", weights)


BACKENDS: dict[str, Backend] = {"triton": triton, "blocked": blocked, "eager": eager}
CHOICES = ("auto", *BACKENDS)
VARIABLE = "MULTIGRAIN_BACKEND"

# Fewer similarities than this cost less than the bookkeeping of blocks.
SMALL = 1 << 15


def choice(backend: str | None) -> str:
    """The backend of a name; None: that of the variable MULTIGRAIN_BACKEND, else "auto".

    Raises:
        ValueError: no backend of that name.
    """
    if backend is not None:
        return checks.choice("backend", backend, CHOICES)
    return checks.choice(f"the variable {VARIABLE}", os.environ.get(VARIABLE) or "auto", CHOICES)


def scores(
    aggregator: Aggregator, query: Tokens, candidate: Tokens, backend: str, weights: Weights = UNWEIGHTED
) -> Tensor:
    """Scores [q, c] by the backend of a name (see `choice`), under the weights of `Aggregator.weigh`.

    Raises:
        Unsupported: a backend asked for by name cannot serve.
    """
    if backend != "auto":
        return BACKENDS[backend](aggregator, query, candidate, weights)
    for serve in _automatic(aggregator, query, candidate):
        try:
            return serve(aggregator, query, candidate, weights)
        except Unsupported:
            continue
    return eager(aggregator, query, candidate, weights)


def by_blocks(definition: recompute.Definition, query: Tokens, candidate: Tokens, backend: str, size: int) -> Tensor:
    """Scores [q, c] of a definition that is no aggregation of similarities, such as query-conditioned pooling.

    Args:
        backend: as for `scores`.
        size: how many numbers it holds for a pair.

    Raises:
        Unsupported: the backend "triton" was asked for.
    """
    if backend == "triton":
        raise Unsupported("triton serves two-level aggregators of similarities, not a pooling by the query")
    whole = torch.compiler.is_compiling() or checks.transformed() or len(query) * len(candidate) * size < SMALL
    if backend == "eager" or (backend == "auto" and whole):
        return definition(query, candidate, UNWEIGHTED)
    return recompute.scores(definition, query, candidate, size=size)


def _automatic(aggregator: Aggregator, query: Tokens, candidate: Tokens) -> list[Backend]:
    """What to try before the definition, best first."""
    fused = fusion.fuses(aggregator, "triton" if query.device.type == "cuda" else "blocked")
    if torch.compiler.is_compiling():
        if not fused:
            return []  # the compiler sees through the definition, not through blocks of it
    elif checks.transformed():
        return []  # the operators know nothing of it
    if query.device.type == "cuda" and fused:
        return [triton, blocked]
    return [blocked] if len(query) * query.length * len(candidate) * candidate.length >= SMALL else []

