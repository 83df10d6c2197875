"""An all-gather of features, with their masks and ids, between the ranks of a group; differentiable.

    forward    gathered = features of rank 0, rank 1, ...        one all-gather for each grain, mask and set of ids
    backward   d features = sum over ranks of d gathered[own]    one reduce-scatter for each grain (gloo: all-reduce)

The sum makes the gradient exact: each rank's features enter the losses of all ranks. A gather without it returns
1 / ranks of the gradient. Scores are never exchanged.

Batches and token counts may differ between ranks: they travel padded to the largest. Before any tensor does, the ranks
exchange one small header; where it shows that they disagree, each of them raises the same error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Features, Tokens
from .collectives import Group, all_gather_object, world
from .tensors import all_gather, explained, reduce_scatter


class Gathered(NamedTuple):
    """The items of all ranks, rank zero first.

    `features` by side, `ids` as they were given, `sizes` the items of each rank by side, `rank` this process.
    """

    features: dict[str, Features]
    ids: tuple[Tensor, ...]
    sizes: dict[str, list[int]]
    rank: int

    def own(self, side: str) -> slice:
        """Slice of this rank's items."""
        start = sum(self.sizes[side][: self.rank])
        return slice(start, start + self.sizes[side][self.rank])


def single_rank(sides: Mapping[str, Features], ids: Sequence[Tensor] = (), problem: str | None = None) -> Gathered:
    """Return what `gather` returns in a group of one rank, or raise its error."""
    if problem:
        raise ValueError(problem)
    return Gathered(dict(sides), _on_device(sides, ids), {side: [len(sides[side])] for side in sides}, 0)


def gather(
    sides: Mapping[str, Features],
    ids: Sequence[Tensor] = (),
    group: Group = None,
    dtype: torch.dtype | None = None,
    problem: str | None = None,
    kept: Mapping[str, Features] | None = None,
) -> Gathered:
    """Gather the features of all ranks on each of them; this rank's get their full gradient. Collective.

    Args:
        sides: Features by a name that errors use, such as "text" and "video".
        ids: sets of integers that travel along; as many sets on each rank, of any length.
        group: the process group; None: the default one. Without one, or in one of one rank, nothing is exchanged.
        dtype: the dtype of features while they travel, such as torch.bfloat16; None: their own. They arrive in their
            own dtype again, rounded, this rank's included. Gradients are summed in fp32 or wider whatever it is.
        problem: why this rank cannot take part; every rank then raises it.
        kept: more sides, which have to agree between ranks but stay where they are.

    Raises:
        ValueError: on every rank, where one has a problem or ranks differ in grains, widths, dtypes, devices, in being
            unit, in needing a gradient or in having ids; it names what differs on which rank.
        RuntimeError: a rank ended or did not answer in the time of the process group.
    """
    rank, size = world(group)
    if size == 1:
        return single_rank(sides, ids, problem)
    with explained(group):
        headers = all_gather_object(_header(dict(kept or {}) | dict(sides), ids, dtype, problem), group)
    _agree(headers)
    slots = [_Slot(side, name, sides[side][name], headers) for side in sides for name in sorted(sides[side].names)]
    shapes, features = [(slot.sizes, slot.length) for slot in slots], [s.tokens.tokenwise().features for s in slots]
    gathered = cast("tuple[Tensor, ...]", _Gather.apply(shapes, rank, group, dtype, *features))
    grains: dict[str, dict[str, Tokens]] = {side: {} for side in sides}
    for slot, x in zip(slots, gathered, strict=True):
        mask = all_gather(slot.mask, slot.sizes, group).bool() if slot.masked else None
        grains[slot.side][slot.name] = Tokens(x.squeeze(1) if slot.coarse else x, mask, unit=slot.tokens.unit)
    numbers = zip(*(header.ids for header in headers), strict=True)
    all_ids = tuple(all_gather(x, n, group) for x, n in zip(_on_device(sides, ids), numbers, strict=True))
    sizes = {side: [header.sizes[side] for header in headers] for side in headers[rank].sizes}
    return Gathered({side: Features(**grains[side]) for side in sides}, all_ids, sizes, rank)


def _on_device(sides: Mapping[str, Features], ids: Sequence[Tensor]) -> tuple[Tensor, ...]:
    device = next(iter(sides.values())).device
    return tuple(x.to(device, torch.int64) for x in ids)


def wire_bytes(
    sides: Iterable[Features], ranks: int, ids: int = 0, dtype: torch.dtype | None = None, gloo: bool = False
) -> tuple[int, int]:
    """Count the bytes that each rank sends, forward and backward, where all ranks have features of these shapes.

        forward   (ranks - 1) * (sum over grains B L D bytes(dtype) + sum over masks B L + 8 * ids)
        backward  (ranks - 1) * sum over grains that need a gradient B L D max(4, bytes)          twice that on gloo

    This holds for an algorithm that sends each block once to each other rank or around a ring, as those of gloo and
    NCCL do. The header, some hundred bytes, is not counted.

    Args:
        ids: how many integers go with them.
        gloo: its backward pass is an all-reduce.
    """
    forward = backward = 0
    for tokens in (features[name] for features in sides for name in features.names):
        numbers = tokens.features.numel()
        forward += numbers * (dtype or tokens.dtype).itemsize
        forward += 0 if tokens.mask is None else tokens.mask.numel()
        backward += numbers * max(4, tokens.dtype.itemsize) * tokens.features.requires_grad
    return (ranks - 1) * (forward + 8 * ids), (ranks - 1) * backward * (2 if gloo else 1)


@dataclass(frozen=True)
class _Header:
    """The first message between ranks: facts in which they must agree, and sizes in which they may differ."""

    problem: str | None
    facts: dict[str, str]
    ids: tuple[int, ...]
    sizes: dict[str, int]
    tokens: dict[tuple[str, str], tuple[int, int, bool]]  # (side, grain) -> dimensions, length, masked


def _header(
    sides: Mapping[str, Features], ids: Sequence[Tensor], dtype: torch.dtype | None, problem: str | None
) -> _Header:
    facts = {"the number of sets of ids": str(len(ids)), "the dtype of the exchange": str(dtype)}
    tokens: dict[tuple[str, str], tuple[int, int, bool]] = {}
    for side, features in sides.items():
        for name in features.names:
            grain = features[name]
            needs = "a" if grain.features.requires_grad and torch.is_grad_enabled() else "no"
            unit = ", unit" if grain.unit else ""
            facts[f"grain {name!r} of {side}"] = (
                f"width {grain.dim}, {grain.dtype}{unit} on {grain.device.type} with {needs} gradient"
            )
            tokens[side, name] = (grain.features.ndim, grain.length, grain.mask is not None)
    sizes = {side: len(features) for side, features in sides.items()}
    return _Header(problem, facts, tuple(map(len, ids)), sizes, tokens)


def _agree(headers: Sequence[_Header]) -> None:
    """Raise the same error on each rank where one has a problem or ranks differ."""
    problems = [f"rank {rank}: {header.problem}" for rank, header in enumerate(headers) if header.problem]
    if not problems:
        for what in dict.fromkeys(what for header in headers for what in header.facts):
            found: defaultdict[str, list[str]] = defaultdict(list)
            for rank, header in enumerate(headers):
                found[header.facts.get(what, "absent")].append(str(rank))
            if len(found) > 1:
                values = (f"{value} on rank {', '.join(ranks)}" for value, ranks in found.items())
                problems.append(f"{what}: expected the same on all ranks, got {'; '.join(values)}")
    if problems:
        raise ValueError("; ".join(problems))


class _Slot:
    """One grain of one side: the items of each rank, and the length that all are padded to."""

    def __init__(self, side: str, name: str, tokens: Tokens, headers: Sequence[_Header]) -> None:
        self.side, self.name, self.tokens = side, name, tokens
        dimensions, lengths, masks = zip(*(header.tokens[side, name] for header in headers), strict=True)
        self.coarse = max(dimensions) == 2
        self.sizes, self.length = [header.sizes[side] for header in headers], max(lengths)
        self.masked = any(masks) or len(set(lengths)) > 1

    @property
    def mask(self) -> Tensor:
        """The mask [B, the largest length] of this rank, as bytes: not every backend sends bool."""
        mask = self.tokens.real_mask
        return F.pad(mask.byte(), (0, self.length - self.tokens.length))


class _Gather(torch.autograd.Function):
    """[own items, own length, D] of each grain -> [all items, largest length, D].

    One node for all grains: its collectives run in one order, whatever order autograd takes the rest of a graph in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shapes: Sequence[tuple[list[int], int]],
        rank: int,
        group: Group,
        dtype: torch.dtype | None,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        """All-gather each grain, padded, in the dtype of the exchange."""
        ctx.sizes, ctx.rank, ctx.group = [sizes for sizes, _ in shapes], rank, group
        ctx.lengths = [x.shape[1] for x in features]
        gathered: list[Tensor] = []
        for (sizes, length), x in zip(shapes, features, strict=True):
            padded = F.pad(x.to(dtype or x.dtype), (0, 0, 0, length - x.shape[1]))
            gathered.append(all_gather(padded, sizes, group).to(x.dtype))
        return tuple(gathered)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sum the gradients of this rank's items over the ranks."""
        own: list[Tensor | None] = []
        for sizes, grad, length, needed in zip(ctx.sizes, grads, ctx.lengths, ctx.needs_input_grad[4:], strict=True):
            total = reduce_scatter(grad, sizes, ctx.rank, ctx.group) if needed else None
            own.append(None if total is None else total[:, :length].to(grad.dtype))
        return None, None, None, None, *own
