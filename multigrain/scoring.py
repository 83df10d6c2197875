"""Scores of collections too large for one pass: exact, in blocks, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import checks
from .tokens import Features

ProgressCallback = Callable[[int, int], None]


@torch.no_grad()
def score_matrix(
    scorer: nn.Module,
    query: Features,
    candidate: Features,
    block: int = 256,
    device: torch.device | str | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "q c"]:
    """Compute all scores [queries, candidates], block by block and without a graph.

    Args:
        scorer: Features x Features -> scores, such as MultiGrain.
        query, candidate: the two collections.
        block: the number of queries and of candidates in a block; memory beyond the result is that of one block.
        device: the device of the result; default: the device of the features.
        progress: called with (pairs done, pairs in all) after each block.

    Raises:
        ValueError: a block below 1, or an error of the scorer.
    """
    out: Tensor | None = None
    for rows, columns, scores in _blocks(scorer, query, candidate, block, progress, 0):
        if out is None:
            out = scores.new_empty(len(query), len(candidate), device=device)
        out[rows, columns] = scores
    assert out is not None  # Features are never empty
    return out


@torch.no_grad()
def top_k(
    scorer: nn.Module,
    query: Features,
    candidate: Features | Iterable[Features],
    k: int,
    block: int = 256,
    device: torch.device | str | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Find the k best candidates of each query, best first, equal ones by index. The matrix is never held.

    Args:
        candidate: the collection, or an iterable of its parts in order, of which one is held at a time, such as
            features that are loaded file by file. Indices count through all parts.
        k: from 1 to the number of candidates; parts that have fewer are noticed after the last one.
        scorer, query, block, device: see `score_matrix`.
        progress: called with (pairs done, pairs in all) after each block; the latter counts the parts so far.

    Returns:
        Scores [queries, k] and candidate indices [queries, k].

    Raises:
        ValueError: k or block out of range, no part, a score that is NaN (a BadEntry: row and column are named), or an
            error of the scorer.
    """
    checks.instance("query", query, Features)
    single = isinstance(candidate, Features | Tensor) or not isinstance(candidate, Iterable)  # or no candidates at all
    parts = cast("Iterable[Features]", [candidate] if single else candidate)
    checks.count("k", k, at_most=len(candidate) if isinstance(candidate, Features) else None)
    best: dict[int, tuple[Tensor, Tensor]] = {}  # first query of a block -> its scores and indices [q, k]
    count = 0
    for part in parts:
        for rows, columns, scores in _blocks(scorer, query, part, block, progress, count):
            indices = torch.arange(count + columns.start, count + columns.stop, device=scores.device)
            best[rows.start] = _merged(best.get(rows.start), scores, indices, k)
        count += len(part)
        del part  # before the next one is made
    if not best:
        raise ValueError("candidate: expected at least one Features, got none")
    checks.count("k", k, at_most=count)
    scores, indices = (torch.cat([x.to(device) for x in found]) for found in zip(*best.values(), strict=True))
    checks.not_nan(scores, columns=indices)
    return scores, indices


def _merged(
    best: tuple[Tensor, Tensor] | None, scores: Float[Tensor, "q c"], indices: Int[Tensor, "c"], k: int
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Merge the k best so far with the scores of further candidates, which have these indices; NaN counts as the best.

    The candidates need not be neighbours, so that a search may score only those that another index suggests.
    """
    indices = repeat(indices, "c -> q c", q=len(scores))
    if best is not None:
        scores, indices = torch.cat([best[0], scores], 1), torch.cat([best[1], indices], 1)
    # A stable sort, so that equal scores stay in the order of their indices whatever the block size.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k].clone(), indices.gather(1, order[:, :k])  # not a view, which would hold the whole block


def _blocks(
    scorer: nn.Module, query: Features, candidate: Features, block: int, progress: ProgressCallback | None, before: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (queries, candidates, their scores) of each block, row by row; `before` counts the candidates of earlier
    parts."""
    checks.scorer("scorer", scorer)
    checks.instances(Features, query=query, candidate=candidate)
    checks.count("block", block)
    done, total = len(query) * before, len(query) * (before + len(candidate))
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
