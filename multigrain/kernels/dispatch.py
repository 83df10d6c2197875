"""The backend table: who computes the scores of a grain, and how "auto" chooses.

    eager     the definition: multigrain.similarity.aggregate
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
from torch import Tensor

from .. import checks
from ..aggregators import Aggregator
from ..similarity import UNWEIGHTED, Weights, aggregate
from ..tokens import Tokens
from . import fusion, recompute
from .spec import Unsupported

# (aggregator, query tokens, candidate tokens, weights of both) -> scores [q, c]: finite, and passing on no gradient
# but its own, where an item has no real token; the grain zeroes both.
Backend = Callable[[Aggregator, Tokens, Tokens, Weights], Tensor]


def blocked(aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: Weights = UNWEIGHTED) -> Tensor:
    """Score block by block: the closed form for two-level aggregators, the definition recomputed for all others."""
    if fusion.fuses(aggregator, "blocked"):
        return fusion.two_level_scores(aggregator, query, candidate, "blocked", weights)
    return recompute.blockwise_scores(functools.partial(aggregate, aggregator), query, candidate, weights)


def triton(aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: Weights = UNWEIGHTED) -> Tensor:
    """Score by fused kernels on CUDA."""
    for tokens in (query, candidate):
        if tokens.device.type != "cuda":
            raise Unsupported(f"triton serves features on CUDA, not on {tokens.device}")
    if not fusion.fuses(aggregator, "triton"):
        raise Unsupported(f"triton serves two-level aggregators as they are, not {aggregator!r}")
    return fusion.two_level_scores(aggregator, query, candidate, "triton", weights)


BACKENDS: dict[str, Backend] = {"triton": triton, "blocked": blocked, "eager": aggregate}
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
    *tried, last = _automatic(aggregator, query, candidate) if backend == "auto" else [backend]
    for name in tried:
        try:
            return BACKENDS[name](aggregator, query, candidate, weights)
        except Unsupported:
            continue
    return BACKENDS[last](aggregator, query, candidate, weights)


def by_blocks(definition: recompute.Definition, query: Tokens, candidate: Tokens, backend: str, size: int) -> Tensor:
    """Scores [q, c] of a definition that is no aggregation of similarities, such as query-conditioned pooling.

    Args:
        backend: as for `scores`.
        size: the count of numbers that it holds for a pair.

    Raises:
        Unsupported: the backend "triton" was asked for.
    """
    if backend == "triton":
        raise Unsupported("triton serves two-level aggregators of similarities, not a pooling by the query")
    at_once = torch.compiler.is_compiling() or checks.transformed() or len(query) * len(candidate) * size < SMALL
    if backend == "eager" or (backend == "auto" and at_once):
        return definition(query, candidate, UNWEIGHTED)
    return recompute.blockwise_scores(definition, query, candidate, size=size)


def _automatic(aggregator: Aggregator, query: Tokens, candidate: Tokens) -> list[str]:
    """The backends to try, best first; the definition, which always serves, is the last."""
    fused = fusion.fuses(aggregator, "triton" if query.device.type == "cuda" else "blocked")
    # The compiler sees through the definition, not through blocks of it; the operators know nothing of transforms.
    if not fused if torch.compiler.is_compiling() else checks.transformed():
        return ["eager"]
    if query.device.type == "cuda" and fused:
        return ["triton", "blocked", "eager"]
    large = len(query) * query.length * len(candidate) * candidate.length >= SMALL
    return ["blocked"] * large + ["eager"]

