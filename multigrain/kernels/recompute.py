"""Blocks for an aggregator that is only known by its definition: each is scored again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..tokens import Tokens

# Similarities of a block: large enough that the calls of the definition cost nothing beside its work.
ELEMENTS = 1 << 20


def scores(definition: Callable[[Tokens, Tokens], Tensor], query: Tokens, candidate: Tokens) -> Tensor:
    """Scores [q, c] of definition(query, candidate), holding the similarities of one block at a time."""
    side = max(1, ELEMENTS // (query.length * candidate.length))
    q_size = min(len(query), max(1, int(side**0.5)))
    queries = _split(query, q_size)
    candidates = _split(candidate, max(1, side // q_size))
    return torch.cat([torch.cat([_score(definition, q, c) for c in candidates], 1) for q in queries])


def _split(tokens: Tokens, size: int) -> list[Tokens]:
    # torch.split, not slices: the backward pass of a slice would allocate the whole.
    features = tokens.features.split(size)
    masks = [None] * len(features) if tokens.mask is None else tokens.mask.split(size)
    return [Tokens(x, mask, unit=tokens.unit) for x, mask in zip(features, masks, strict=True)]


def _score(definition: Callable[[Tokens, Tokens], Tensor], query: Tokens, candidate: Tokens) -> Tensor:
    if not torch.is_grad_enabled():
        return definition(query, candidate)

    def score(q: Tensor, c: Tensor) -> Tensor:
        return definition(Tokens(q, query.mask, unit=query.unit), Tokens(c, candidate.mask, unit=candidate.unit))

    out = checkpoint(score, query.features, candidate.features, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out
