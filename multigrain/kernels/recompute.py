"""Scores of any definition, block by block: the backward pass computes each block again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..similarity import UNWEIGHTED, Weights
from ..tokens import Tokens
from .spec import ELEMENTS

Definition = Callable[[Tokens, Tokens, Weights], Tensor]


def blockwise_scores(
    definition: Definition,
    query: Tokens,
    candidate: Tokens,
    weights: Weights = UNWEIGHTED,
    size: int | None = None,
) -> Tensor:
    """Compute scores [q, c] of definition(query, candidate, weights) in the memory of one block.

    Args:
        size: the count of numbers that the definition holds for a pair; None: that of its similarities.
    """
    pairs = max(1, ELEMENTS // (size or query.length * candidate.length))
    q_size = min(len(query), max(1, int(pairs**0.5)))
    queries = _split(query, weights[0], q_size)
    candidates = _split(candidate, weights[1], max(1, pairs // q_size))
    return torch.cat([torch.cat([_score(definition, q, c) for c in candidates], 1) for q in queries])


def _split(tokens: Tokens, weights: Tensor | None, size: int) -> list[tuple[Tokens, Tensor | None]]:
    # torch.split, not slices: the backward pass of a slice would allocate the full tensor.
    features = tokens.features.split(size)
    masks, parts = ([None] * len(features) if t is None else t.split(size) for t in (tokens.mask, weights))
    each = zip(features, masks, parts, strict=True)
    return [(Tokens(x, mask, unit=tokens.unit), part) for x, mask, part in each]


def _score(
    definition: Definition, query: tuple[Tokens, Tensor | None], candidate: tuple[Tokens, Tensor | None]
) -> Tensor:
    from torch.utils.checkpoint import checkpoint  # here: in torch 2.6 it imports SymPy, a third of a second

    (q, q_weights), (c, c_weights) = query, candidate
    if not torch.is_grad_enabled():
        return definition(q, c, (q_weights, c_weights))

    def score(x: Tensor, y: Tensor, *weights: Tensor | None) -> Tensor:
        sides = Tokens(x, q.mask, unit=q.unit), Tokens(y, c.mask, unit=c.unit)
        return definition(*sides, (weights[0], weights[1]))

    out = checkpoint(score, q.features, c.features, q_weights, c_weights, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out
