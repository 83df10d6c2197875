"""Scores of collections too large for one pass: exact, in blocks, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import checks
from .tokens import Features

Progress = Callable[[int, int], None]


@torch.no_grad()
def score_matrix(
    scorer: nn.Module,
    query: Features,
    candidate: Features,
    block: int = 256,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "q c"]:
    """All scores [queries, candidates], computed block by block without a graph.

    Args:
        scorer: Features x Features -> scores, such as MultiGrain.
        query, candidate: the two collections.
        block: queries and candidates in a block; memory beyond the result is that of one block.
        device: where the result goes; default: where the features are.
        progress: called with (pairs done, pairs in all) after each block.

    Raises:
        ValueError: block below 1, or whatever the scorer raises.
    """
    out: Tensor | None = None
    for rows, columns, scores in _blocks(scorer, query, candidate, block, progress):
        if out is None:
            out = scores.new_empty(len(query), len(candidate), device=device)
        out[rows, columns] = scores
    assert out is not None  # Features are never empty
    return out


@torch.no_grad()
def top_k(
    scorer: nn.Module,
    query: Features,
    candidate: Features,
    k: int,
    block: int = 256,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The k best candidates of each query, best first; of equal scores the lower index. Never holds the matrix.

    Args:
        k: from 1 to the number of candidates.
        scorer, query, candidate, block, device, progress: as for `score_matrix`.

    Returns:
        Scores [queries, k] and candidate indices [queries, k].

    Raises:
        ValueError: k or block out of range, a score that is NaN (its row and column are named), or whatever the
            scorer raises.
    """
    scores, indices = best(scorer, query, candidate, k, block, device, progress)
    checks.not_nan(scores, columns=indices)
    return scores, indices


@torch.no_grad()
def best(
    scorer: nn.Module,
    query: Features,
    candidate: Features,
    k: int,
    block: int = 256,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """As `top_k`, but for NaN, which sorts first and so is among what comes back."""
    checks.instances(Features, query=query, candidate=candidate)
    checks.count("k", k, at_most=len(candidate))
    done: list[tuple[Tensor, Tensor]] = []
    found: tuple[Tensor, Tensor] | None = None
    for _, columns, scores in _blocks(scorer, query, candidate, block, progress):
        indices = torch.arange(columns.start, columns.stop, device=scores.device).expand_as(scores)
        if found is not None:
            scores, indices = torch.cat([found[0], scores], 1), torch.cat([found[1], indices], 1)
        # A stable sort, so that equal scores stay in the order of their indices whatever the block size.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        found = scores[:, :k], indices.gather(1, order[:, :k])
        if columns.stop == len(candidate):
            done.append((found[0].to(device), found[1].to(device)))
            found = None
    return torch.cat([s for s, _ in done]), torch.cat([i for _, i in done])


def _blocks(
    scorer: nn.Module, query: Features, candidate: Features, block: int, progress: Progress | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row by row of blocks: (queries, candidates, their scores)."""
    checks.scorer("scorer", scorer)
    checks.instances(Features, query=query, candidate=candidate)
    checks.count("block", block)
    done, total = 0, len(query) * len(candidate)
    for i in range(0, len(query), block):
        rows = slice(i, min(i + block, len(query)))
        queries = query[rows]
        for j in range(0, len(candidate), block):
            columns = slice(j, min(j + block, len(candidate)))
            scores = scorer(queries, candidate[columns])
            shape = rows.stop - rows.start, columns.stop - columns.start
            checks.shaped(f"scores of {type(scorer).__name__}", scores, shape)
            yield rows, columns, scores
            done += scores.numel()
            if progress is not None:
                progress(done, total)
