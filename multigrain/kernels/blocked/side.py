"""Side: one side of a score matrix, read block by block so that only real tokens cost anything.

Items are sorted by their number of real tokens and each block is trimmed to its longest item. A block is read
widened to fp32 (fp64 stays), normalised, scaled, and zero behind its mask; nothing as large as the full side is ever
copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tokens import EPS
from ..spec import Operand


@dataclass(frozen=True)
class Block:
    """Some items of a side and the number of token slots that the longest of them needs."""

    items: slice | Tensor
    size: int
    length: int
    ragged: bool  # True where some slot is padding


class Side:
    """An operand in blocks; `scale` multiplies every token that is read."""

    def __init__(self, given: Operand, scale: float = 1.0) -> None:
        x, mask = given.x, given.mask
        self.given, self.scale = given, scale
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.reciprocal = reciprocal_norm(x, mask) if given.normalize else None
        self.order: Tensor | None = None  # of items, longest first; None: as they come, all of full length
        self.slots: Tensor | None = None  # of tokens within an item, real ones first; None: they already are
        self.lengths = [x.shape[1]] * x.shape[0]
        self.counted = mask
        if mask is not None and not bool(mask.all()):
            # An item without a real token counts as one token, which is read as zeros.
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            self.counted = mask = mask | (first & ~mask.any(1, keepdim=True))
            lengths, self.order = mask.sum(1).sort(descending=True, stable=True)
            self.lengths = lengths.tolist()
            if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
                self.slots = (~mask).to(torch.uint8).sort(dim=1, stable=True).indices

    def blocks(self, tokens: int, multiple: int = 1) -> Iterator[Block]:
        """Split into blocks of complete items and about so many token slots; a multiple of items where it can be."""
        start, total = 0, len(self.lengths)
        while start < total:
            length = self.lengths[start]
            size = max(1, tokens // length)
            size = min(size - size % multiple if size > multiple else size, total - start)
            # Where items soon get much shorter, smaller blocks pad less; each still has enough to do.
            while size >= 2 * multiple and size * length > tokens // 8 and self._shrinks(start, size):
                size = max(size // 2 - size // 2 % multiple, multiple)
            items = slice(start, start + size) if self.order is None else self.order[start : start + size]
            ragged = self.order is not None and self.lengths[start + size - 1] < length
            yield Block(items, size, length, ragged)
            start += size

    def _shrinks(self, start: int, size: int) -> bool:
        return 4 * self.lengths[start + size - 1] < 3 * self.lengths[start]

    def read(self, block: Block) -> Tensor:
        """Read the tokens [size, length, D] of a block: a view where the given tensor can stay as it is."""
        x = self._take(self.given.x, block).to(self.dtype)
        if self.given.mask is not None and self.order is not None:
            x = torch.where(self._take(self.given.mask, block).unsqueeze(-1), x, 0.0)
        if self.reciprocal is not None:
            return x * (self._take(self.reciprocal, block) * self.scale).unsqueeze(-1)
        return x if self.scale == 1 else x * self.scale

    def masks_and_weights(self, block: Block) -> tuple[Tensor | None, Tensor | None]:
        """Return a block's mask [size, length], None where all are real, and its weights, None without any."""
        mask = self._take(self.counted, block) if block.ragged and self.counted is not None else None
        return mask, None if self.given.weights is None else self._take(self.given.weights, block)

    def add(self, total: Tensor, block: Block, part: Tensor, factor: Tensor) -> None:
        """Add factor * part [size, length, ...] of a block to total [B, L, ...]."""
        if isinstance(block.items, slice):
            total[block.items, : block.length].addcmul_(part, factor)
        elif self.slots is None:
            total[block.items, : block.length] = total[block.items, : block.length].addcmul_(part, factor)
        else:
            index = (block.items[:, None], self.slots[block.items, : block.length])
            total[index] = total[index].addcmul_(part, factor)

    def _take(self, x: Tensor, block: Block) -> Tensor:
        if isinstance(block.items, slice):
            return x[block.items]
        if self.slots is None:
            return x[block.items, : block.length]
        return x[block.items[:, None], self.slots[block.items, : block.length]]

    def through_norm(self, gradient: Tensor) -> Tensor:
        """Turn the gradient by tokens of length 1, in place, into that by the given ones, in their dtype.

        u = x / |x|:  dx = (du - u <u, du>) / |x|; some items at a time, to copy no more than those.
        """
        if self.reciprocal is None:
            return gradient.to(self.given.x.dtype)
        step = max(1, _CHUNK // gradient[0].numel())
        for rows in (slice(i, i + step) for i in range(0, len(gradient), step)):
            g, r = gradient[rows], self.reciprocal[rows].unsqueeze(-1)
            x = self.given.x[rows].to(self.dtype)
            if self.given.mask is not None:
                x = torch.where(self.given.mask[rows].unsqueeze(-1), x, 0.0)
            unit = x * r
            g.addcmul_(unit, (unit * g).sum(-1, keepdim=True), value=-1).mul_(r)
        return gradient.to(self.given.x.dtype)


_CHUNK = 1 << 18  # elements


def reciprocal_norm(x: Tensor, mask: Tensor | None) -> Tensor:
    """Compute 1 / |x| of tokens [B, L, D] in fp32 (fp64 stays), 0 where there is no direction or no real token.

    NaN where |x| is infinite: 0 would be a score, and not the right one.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    real = norm > EPS if mask is None else (norm > EPS) & mask
    return torch.where(real, 1 / torch.where(norm.isinf(), torch.nan, norm), 0.0)
