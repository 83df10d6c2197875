"""The blocked backend: two-level scores and their closed-form gradient in memory of one block, on any device.

For x = <query token, candidate token> / t of one (query, candidate) pair, with p = softmax(x):
    softmax    y = sum p x            dy/dx = p (1 + x - y)
    logsumexp  y = log sum exp x      dy/dx = p
    max        y = max x              dy/dx = [x = y] / number of ties
The outer reduction runs over y alike. The forward pass writes scores only; the backward pass computes a block's x
again, turns it into its gradient in place, and multiplies that with both sides. docs/performance.md derives it.

Layout: x is seen as [query, query token, candidate token, candidate] but laid out so that the reduced axes are
never the innermost one, and every reduction runs vectorised across the innermost:
    both directions   memory order [q, m, n, c]: candidates innermost
    one direction     memory order [c, n, q, m]: query tokens innermost, candidates read without a copy
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .side import Block, Side
from .spec import Gradients, Operand, Spec

# Similarities of a block, fp32: with their copies they sit in an L2 cache of 2 MB.
ELEMENTS = 256 * 768
QUERY_SLOTS = 256
LANES = 32


class Level(NamedTuple):
    """The inner reduction along one axis of x [q, m, n, c], in units of x; y and total keep the axis, of size 1."""

    axis: int
    y: Tensor
    weight: Tensor | None  # exp(x - a shift), 0 at padding; None for max
    total: Tensor  # the sum of weight along the axis; for max unused


class Tile(NamedTuple):
    """A block of queries against a block of candidates."""

    rows: Block
    cols: Block
    q: Tensor  # [q, m, D]
    c: Tensor  # [c, n, D]
    x: Tensor  # [q, m, n, c]
    masks: tuple[Tensor | None, Tensor | None]  # [q, m, 1, 1] and [1, 1, n, c]
    weights: tuple[Tensor | None, Tensor | None]  # likewise


def forward(query: Operand, candidate: Operand, spec: Spec) -> Tensor:
    """Scores [queries, candidates]."""
    return _forward(Side(query, 1 / spec.inner_temperature), Side(candidate), spec)


def backward(grad: Tensor, query: Operand, candidate: Operand, spec: Spec) -> Gradients:
    """The gradients, from that of the scores [queries, candidates]."""
    return _backward(grad, Side(query, 1 / spec.inner_temperature), Side(candidate), spec)


def _forward(query: Side, candidate: Side, spec: Spec) -> Tensor:
    out = query.given.x.new_empty(len(query.lengths), len(candidate.lengths), dtype=query.dtype)
    for tile in _tiles(query, candidate, spec):
        levels = _inner(tile, spec)
        scores = torch.stack([_outer(level, tile, spec)[0] for level in levels]).mean(0)
        out[_index(tile)] = scores[:, 0, 0]
    return out


def _backward(grad: Tensor, query: Side, candidate: Side, spec: Spec) -> Gradients:
    by_query, by_candidate = (torch.zeros_like(side.given.x, dtype=side.dtype) for side in (query, candidate))
    by_weights = [
        None if side.given.weights is None else torch.zeros_like(side.given.weights, dtype=side.dtype)
        for side in (query, candidate)
    ]
    for tile in _tiles(query, candidate, spec):
        g = grad[_index(tile)][:, None, None]
        levels = _inner(tile, spec)
        g = g / len(levels)
        parts: list[Tensor] = []
        for level in levels:
            _, part = _outer(level, tile, spec)
            parts.append(part * (g * spec.inner_temperature))
            side, block, total = (
                (query, tile.rows, by_weights[0]) if level.axis == 2 else (candidate, tile.cols, by_weights[1])
            )
            if total is not None:
                side.add(total, block, _by_weights(level, g * spec.inner_temperature))
        dx = _by_similarity(tile, levels, parts, spec)
        dq, dc = _by_tokens(dx, tile, spec)
        query.add(by_query, tile.rows, dq)
        candidate.add(by_candidate, tile.cols, dc)
    return Gradients(query.through_norm(by_query), candidate.through_norm(by_candidate), by_weights[0], by_weights[1])


def _tiles(query: Side, candidate: Side, spec: Spec) -> Iterator[Tile]:
    """All tiles, each with its similarities."""
    query_slots = min(QUERY_SLOTS, sum(query.lengths))
    for cols in candidate.blocks(ELEMENTS // query_slots, LANES):
        c = candidate.read(cols)
        if spec.both:
            c = c.transpose(0, 1).contiguous().transpose(0, 1)
        c_mask, c_weights = (_of_candidate(t) for t in (candidate.mask(cols), candidate.weights(cols)))
        for rows in query.blocks(max(query_slots, ELEMENTS // (cols.size * cols.length))):
            q = query.read(rows)
            q_mask, q_weights = (_of_query(t) for t in (query.mask(rows), query.weights(rows)))
            x = _similarity(q, c, spec)
            for mask in (q_mask, c_mask):
                if mask is not None:
                    x.masked_fill_(~mask, LOWEST)
            yield Tile(rows, cols, q, c, x, (q_mask, c_mask), (q_weights, c_weights))


# Finite, so that a weight of 0 times it is 0.
LOWEST = -1e30


def _of_query(t: Tensor | None) -> Tensor | None:
    return None if t is None else t[:, :, None, None]


def _of_candidate(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.T[None, None]


def _index(tile: Tile) -> tuple[slice | Tensor, slice | Tensor]:
    rows, cols = tile.rows.items, tile.cols.items
    return (rows[:, None], cols) if isinstance(rows, Tensor) and isinstance(cols, Tensor) else (rows, cols)


def _similarity(q: Tensor, c: Tensor, spec: Spec) -> Tensor:
    """x [q, m, n, c] of tokens [q, m, D] and [c, n, D]; the layouts are those of the module's docstring."""
    (bq, m, d), (bc, n, _) = q.shape, c.shape
    if spec.both:
        return (q.reshape(-1, d) @ c.transpose(0, 1).reshape(-1, d).T).view(bq, m, n, bc)
    return (c.reshape(-1, d) @ q.reshape(-1, d).T).view(bc, n, bq, m).permute(2, 3, 1, 0)


def _by_tokens(dx: Tensor, tile: Tile, spec: Spec) -> tuple[Tensor, Tensor]:
    """The gradients [q, m, D] and [c, n, D] of the product, from dx [q, m, n, c] laid out like x."""
    (bq, m, d), (bc, n, _) = tile.q.shape, tile.c.shape
    if spec.both:
        dx = dx.view(bq * m, n * bc)
        dq = dx @ tile.c.transpose(0, 1).reshape(-1, d)
        return dq.view(bq, m, d), (dx.T @ tile.q.reshape(-1, d)).view(n, bc, d).transpose(0, 1)
    dx = dx.permute(3, 2, 0, 1).reshape(bc * n, bq * m)
    dq = dx.T @ tile.c.reshape(-1, d)
    return dq.view(bq, m, d), (dx @ tile.q.reshape(-1, d)).view(bc, n, d)


def _inner(tile: Tile, spec: Spec) -> list[Level]:
    """The inner reduction over candidate tokens (axis 2) and, for both directions, over query tokens (axis 1)."""
    x, axes = tile.x, (2, 1) if spec.both else (2,)
    if spec.inner == "max":
        return [Level(axis, y := x.amax(axis, keepdim=True), None, y) for axis in axes]
    # exp is what costs most, so both axes share one, with a shift under which similarities of unit tokens cannot
    # overflow. Where a sum leaves the safe range after all, each axis is shifted by its own maximum.
    shift = max(0.0, 1 / spec.inner_temperature - SAFE)
    weight = (x - shift).exp_() if shift else x.exp()
    totals = [_real(weight.sum(axis, keepdim=True), tile, axis) for axis in axes]
    if all(bool((total.amin() > TINY) & (total.amax() < 1 / TINY)) for total in totals):
        weighted = weight * x if spec.inner == "softmax" else None
        return [_level(axis, weight, weighted, total, shift) for axis, total in zip(axes, totals, strict=True)]
    levels: list[Level] = []
    for axis in axes:
        top = x.amax(axis, keepdim=True)
        weight = (x - top).exp_()
        weighted = weight * x if spec.inner == "softmax" else None
        levels.append(_level(axis, weight, weighted, weight.sum(axis, keepdim=True), top))
    return levels


# exp(+-SAFE), summed over thousands of tokens and multiplied by x, is far from the limits of fp32.
SAFE, TINY = 60.0, 1e-32


def _real(total: Tensor, tile: Tile, axis: int) -> Tensor:
    """Sums along an axis, 1 at padding of the other one, where nothing was summed."""
    mask = tile.masks[0] if axis == 2 else tile.masks[1]
    return total if mask is None else torch.where(mask, total, 1.0)


def _level(axis: int, weight: Tensor, weighted: Tensor | None, total: Tensor, shift: float | Tensor) -> Level:
    y = total.log() + shift if weighted is None else weighted.sum(axis, keepdim=True).div_(total)
    return Level(axis, y, weight, total)


def _outer(level: Level, tile: Tile, spec: Spec) -> tuple[Tensor, Tensor]:
    """The outer reduction of a level: scores [q, 1, 1, c] and their derivative by the level in similarity units."""
    axis = 3 - level.axis
    mask, weights = (tile.masks[axis - 1], tile.weights[axis - 1])
    y = level.y * spec.inner_temperature
    if spec.outer == "linear":
        assert weights is not None
        return (weights * y).sum(axis, keepdim=True), weights
    t = spec.outer_temperature
    z = y / t if mask is None else torch.where(mask, y / t, LOWEST)
    if spec.outer == "max":
        top = z.amax(axis, keepdim=True)
        tied = (z == top).to(z.dtype)
        return top * t, tied / tied.sum(axis, keepdim=True)
    if spec.outer == "logsumexp":
        return torch.logsumexp(z, axis, keepdim=True) * t, z.softmax(axis)
    p = z.softmax(axis)
    score = (p * z).sum(axis, keepdim=True)
    return score * t, p * (1 + z - score)


def _by_weights(level: Level, g: Tensor) -> Tensor:
    """The gradient [items, tokens] by the weights of a linear outer reduction."""
    return (level.y * g).sum(3)[:, :, 0] if level.axis == 2 else (level.y * g).sum(0)[0].T


def _by_similarity(tile: Tile, levels: list[Level], parts: list[Tensor], spec: Spec) -> Tensor:
    """The gradient by x, laid out like it, from that by each level's y."""
    if spec.inner == "max":
        each = [_through_max(tile.x, level, part) for level, part in zip(levels, parts, strict=True)]
        return each[0] if len(each) == 1 else each[0].add_(each[1])
    if len(levels) == 2 and levels[0].weight is levels[1].weight:
        return _through_exp(tile.x, levels, parts, spec)
    each = [_through_exp(tile.x, [level], [part], spec) for level, part in zip(levels, parts, strict=True)]
    return each[0] if len(each) == 1 else each[0].add_(each[1])


def _through_max(x: Tensor, level: Level, part: Tensor) -> Tensor:
    tied = torch.eq(x, level.y, out=torch.empty_like(x))
    return tied.mul_(part / tied.sum(level.axis, keepdim=True))


def _through_exp(x: Tensor, levels: list[Level], parts: list[Tensor], spec: Spec) -> Tensor:
    """sum over levels of part weight / total (softmax: times 1 + x - y), for levels that share their weight."""
    slopes = [part / level.total for level, part in zip(levels, parts, strict=True)]
    out = slopes[0].expand_as(x) if len(slopes) == 1 else slopes[0] + slopes[1]
    if spec.inner == "softmax":
        out = out * x if len(slopes) == 1 else out.mul_(x)
        for slope, level in zip(slopes, levels, strict=True):
            out.add_(slope * (1 - level.y))
    assert levels[0].weight is not None
    return levels[0].weight.mul_(out)
