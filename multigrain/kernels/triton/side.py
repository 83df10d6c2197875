"""A side as the kernels of the triton backend read it, and its gradient as it adds up from theirs.

Tokens are not copied to leave padding out: an index says which rows of the tokens are in the slots of each item, real
ones first, and items are sorted, the longest first. A range of items has as many slots an item as its longest needs,
and ends where the next smaller power of two is enough. Where a matrix mixes tokens by their place, they keep it: an
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

# fp16 tokens are scaled to norms of about 2 ** BOOST, exactly: what is multiplied by 1 / norm then stays in range.
BOOST = 8
# Items of up to so many tokens share a range: a launch for each length would cost more.
SHORT = 8


@dataclass(frozen=True)
class ItemRange:
    """Items start:end of a side in its sorted order, and the number of tokens of the longest."""

    start: int
    end: int
    length: int
    ragged: bool  # True where a slot is padding

    @property
    def slots(self) -> int:
        """Token slots of all items."""
        return (self.end - self.start) * self.length


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
        # [B]: NaN for an item with a NaN at a real token, else 0: the device's maximum ignores NaN.
        self.nan_items = (norm * 0).sum(1)
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

    def all_items(self) -> ItemRange:
        """Return all items as one range."""
        return ItemRange(0, len(self.lengths), max(self.longest, 1), not self.dense)

    def blocks(self, slots: int | None = None) -> Iterator[ItemRange]:
        """Split the items into ranges of at most so many slots (or one item) that need the same power of two."""
        start, total = 0, len(self.lengths)
        while start < total:
            length = max(self.lengths[start], 1)
            least = power_of_two(length) // 2 if length > SHORT else 0
            limit = total if slots is None else min(total, start + max(1, slots // length))
            end = start + 1
            while end < limit and self.lengths[end] > least:
                end += 1
            yield ItemRange(start, end, length, self.holes or self.lengths[end - 1] < length)
            start = end


class ExtraGradients(NamedTuple):
    """Gradients by a side's weights and matrices from a block of pairs, in fp32; None for those that it lacks."""

    weights: Tensor | None = None  # [number of parts to add, slots]
    inner: Tensor | None = None  # the upper left corner [length, length]
    outer: Tensor | None = None


class BlockGradient:
    """The gradient by the tokens [slots, D] of a range of items and by their weights [slots], added up in fp32."""

    def __init__(self, side: FusedSide, block: ItemRange) -> None:
        self.side, self.block = side, block
        self.rows = side.index[block.start : block.end, : block.length].reshape(-1).long()
        self.tokens = self._read_tokens()
        self.x = torch.zeros_like(self.tokens, dtype=torch.float32)
        self.weights = None if side.weights is None else torch.zeros_like(self.rows, dtype=torch.float32)

    def _read_tokens(self) -> Tensor:
        """Read the tokens [slots, D] of the range, zero at padding."""
        if self.side.dense:
            return self.side.tokens[self.block.start * self.side.width : self.block.end * self.side.width]
        x = self.side.tokens.index_select(0, self.rows.clamp_min(0))
        return torch.where((self.rows >= 0).unsqueeze(1), x, 0.0) if self.block.ragged else x

    def add(self, slopes: Tensor, other: Tensor, extra: ExtraGradients) -> None:
        """Add the share of a block of pairs, given the gradient by the products [slots, other slots] of the tokens."""
        self.x += product(slopes, other)
        if self.weights is not None and extra.weights is not None:
            self.weights += extra.weights.sum(0)

    def put(self, factor: Tensor, total: SideGradient) -> None:
        """Write the sum, which is `factor` times too large, to its place in the gradient of the side, and spoil it."""
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


class SideGradient:
    """The gradient by the tokens, weights and matrices of a side; an additional row takes the writes of padding."""

    def __init__(self, side: FusedSide) -> None:
        self.given = side.given
        size, width, dim = side.given.x.shape
        self.padded_x = side.given.x.new_zeros(size * width + 1, dim)
        weights = side.given.weights
        self.padded_weights = None if weights is None else weights.new_zeros(size * width + 1)
        self.matrices = [None if w is None else torch.zeros_like(w) for w in (side.inner, side.outer)]

    def add(self, extra: ExtraGradients) -> None:
        """Add the share of a block of pairs to the gradient by the matrices."""
        for total, w in zip(self.matrices, (extra.inner, extra.outer), strict=True):
            if total is not None and w is not None:
                total[: len(w), : len(w)] += w

    def finish(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients by tokens, weights, inner and outer matrix, in their dtypes; None for absent ones."""
        shape, given = self.given.x.shape, (self.given.inner, self.given.outer)
        weights = None if self.padded_weights is None else self.padded_weights[:-1].view(shape[:2])
        inner, outer = (
            None if total is None or w is None else total.to(w.dtype)
            for total, w in zip(self.matrices, given, strict=True)
        )
        return self.padded_x[:-1].view(shape), weights, inner, outer


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a @ b in fp32, whatever their dtype."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
