"""AOSM with mixing matrices on the triton backend.

A kernel writes what the inner level comes to for a block of pairs, [held items, streamed items, tokens of one side]:
by the length of the other side less than their similarities. The outer level and its gradient are ordinary operations
on that. The backward pass computes the level again; a second kernel then goes from the gradient by it to those by
the products of the tokens, which scores.py takes on, and by the inner matrices, of which every program writes a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import Operand, Spec
from . import launch as launching
from .launch import Plan, Tiling, kernels, launch, programs, room
from .side import Beside, Block, FusedSide, power_of_two

# As in launch.py, but a tile takes another shape of the same size where a streamed item is longer. Items of
# more than 64 held or streamed tokens do leave registers of the slopes to memory: larger tiles do not fit.
TILINGS = {
    ("levels", 2): Tiling(64, 128, 64, 8, 3),
    ("levels", 4): Tiling(64, 128, 32, 8, 3),
    ("mixed_slopes", 2): Tiling(64, 64, 64, 8, 3),
    ("mixed_slopes", 4): Tiling(64, 64, 32, 8, 3),
}
SLOTS = 128  # of a streamed item in a tile, at most
DOT = 16  # the least width of a matrix product
ELEMENTS = 1 << 25  # of a block's levels, and of the parts of its gradient by matrices: at most 128 MB

LOWEST = -1e30  # below every similarity, yet finite


class Level(NamedTuple):
    """The inner level of a block of pairs, [held items, streamed items, slots of the outer side] each."""

    y: Tensor  # similarities, 0 at padding
    norm: Tensor  # the log2 of the sum of 2^x, of which the attention was drawn


class Outer:
    """The outer level over the tokens of a block of a side: attention over y, mixed, and its scores."""

    def __init__(self, level: Level, side: FusedSide, block: Block, mask: Tensor | None, temperature: float) -> None:
        self.level, self.temperature = level, temperature
        self.matrix = None if side.outer is None else side.outer[: block.length, : block.length]
        x = level.y / temperature
        self.attention = (x if mask is None else x.masked_fill(~mask, LOWEST)).softmax(-1)
        self.mixed = self.attention if self.matrix is None else self.attention @ self.matrix
        self.scores = (self.mixed * level.y).sum(-1)

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient by y (at padding whatever it is) and by the matrix, from that by the scores."""
        y, grad = self.level.y, grad.unsqueeze(-1)
        v = y if self.matrix is None else y @ self.matrix.T
        by_y = (self.attention * (v - self.scores.unsqueeze(-1)) / self.temperature + self.mixed) * grad
        if self.matrix is None:
            return by_y, None
        return by_y, (self.attention * grad).flatten(0, 1).T @ y.flatten(0, 1)


class MixedPlan(Plan):
    """A call with matrices."""

    def __init__(self, query: Operand, candidate: Operand, spec: Spec) -> None:
        super().__init__(query, candidate, spec)
        self.kernels = kernels("mixed_kernels")

    def forward_blocks(self) -> Iterator[tuple[Block, Block]]:
        """All pairs of held and streamed blocks."""
        return product(*self.blocks())

    def blocks(self) -> tuple[list[Block], list[Block]]:
        """Held and streamed blocks whose levels and parts by matrices take no more room than there is."""
        held, streamed = max(self.held.longest, 1), max(self.streamed.longest, 1)
        element = self.held.tokens.element_size()
        tiling = TILINGS["mixed_slopes", element]
        levels = 4 * (self.row / streamed + self.col / held)  # by a pair of slots
        parts = max(held, streamed) ** 2 / (tiling.rows * tiling.cols)
        columns = min(launching.COLUMNS[element], int(ELEMENTS / launching.ROWS / max(levels, parts)))
        return list(self.held.blocks(launching.ROWS)), list(self.streamed.blocks(columns))

    def scores(self, out: Tensor, held: Block, streamed: Block) -> None:
        """Write the scores of two blocks to their places in `out` [held, streamed]."""
        scores = [outer.scores for outer in self._outers(held, streamed) if outer is not None]
        out[self._index(held, streamed)] = sum(scores[1:], scores[0]) * self.share

    def factor(self, grad: Tensor) -> Tensor:
        """By what the slopes are multiplied, [1]: for fp16, so much that the steepest there can be are in its range.

        A level's derivative is about 1 at most, but with a matrix up to that over the temperature.
        """
        factor = super().factor(grad)
        if self.held.tokens.dtype != torch.float16:
            return factor
        reach = (self.held.norm * self.held.scale).amax() * (self.streamed.norm * self.streamed.scale).amax()
        steepest = torch.ones_like(factor)
        for inner, outer in ((self.streamed.inner, self.held.outer), (self.held.inner, self.streamed.outer)):
            y = reach * _gain(inner)
            through_inner = _gain(inner) + y / self.spec.inner_temperature
            through_outer = _gain(outer) * (1 + y / self.spec.outer_temperature)
            steepest = steepest.maximum(through_inner * (1 if outer is None else through_outer))
        return 128 * factor / steepest

    def slopes(
        self, grad: Tensor, factor: Tensor, memory: Tensor, held: Block, streamed: Block
    ) -> tuple[Tensor, Beside, Beside]:
        """The gradient by the products of the tokens of two blocks, and by the matrices of either side."""
        grad = grad[self._index(held, streamed)].float() * self.share
        arguments: list[Tensor] = []
        by_outer: list[Tensor | None] = []
        for outer in self._outers(held, streamed):
            level, (by_y, by_matrix) = (factor, factor), (factor, None)
            if outer is not None:
                level, (by_y, by_matrix) = outer.level, outer.backward(grad)
            arguments += [*level, by_y]
            by_outer.append(by_matrix)
        tile = self._tile("mixed_slopes", held, streamed)
        out, grid = room(memory, tile, held, streamed), programs(tile, held, streamed)
        by_q = self._new(tile, grid[0] * grid[1] * self.col, held.length, held.length)
        by_c = self._new(tile, grid[0] * grid[1] * self.row, streamed.length, streamed.length)
        launch(
            self.kernels.mixed_slopes_kernel, tile, grid, out, out.stride(0), factor, by_q, by_c, *arguments,
            *self._arguments(held, streamed),
        )  # fmt: skip
        by_q, by_c = (parts.sum(0) / self.steep for parts in (by_q, by_c))
        return out, Beside(None, by_q, by_outer[0]), Beside(None, by_c, by_outer[1])

    def _outers(self, held: Block, streamed: Block) -> tuple[Outer | None, Outer | None]:
        """The outer level over the held and over the streamed tokens of two blocks, where there is such a direction."""
        tile = self._tile("levels", held, streamed)
        pairs = held.end - held.first, streamed.end - streamed.first
        row, col = (
            Level(*(self._new(tile, *pairs, block.length if used else 0) for _ in Level._fields))
            for block, used in ((held, self.row), (streamed, self.col))
        )
        grid = programs(tile, held, streamed)
        launch(self.kernels.levels_kernel, tile, grid, *row, *col, *self._arguments(held, streamed))
        t = self.spec.outer_temperature
        return (
            Outer(row, self.held, held, _mask(self.held, held, 1), t) if self.row else None,
            Outer(col, self.streamed, streamed, _mask(self.streamed, streamed, 0), t) if self.col else None,
        )

    def _index(self, held: Block, streamed: Block) -> tuple[Tensor, Tensor]:
        """Where the pairs of two blocks are in a matrix [held, streamed]."""
        q, c = self.held.order[held.first : held.end], self.streamed.order[streamed.first : streamed.end]
        return q.long().unsqueeze(1), c.long()

    def _new(self, tile: dict[str, Any], *shape: int) -> Tensor:
        """What a kernel writes, in fp32: all of it, or what lies before each program's longest streamed item."""
        scale = self.held.scale
        return scale.new_empty(shape) if tile["SINGLE"] else scale.new_zeros(shape)

    def _tile(self, kernel: str, held: Block, streamed: Block) -> dict[str, Any]:
        tiling = TILINGS[kernel, self.held.tokens.element_size()]
        size = tiling.rows * tiling.cols
        q_slots = max(power_of_two(held.length), DOT if self.col else 1)
        c_slots = min(max(power_of_two(streamed.length), DOT if self.row else 1), SLOTS)
        rows = max(q_slots, DOT, min(tiling.rows, size // c_slots))
        cols = max(size // rows, DOT)
        c_slots = min(c_slots, cols)
        return self.compiled(tiling, (rows // q_slots, q_slots), (cols // c_slots, c_slots), held, streamed)

    def _arguments(self, held: Block, streamed: Block) -> tuple[Any, ...]:
        """The arguments that both kernels take, from q to steep."""
        q, c = self.held, self.streamed
        return (
            q.tokens, c.tokens, q.index, c.index, q.scale, c.scale,
            q.scale if q.inner is None else q.inner, c.scale if c.inner is None else c.inner,
            c.device_lengths, held.first, held.end, streamed.first, streamed.end,
            q.width, c.width, held.length, streamed.length, q.tokens.shape[1], self.steep,
        )  # fmt: skip


def _mask(side: FusedSide, block: Block, axis: int) -> Tensor | None:
    """Which slots of a block are real, with an axis for the other side's items; None: all are."""
    if not block.ragged:
        return None
    return (side.index[block.first : block.end, : block.length] >= 0).unsqueeze(axis)


def _gain(matrix: Tensor | None) -> Tensor | float:
    """How many times the largest of its values mixing can make, and at least 1."""
    return 1.0 if matrix is None else matrix.abs().sum(1).amax().clamp_min(1)
