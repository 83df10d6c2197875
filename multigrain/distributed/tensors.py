"""Collectives of tensors whose first axis, the items, may differ in length between ranks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Group, world


def all_to_all(x: Tensor, sizes: Sequence[int], group: Group = None) -> Tensor:
    """Send each rank the rows of its items: [all items, k] of each rank -> [ranks, own items, k]; differentiable.

    One all-to-all each way: a rank sends (all items - own items) k numbers. Collective: all ranks call.

    Args:
        sizes: the items of each rank, rank zero first.

    Raises:
        RuntimeError: a rank ended or did not answer in the time of the process group.
    """
    return x[None] if len(sizes) == 1 else cast("Tensor", _AllToAll.apply(x, list(sizes), group))


class _AllToAll(torch.autograd.Function):
    """The all-to-all and its inverse. No other rank has what a rank sends or gets back, so no gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: Group) -> Tensor:
        """Send each rank the rows of its items."""
        ctx.sizes, ctx.group = sizes, group
        received = [sizes[world(group)[0]]] * len(sizes)
        return _exchange_rows(x, sizes, received, group).unflatten(0, (len(sizes), -1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Send the gradients back."""
        return _exchange_rows(grad.flatten(0, 1), [grad.shape[1]] * len(grad), ctx.sizes, ctx.group), None, None


def _exchange_rows(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    with explained(group):
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


def all_gather(x: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
    """Gather x [own items, ...] of all ranks to [all items, ...], rank zero first. Collective."""
    largest = max(sizes)
    padded = torch.cat([x, x.new_zeros(largest - len(x), *x.shape[1:])]) if len(x) < largest else x.contiguous()
    received = x.new_empty(len(sizes), *padded.shape)
    with explained(group):
        dist.all_gather(list(received.unbind()), padded, group=group)
    if min(sizes) == largest:
        return received.flatten(0, 1)
    return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


def reduce_scatter(x: Tensor, sizes: Sequence[int], rank: int, group: Group) -> Tensor:
    """Sum x [all items, ...] over ranks, in fp32 or wider, and keep [own items, ...]. Collective."""
    largest = max(sizes)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    blocks = x.new_zeros(len(sizes), largest, *x.shape[1:])
    for block, part in zip(blocks, x.split(list(sizes)), strict=True):
        block[: len(part)] = part
    own = blocks[rank]
    with explained(group):
        if dist.get_backend(group) == "gloo":  # older ones have no reduce-scatter, and that of newer ones sends no less
            dist.all_reduce(blocks, group=group)
        else:
            own = torch.empty_like(own)
            dist.reduce_scatter(own, list(blocks.unbind()), group=group)
    return own[: sizes[rank]]


@contextmanager
def explained(group: Group) -> Generator[None]:
    """Say which exchange it was that the process group gave up."""
    try:
        yield
    except RuntimeError as error:
        rank, size = world(group)
        raise RuntimeError(
            f"rank {rank} could not exchange features with the other {size - 1} ranks: one of them ended, or did not "
            f"answer in the time of the process group: {error}"
        ) from error
