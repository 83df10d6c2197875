"""Blocks for scores that are only known by their definition: each is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..similarity import UNWEIGHTED, TokenWeights
from ..tokens import Tokens

# Similarities of a block: large enough that the calls of the definition cost nothing beside its work.
ELEMENTS = 1 << 20

Definition = Callable[[Tokens, Tokens, TokenWeights], Tensor]


def scores(
    definition: Definition,
    query: Tokens,
    candidate: Tokens,
    weights: TokenWeights = UNWEIGHTED,
    size: int | None = None,
) -> Tensor:
    """Scores [q, c] of definition(query, candidate, weights), holding what one block needs at a time.

    Args:
        size: how many numbers the definition holds for a pair; default: as many as it has similarities.
    """
    pairs = max(1, ELEMENTS // (size or query.length * candidate.length))
    q_size = min(len(query), max(1, int(pairs**0.5)))
    queries = _split(query, weights[0], q_size)
    candidates = _split(candidate, weights[1], max(1, pairs // q_size))
    return torch.cat([torch.cat([_score(definition, q, c) for c in candidates], 1) for q in queries])


def _split(tokens: Tokens, weights: Tensor | None, size: int) -> list[tuple[Tokens, Tensor | None]]:
    # torch.split, not slices: the backward pass of a slice would allocate the whole.
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
