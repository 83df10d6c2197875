"""The definition of a score: the cosines of all token pairs, then an aggregator.

    query       [q, m, D]     tokens of q items, unit length, zeros at padding
    candidate   [c, n, D]
    sim         [q, c, m, n]  = "q m d, c n d -> q c m n"
    scores      [q, c]        = aggregator(sim, query mask [q, m], candidate mask [c, n])

Whatever is faster (multigrain.kernels) is judged against `aggregate`.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from . import checks
from .aggregators import Aggregator
from .reduce import without_autocast
from .tokens import Tokens

TokenWeights: TypeAlias = "tuple[Tensor | None, Tensor | None]"
"""Weights of the tokens of both sides, [q, m] and [c, n], 0 at padding; None where the aggregator gives none."""
UNWEIGHTED: TokenWeights = (None, None)


def similarity(query: Tokens, candidate: Tokens) -> Float[Tensor, "q c m n"]:
    """Cosines of all token pairs of all item pairs, fp32 (fp64 stays); 0 at padded tokens."""
    q, c = query.normalized().features, candidate.normalized().features
    dtype = torch.promote_types(q.dtype, c.dtype)
    with without_autocast(q):  # one matrix product: einsum would batch it
        sim = rearrange(q.to(dtype), "q m d -> (q m) d") @ rearrange(c.to(dtype), "c n d -> d (c n)")
    return rearrange(sim, "(q m) (c n) -> q c m n", q=len(q), c=len(c))


def aggregate(
    aggregator: Aggregator, query: Tokens, candidate: Tokens, weights: TokenWeights = UNWEIGHTED
) -> Float[Tensor, "q c"]:
    """Scores by their definition, through the whole [q, c, m, n].

    Raises:
        TypeError, ValueError: the aggregator returns anything but scores [q, c].
    """
    sim = similarity(query, candidate)
    with without_autocast(sim):
        given = () if weights == UNWEIGHTED else weights
        scores = aggregator(sim, nonempty(query.mask), nonempty(candidate.mask), *given)
        return checks.shaped(f"scores of {type(aggregator).__name__}", scores, tuple(sim.shape[:2]))


def nonempty(mask: Bool[Tensor, "b l"] | None) -> Bool[Tensor, "b l"] | None:
    """The mask, all True for an item without a real token, so that no softmax is empty; its tokens are zeros."""
    return None if mask is None else mask | ~reduce(mask, "b l -> b 1", "any")


def check_sides(grain: str, query: Tokens, candidate: Tokens) -> None:
    """Check that the two sides of a grain can be multiplied.

    Raises:
        ValueError: different widths or devices.
    """
    for what, q, c in (
        ("features of the same width", query.dim, candidate.dim),
        ("features on the same device", query.device, candidate.device),
    ):
        if q != c:
            raise ValueError(f"grain {grain!r}: expected query and candidate {what}, got {q} and {c}")
