"""The blocked backend: two-level scores and their closed-form gradient in the memory of one block, on any device.

For x = <query token, candidate token> / t of one (query, candidate) pair, with p = softmax(x):
    softmax    y = sum p x            dy/dx = p (1 + x - y)
    logsumexp  y = log sum exp x      dy/dx = p
    max        y = max x              dy/dx = [x = y] / number of ties
The outer reduction runs over y alike. The forward pass writes scores only; the backward pass computes a block's x
again, turns it into its gradient in place, and multiplies that with both sides. docs/performance.md derives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from ..spec import ELEMENTS, LOWEST, Gradients, Operand, Spec
from .layout import CandidatesInnermost, Layout, QueriesInnermost
from .side import Block, Side

QUERY_SLOTS = 256
LANES = 32

# exp(+-SAFE), summed over thousands of tokens, multiplied by x or divided by, is far from the limits of fp32.
SAFE, TINY = 60.0, 1e-32
# At low temperatures most weights and gradients would be denormal numbers, with which a CPU computes at a hundredth of
# its speed. exp(FLOOR) beside a largest weight of 1, and LOST beside a largest gradient of 1, are lost in fp64 too.
FLOOR, LOST = -70.0, 1e-32


class Column(NamedTuple):
    """A block of candidates; masks and weights in the axes of the layout."""

    layout: Layout
    block: Block
    c: Tensor  # [c, n, D], as the layout prepared them
    mask: Tensor | None
    weights: Tensor | None


class Tile(NamedTuple):
    """A block of queries against a column."""

    column: Column
    block: Block
    q: Tensor  # [q, m, D]
    x: Tensor  # 0 at padding
    masks: dict[int, Tensor | None]  # by token axis: where it is real
    weights: dict[int, Tensor | None]  # by token axis: of a linear outer reduction

    @property
    def layout(self) -> Layout:
        """The axes of x, masks and weights."""
        return self.column.layout


class InnerReduction(NamedTuple):
    """The inner reduction along one axis of x, in units of x; y and total keep the axis, of size 1."""

    axis: int
    y: Tensor
    weight: Tensor | None  # exp(x - a shift), 0 at padding; None for max
    total: Tensor  # the sum of weight along the axis; for max unused


def forward(query: Operand, candidate: Operand, spec: Spec) -> Tensor:
    """Compute scores [queries, candidates]."""
    a, b = Side(query, 1 / spec.inner_temperature), Side(candidate)
    out = query.x.new_empty(len(query.x), len(candidate.x), dtype=a.dtype)
    for column in _columns(a, b, spec):
        for tile in _tiles(a, column):
            scores = [_outer(level, tile, spec)[0] for level in _inner(tile, spec)]
            out[_index(tile)] = tile.layout.to_pairs(sum(scores[1:], scores[0]) / len(scores))
    return out


def backward(grad: Tensor, query: Operand, candidate: Operand, spec: Spec) -> Gradients:
    """Compute the gradients by both operands, from that of the scores [queries, candidates]."""
    a, b = Side(query, 1 / spec.inner_temperature), Side(candidate)
    by_query, by_candidate = (side.given.x.new_zeros(side.given.x.shape, dtype=side.dtype) for side in (a, b))
    by_weights = [None if w is None else w.new_zeros(w.shape) for w in (query.weights, candidate.weights)]
    # In units of its largest finite element, so that a loss scaled for half precision cannot overflow a block.
    factor = torch.where(grad.isfinite(), grad.abs(), 0.0).amax().to(a.dtype).clamp_min(torch.finfo(a.dtype).tiny)
    grad = grad / factor
    for column in _columns(a, b, spec):
        dc = torch.zeros_like(column.c)
        for tile in _tiles(a, column):
            levels = _inner(tile, spec)
            g = tile.layout.of_pairs(grad[_index(tile)]) * (spec.inner_temperature / len(levels))
            parts = [_outer(level, tile, spec)[1] * g for level in levels]
            for level, side, block, total in zip(levels, (a, b), (tile.block, column.block), by_weights, strict=False):
                if total is not None:
                    side.add(total, block, _by_weights(level, g, tile), factor)
            dx = _by_similarity(tile, levels, parts, spec)
            a.add(by_query, tile.block, tile.layout.by_query(dx, column.c), factor * a.scale)
            tile.layout.add_by_candidate(dc, dx, tile.q)
        b.add(by_candidate, column.block, dc, factor)
    return Gradients(a.through_norm(by_query), b.through_norm(by_candidate), *by_weights)


def _columns(query: Side, candidate: Side, spec: Spec) -> Iterator[Column]:
    """Read the candidates block by block, each once."""
    layout = CandidatesInnermost() if spec.both else QueriesInnermost()
    lanes = LANES if spec.both else 1
    slots = ELEMENTS // _query_slots(query, candidate.lengths[0] * lanes)
    for block in candidate.blocks(slots, lanes):
        c = layout.prepare(candidate.read(block))
        mask, weights = (None if t is None else layout.of_candidate(t) for t in candidate.masks_and_weights(block))
        yield Column(layout, block, c, mask, weights)


def _query_slots(query: Side, candidate_slots: int) -> int:
    """Token slots of a block of queries against so many of candidates: of one item at least, of all at most."""
    return min(max(ELEMENTS // candidate_slots, query.lengths[0]), QUERY_SLOTS, sum(query.lengths))


def _tiles(query: Side, column: Column) -> Iterator[Tile]:
    """Read the queries block by block, each with its similarities to a column."""
    layout = column.layout
    for block in query.blocks(ELEMENTS // (column.block.size * column.block.length)):
        q = query.read(block)
        mask, weights = (None if t is None else layout.of_query(t) for t in query.masks_and_weights(block))
        masks = {layout.query_axis: mask, layout.candidate_axis: column.mask}
        by_axis = {layout.query_axis: weights, layout.candidate_axis: column.weights}
        yield Tile(column, block, q, layout.similarity(q, column.c), masks, by_axis)


def _index(tile: Tile) -> tuple[slice | Tensor, slice | Tensor]:
    rows, cols = tile.block.items, tile.column.block.items
    return (rows[:, None], cols) if isinstance(rows, Tensor) and isinstance(cols, Tensor) else (rows, cols)


def _inner(tile: Tile, spec: Spec) -> list[InnerReduction]:
    """Reduce over candidate tokens and, for both directions, over query tokens."""
    x, layout = tile.x, tile.layout
    axes = (layout.candidate_axis, layout.query_axis) if spec.both else (layout.candidate_axis,)
    if spec.inner == "max":
        x = _filled(tile)
        return [InnerReduction(axis, y := x.amax(axis, keepdim=True), None, y) for axis in axes]
    # exp is what costs most, so both axes share one, with a shift under which similarities of unit tokens cannot
    # overflow. Where a sum leaves the safe range after all, each axis is shifted by its own maximum.
    shift = max(0.0, 1 / spec.inner_temperature - SAFE)
    weight = _real((x - shift).exp_() if shift else x.exp(), tile)
    totals = [_total(weight, tile, axis) for axis in axes]
    if all(bool((total.amin() > TINY) & (total.amax() < 1 / TINY)) for total in totals):
        weighted = weight * x if spec.inner == "softmax" else None
        return [_level(axis, weight, weighted, total, shift) for axis, total in zip(axes, totals, strict=True)]
    levels: list[InnerReduction] = []
    filled = _filled(tile)
    for axis in axes:
        top = filled.amax(axis, keepdim=True)
        weight = _real((filled - top).clamp_(min=FLOOR).exp_(), tile)
        weighted = weight * x if spec.inner == "softmax" else None
        levels.append(_level(axis, weight, weighted, _total(weight, tile, axis), top))
    return levels


def _filled(tile: Tile) -> Tensor:
    """Fill padding with LOWEST; x itself where nothing is padded."""
    x = tile.x
    for mask in tile.masks.values():
        x = x if mask is None else x.masked_fill(~mask, LOWEST)
    return x


def _real(weight: Tensor, tile: Tile) -> Tensor:
    """Zero the weights of padding, in place."""
    for mask in tile.masks.values():
        if mask is not None:
            weight.mul_(mask)
    return weight


def _total(weight: Tensor, tile: Tile, axis: int) -> Tensor:
    """Sums along an axis, 1 at padding of the other one, where there is nothing to sum."""
    total, mask = weight.sum(axis, keepdim=True), tile.masks[_other(tile.layout, axis)]
    return total if mask is None else torch.where(mask, total, 1.0)


def _other(layout: Layout, axis: int) -> int:
    return layout.query_axis if axis == layout.candidate_axis else layout.candidate_axis


def _level(axis: int, weight: Tensor, weighted: Tensor | None, total: Tensor, shift: float | Tensor) -> InnerReduction:
    y = total.log() + shift if weighted is None else weighted.sum(axis, keepdim=True).div_(total)
    return InnerReduction(axis, y, weight, total)


def _outer(level: InnerReduction, tile: Tile, spec: Spec) -> tuple[Tensor, Tensor]:
    """Reduce the values of an inner reduction: scores, and their derivative by it in units of similarity."""
    axis = _other(tile.layout, level.axis)
    mask, weights = tile.masks[axis], tile.weights[axis]
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
    return score * t, p * (1 + (z - score))


def _by_weights(level: InnerReduction, g: Tensor, tile: Tile) -> Tensor:
    """Compute the gradient [items, tokens] by the weights of a linear outer reduction, 0 at padding."""
    axis = _other(tile.layout, level.axis)
    mask = tile.masks[axis]
    by_pair = level.y * g
    return tile.layout.of_tokens(by_pair if mask is None else torch.where(mask, by_pair, 0.0), axis)


def _by_similarity(tile: Tile, levels: list[InnerReduction], parts: list[Tensor], spec: Spec) -> Tensor:
    """Compute the gradient by x, from that by y of each inner reduction."""
    if spec.inner == "max":
        x = _filled(tile)
        each = [_through_max(x, level, part) for level, part in zip(levels, parts, strict=True)]
    elif len(levels) == 2 and levels[0].weight is levels[1].weight:
        return _through_exp(tile.x, levels, parts, spec)
    else:
        each = [_through_exp(tile.x, [level], [part], spec) for level, part in zip(levels, parts, strict=True)]
        each = [hardshrink(dx, LOST) for dx in each]
    return each[0] if len(each) == 1 else each[0].add_(each[1])


def _through_max(x: Tensor, level: InnerReduction, part: Tensor) -> Tensor:
    tied = torch.eq(x, level.y, out=torch.empty_like(x))
    return tied.mul_(part / tied.sum(level.axis, keepdim=True))


def _through_exp(x: Tensor, levels: list[InnerReduction], parts: list[Tensor], spec: Spec) -> Tensor:
    """Sum part weight / total (softmax: times 1 + x - y) over inner reductions that share their weight."""
    slopes = [part / level.total for level, part in zip(levels, parts, strict=True)]
    if len(levels) == 1:
        # The difference first: where similarities are large, x and y agree in most of their digits.
        out = (x - levels[0].y).add_(1).mul_(slopes[0]) if spec.inner == "softmax" else slopes[0]
    else:
        out = slopes[0] + slopes[1]
        if spec.inner == "softmax":
            out.mul_(x)
            for slope, level in zip(slopes, levels, strict=True):
                out.add_(slope * (1 - level.y))
    assert levels[0].weight is not None
    return levels[0].weight.mul_(out)
