"""What the kernels of the triton backend are told of a side, and what becomes of its gradient after them.

Nothing is copied to leave padding out: an index says which rows of the tokens are in the slots of each item, real
ones first, and the items are taken longest first. A block of items has the number of slots of its longest, and
ends where the next smaller power of two is enough. Where a matrix mixes tokens by their place, they keep it: an
item then ends with its last real token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...tokens import EPS
from ..spec import Operand

# fp16 tokens are brought to norms of about 2 ** BOOST, exactly: whatever is multiplied by 1 / norm stays in its range.
BOOST = 8
# Items of up to so many tokens are not told apart: a launch of their own would cost more.
SHORT = 8


@dataclass(frozen=True)
class Block:
    """Items first:end of a side in its order, and the number of tokens of the longest."""

    first: int
    end: int
    length: int
    ragged: bool  # whether a slot is padding

    @property
    def slots(self) -> int:
        """Token slots of all its items."""
        return (self.end - self.first) * self.length


class FusedSide:
    """An operand: its tokens [B L, D], contiguous, of the given dtype, and the index of the real ones."""

    def __init__(self, given: Operand, dtype: torch.dtype) -> None:
        x, mask = given.x, given.mask
        self.given = given
        self.inner, self.outer = (None if w is None else w.float().contiguous() for w in (given.inner, given.outer))
        self.weights = None if given.weights is None else given.weights.float().reshape(-1).contiguous()
        norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
        if mask is not None:
            norm = torch.where(mask, norm, 0.0)
        # NaN for an item with a NaN at a real token, else 0: the device's maximum passes over NaN.
        self.alien = (norm * 0).sum(1)
        norm = norm.reshape(-1)
        self.tokens = x.to(dtype).reshape(-1, x.shape[2]).contiguous()
        self.boost: Tensor | None = None  # [B L]: powers of two that the tokens have been multiplied by
        if given.normalize and dtype == torch.float16:
            self.boost = torch.exp2(BOOST - torch.where(norm > EPS, norm, 1.0).log2().ceil())
            self.tokens = (self.tokens * self.boost.unsqueeze(1)).to(dtype)
            norm = norm * self.boost
        self.norm = norm  # of the tokens above; 0 where they are not real
        # 1 / norm; 0 where there is no direction or no real token.
        self.scale = torch.where(norm > EPS, 1 / norm, 0.0) if given.normalize else torch.ones_like(norm)
        self._sort()

    def _sort(self) -> None:
        """Order items by their number of slots, the longest first, and slots within them, real ones first."""
        (size, self.width), mask, device = self.given.x.shape[:2], self.given.mask, self.given.x.device
        self.index = torch.arange(size * self.width, dtype=torch.int32, device=device).view(size, self.width)
        self.order = torch.arange(size, dtype=torch.int32, device=device)
        self.lengths, self.holes, self.dense = [self.width] * size, False, True
        if mask is not None:
            real = ends = mask.sum(1)
            if self.given.mixed:
                ends = (mask * torch.arange(1, self.width + 1, device=device)).amax(1)
            counts, self.lengths = torch.stack([real, ends]).tolist()
            self.holes = counts != self.lengths
            self.dense = not self.holes and all(length == self.width for length in self.lengths)
            if not self.dense:
                self.index = torch.where(mask, self.index, -1)
                if not self.given.mixed:
                    self.index = self.index.gather(1, (~mask).to(torch.uint8).argsort(dim=1, stable=True))
                order = ends.argsort(descending=True, stable=True)
                self.index, self.order = self.index[order].contiguous(), order.int()
                self.lengths.sort(reverse=True)
        self.device_lengths = torch.tensor(self.lengths, dtype=torch.int32).to(device, non_blocking=True)

    @property
    def longest(self) -> int:
        """The most tokens of an item."""
        return max(self.lengths, default=1)

    def whole(self) -> Block:
        """All items as one block."""
        return Block(0, len(self.lengths), max(self.longest, 1), not self.dense)

    def blocks(self, slots: int | None = None) -> Iterator[Block]:
        """Blocks of at most so many slots (or of one item), of items that need the same power of two."""
        first, total = 0, len(self.lengths)
        while first < total:
            length = max(self.lengths[first], 1)
            least = power_of_two(length) // 2 if length > SHORT else 0
            limit = total if slots is None else min(total, first + max(1, slots // length))
            end = first + 1
            while end < limit and self.lengths[end] > least:
                end += 1
            yield Block(first, end, length, self.holes or self.lengths[end - 1] < length)
            first = end


class Beside(NamedTuple):
    """The gradient by what else a side has, from a block of pairs, in fp32; None for what it has not."""

    weights: Tensor | None = None  # [number of parts to add, slots]
    inner: Tensor | None = None  # the upper left corner [length, length]
    outer: Tensor | None = None


class Part:
    """The gradient by the tokens of a block [slots, D] and by their weights [slots] as it adds up, in fp32."""

    def __init__(self, side: FusedSide, block: Block) -> None:
        self.side, self.block = side, block
        self.rows = side.index[block.first : block.end, : block.length].reshape(-1).long()
        self.tokens = self._tokens()
        self.x = torch.zeros_like(self.tokens, dtype=torch.float32)
        self.weights = None if side.weights is None else torch.zeros_like(self.rows, dtype=torch.float32)

    def _tokens(self) -> Tensor:
        """Those of the block [slots, D], zero at padding."""
        if self.side.dense:
            return self.side.tokens[self.block.first * self.side.width : self.block.end * self.side.width]
        x = self.side.tokens.index_select(0, self.rows.clamp_min(0))
        return torch.where((self.rows >= 0).unsqueeze(1), x, 0.0) if self.block.ragged else x

    def add(self, slopes: Tensor, other: Tensor, beside: Beside) -> None:
        """Add what comes from the gradient by the products [slots, other slots] with the other tokens."""
        self.x += product(slopes, other)
        if self.weights is not None and beside.weights is not None:
            self.weights += beside.weights.sum(0)

    def put(self, factor: Tensor, total: Total) -> None:
        """Write what has added up, `factor` times too large, to its place in the whole; it is of no use after."""
        x, side = self.x, self.side
        to = torch.where(self.rows >= 0, self.rows, len(side.tokens))
        if side.given.normalize:
            # y = x / |x|: dx = (dy - y <y, dy>) / |x|, and here is dy / |x|.
            tokens = self.tokens.float()
            along = torch.linalg.vecdot(tokens, x) * side.scale[self.rows].square()
            x.addcmul_(tokens, along.unsqueeze(1), value=-1)
        if side.boost is not None:
            x.mul_(side.boost[self.rows].unsqueeze(1))
        total.padded_x.index_copy_(0, to, x.div_(factor).to(total.padded_x.dtype))
        if self.weights is not None and total.padded_weights is not None:
            total.padded_weights.index_copy_(0, to, self.weights.to(total.padded_weights.dtype))


class Total:
    """The gradient by the given tokens, weights and matrices of a side; a row too many takes what is written for
    padding."""

    def __init__(self, side: FusedSide) -> None:
        self.given = side.given
        size, width, dim = side.given.x.shape
        self.padded_x = side.given.x.new_zeros(size * width + 1, dim)
        weights = side.given.weights
        self.padded_weights = None if weights is None else weights.new_zeros(size * width + 1)
        self.matrices = [None if w is None else torch.zeros_like(w) for w in (side.inner, side.outer)]

    def add(self, beside: Beside) -> None:
        """Add what comes from a block of pairs to the gradient by the matrices."""
        for total, w in zip(self.matrices, (beside.inner, beside.outer), strict=True):
            if total is not None and w is not None:
                total[: len(w), : len(w)] += w

    @property
    def x(self) -> Tensor:
        """[B, L, D] in the dtype of the tokens."""
        return self.padded_x[:-1].view(self.given.x.shape)

    @property
    def weights(self) -> Tensor | None:
        """[B, L] in the dtype of the weights; None where there are none."""
        return None if self.padded_weights is None else self.padded_weights[:-1].view(self.given.x.shape[:2])

    @property
    def inner(self) -> Tensor | None:
        """[L, L] in the dtype of the matrix of an inner reduction; None where there is none."""
        return _like(self.matrices[0], self.given.inner)

    @property
    def outer(self) -> Tensor | None:
        """[L, L] in the dtype of the matrix of an outer reduction; None where there is none."""
        return _like(self.matrices[1], self.given.outer)


def _like(total: Tensor | None, given: Tensor | None) -> Tensor | None:
    return None if total is None or given is None else total.to(given.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32, whatever they are in."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
