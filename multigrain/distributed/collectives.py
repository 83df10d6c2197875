"""What the ranks of a program tell each other: plain values, and small tensors without a gradient.

Without a process group there is one rank, and everything here is free.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from .gather import world

T = TypeVar("T")


def is_rank_zero() -> bool:
    """Tell whether this is rank zero, which writes the files."""
    return world()[0] == 0


def share(count: int) -> range:
    """Range of those of `count` things that are this rank's: as many as any other's, or one more."""
    rank, size = world()
    return range(rank * count // size, (rank + 1) * count // size)


def all_gather_object(value: T) -> list[T]:
    """List what every rank gave, rank zero first. Collective."""
    size = world()[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(make: Callable[[], T]) -> T:
    """Return what `make` returns or raises on rank zero, the only one to call it. Collective.

    Raises:
        OSError, ValueError: those of rank zero, on every rank.
    """
    if world()[1] == 1:
        return make()
    result: list[Any] = [None, None]
    if is_rank_zero():
        try:
            result[0] = make()
        except (OSError, ValueError) as error:
            result[1] = error
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


def all_reduce(x: Tensor, operation: str = "sum") -> Tensor:
    """Sum over ranks, or another reduction of torch.distributed by name ("max"); returns a new tensor. Collective."""
    if world()[1] == 1:
        return x.clone()
    # A group of NCCL alone takes nothing from the CPU.
    sent = x.to("cuda" if dist.get_backend() == "nccl" else x.device, copy=True)
    dist.all_reduce(sent, getattr(dist.ReduceOp, operation.upper()))
    return sent.to(x.device)


@contextmanager
def rank_zero_first() -> Generator[None]:
    """Let rank zero go through the block before the others do: what it leaves in a cache is there for them."""
    if not is_rank_zero():
        all_gather_object(None)
    yield
    if is_rank_zero():
        all_gather_object(None)
