"""AOSM with mixing matrices on the triton backend.

The first kernel reduces the similarities of a block of pairs along the tokens of one side, and writes one value
for each token of the other side: [resident items, streamed items, tokens]. This inner level is smaller than the
similarities by the length of the reduced side. The outer level and its gradient are ordinary torch operations on it.
The backward pass computes the inner level again. The second kernel turns the gradient by it into two: by the products
of the tokens, with which scores.py continues, and by the inner matrices, of which every program writes a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import LOWEST, Operand, Spec
from . import launch as launching
from .launch import Plan, Tiling, kernels, launch, programs, room
from .side import ExtraGradients, FusedSide, ItemRange, power_of_two

# As in launch.py, but a tile takes another shape of the same size where a streamed item is longer. With items of more
# than 64 tokens the slopes do spill registers to memory: larger tiles do not fit.
TILINGS = {
    ("levels", 2): Tiling(64, 128, 64, 8, 3),
    ("levels", 4): Tiling(64, 128, 32, 8, 3),
    ("mixed_slopes", 2): Tiling(64, 64, 64, 8, 3),
    ("mixed_slopes", 4): Tiling(64, 64, 32, 8, 3),
}
SLOTS = 128  # of a streamed item in a tile, at most
DOT = 16  # the least width of a matrix product
LEVEL_ELEMENTS = 1 << 25  # of a block's levels, and of the parts of its gradient by matrices: at most 128 MB


class InnerLevel(NamedTuple):
    """The inner level of a block of pairs, [resident items, streamed items, slots of the outer side] each."""

    y: Tensor  # similarities, 0 at padding
    norm: Tensor  # the log2 of the sum of 2^x by which the attention is normalised


class OuterLevel:
    """The outer level over the tokens of a range of items: attention over y, mixed, and the scores."""

    def __init__(
        self, level: InnerLevel, side: FusedSide, block: ItemRange, mask: Tensor | None, temperature: float
    ) -> None:
        self.level, self.temperature = level, temperature
        self.matrix = None if side.outer is None else side.outer[: block.length, : block.length]
        x = level.y / temperature
        self.attention = (x if mask is None else x.masked_fill(~mask, LOWEST)).softmax(-1)
        self.mixed = self.attention if self.matrix is None else self.attention @ self.matrix
        self.scores = (self.mixed * level.y).sum(-1)

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the gradient by y (any value at padding) and by the matrix, from that by the scores."""
        y, grad = self.level.y, grad.unsqueeze(-1)
        v = y if self.matrix is None else y @ self.matrix.T
        by_y = (self.attention * (v - self.scores.unsqueeze(-1)) / self.temperature + self.mixed) * grad
        if self.matrix is None:
            return by_y, None
        return by_y, (self.attention * grad).flatten(0, 1).T @ y.flatten(0, 1)


class MixedPlan(Plan):
    """The plan of a call with mixing matrices."""

    def __init__(self, query: Operand, candidate: Operand, spec: Spec) -> None:
        super().__init__(query, candidate, spec)
        self.kernels = kernels("mixed_kernels")

    def forward_blocks(self) -> Iterator[tuple[ItemRange, ItemRange]]:
        """Pair resident and streamed ranges for the forward pass."""
        return product(*self.blocks())

    def blocks(self) -> tuple[list[ItemRange], list[ItemRange]]:
        """Split both sides into ranges whose levels and parts by matrices take no more room than there is."""
        resident, streamed = max(self.resident.longest, 1), max(self.streamed.longest, 1)
        element = self.resident.tokens.element_size()
        tiling = TILINGS["mixed_slopes", element]
        levels = 4 * (self.row / streamed + self.col / resident)  # by a pair of slots
        parts = max(resident, streamed) ** 2 / (tiling.rows * tiling.cols)
        columns = min(launching.COLUMNS[element], int(LEVEL_ELEMENTS / launching.ROWS / max(levels, parts)))
        return list(self.resident.blocks(launching.ROWS)), list(self.streamed.blocks(columns))

    def scores(self, out: Tensor, resident: ItemRange, streamed: ItemRange) -> None:
        """Write the scores of two ranges to their places in `out` [resident, streamed]."""
        scores = [outer.scores for outer in self._outers(resident, streamed) if outer is not None]
        out[self._index(resident, streamed)] = sum(scores[1:], scores[0]) * self.share

    def factor(self, grad: Tensor) -> Tensor:
        """The factor [1] of the slopes: in fp16 as large as its range allows for the steepest that there can be.

        A level's derivative is about 1 at most, but with a matrix up to that over the temperature.
        """
        factor = super().factor(grad)
        if self.resident.tokens.dtype != torch.float16:
            return factor
        reach = (self.resident.norm * self.resident.scale).amax() * (self.streamed.norm * self.streamed.scale).amax()
        steepest = torch.ones_like(factor)
        for inner, outer in ((self.streamed.inner, self.resident.outer), (self.resident.inner, self.streamed.outer)):
            y = reach * _gain(inner)
            through_inner = _gain(inner) + y / self.spec.inner_temperature
            through_outer = _gain(outer) * (1 + y / self.spec.outer_temperature)
            steepest = steepest.maximum(through_inner * (1 if outer is None else through_outer))
        return 128 * factor / steepest

    def slopes(
        self, grad: Tensor, factor: Tensor, memory: Tensor, resident: ItemRange, streamed: ItemRange
    ) -> tuple[Tensor, ExtraGradients, ExtraGradients]:
        """Compute the gradient by the products of the tokens of two ranges, and by the matrices of either side."""
        grad = grad[self._index(resident, streamed)].float() * self.share
        arguments: list[Tensor] = []
        by_outer: list[Tensor | None] = []
        for outer in self._outers(resident, streamed):
            level, (by_y, by_matrix) = (factor, factor), (factor, None)
            if outer is not None:
                level, (by_y, by_matrix) = outer.level, outer.backward(grad)
            arguments += [*level, by_y]
            by_outer.append(by_matrix)
        tile = self._tile("mixed_slopes", resident, streamed)
        out, grid = room(memory, tile, resident, streamed), programs(tile, resident, streamed)
        by_q = self._new(tile, grid[0] * grid[1] * self.col, resident.length, resident.length)
        by_c = self._new(tile, grid[0] * grid[1] * self.row, streamed.length, streamed.length)
        launch(
            self.kernels.mixed_slopes_kernel, tile, grid, out, out.stride(0), factor, by_q, by_c, *arguments,
            *self._arguments(resident, streamed),
        )  # fmt: skip
        by_q, by_c = (parts.sum(0) / self.steep for parts in (by_q, by_c))
        return out, ExtraGradients(None, by_q, by_outer[0]), ExtraGradients(None, by_c, by_outer[1])

    def _outers(self, resident: ItemRange, streamed: ItemRange) -> tuple[OuterLevel | None, OuterLevel | None]:
        """Compute the outer level over the resident and over the streamed tokens; None for an unused direction."""
        tile = self._tile("levels", resident, streamed)
        pairs = resident.end - resident.start, streamed.end - streamed.start
        row, col = (
            InnerLevel(*(self._new(tile, *pairs, block.length if used else 0) for _ in InnerLevel._fields))
            for block, used in ((resident, self.row), (streamed, self.col))
        )
        grid = programs(tile, resident, streamed)
        launch(self.kernels.levels_kernel, tile, grid, *row, *col, *self._arguments(resident, streamed))
        t = self.spec.outer_temperature
        return (
            OuterLevel(row, self.resident, resident, _mask(self.resident, resident, 1), t) if self.row else None,
            OuterLevel(col, self.streamed, streamed, _mask(self.streamed, streamed, 0), t) if self.col else None,
        )

    def _index(self, resident: ItemRange, streamed: ItemRange) -> tuple[Tensor, Tensor]:
        """Index the pairs of two ranges in a matrix [resident, streamed]."""
        q, c = self.resident.order[resident.start : resident.end], self.streamed.order[streamed.start : streamed.end]
        return q.long().unsqueeze(1), c.long()

    def _new(self, tile: dict[str, Any], *shape: int) -> Tensor:
        """Allocate an fp32 output of a kernel; zeros where programs do not write all of it."""
        scale = self.resident.scale
        return scale.new_empty(shape) if tile["SINGLE"] else scale.new_zeros(shape)

    def _tile(self, kernel: str, resident: ItemRange, streamed: ItemRange) -> dict[str, Any]:
        tiling = TILINGS[kernel, self.resident.tokens.element_size()]
        size = tiling.rows * tiling.cols
        q_slots = max(power_of_two(resident.length), DOT if self.col else 1)
        c_slots = min(max(power_of_two(streamed.length), DOT if self.row else 1), SLOTS)
        rows = max(q_slots, DOT, min(tiling.rows, size // c_slots))
        cols = max(size // rows, DOT)
        c_slots = min(c_slots, cols)
        return self.compiled(tiling, (rows // q_slots, q_slots), (cols // c_slots, c_slots), resident, streamed)

    def _arguments(self, resident: ItemRange, streamed: ItemRange) -> tuple[Any, ...]:
        """The arguments that both kernels take, from q to steep."""
        q, c = self.resident, self.streamed
        return (
            q.tokens, c.tokens, q.index, c.index, q.scale, c.scale,
            q.scale if q.inner is None else q.inner, c.scale if c.inner is None else c.inner,
            c.device_lengths, resident.start, resident.end, streamed.start, streamed.end,
            q.width, c.width, resident.length, streamed.length, q.tokens.shape[1], self.steep,
        )  # fmt: skip


def _mask(side: FusedSide, block: ItemRange, axis: int) -> Tensor | None:
    """Mask of the real slots of a range, with an axis for the other side's items; None: all are."""
    if not block.ragged:
        return None
    return (side.index[block.start : block.end, : block.length] >= 0).unsqueeze(axis)


def _gain(matrix: Tensor | None) -> Tensor | float:
    """The largest factor, at least 1, by which mixing can enlarge a value."""
    return 1.0 if matrix is None else matrix.abs().sum(1).amax().clamp_min(1)
