"""Plain values and small tensors without a gradient that the ranks of a program exchange.

Without a process group there is one rank, and everything here is free.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = "dist.ProcessGroup | None"
T = TypeVar("T")


def world(group: Group = None) -> tuple[int, int]:
    """Rank and size of the group; 0 and 1 where no process group has been initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def is_rank_zero() -> bool:
    """Tell whether this is rank zero, which writes the files."""
    return world()[0] == 0


def share(count: int) -> range:
    """Range of this rank's part of `count` things: as many as any other rank's, or one more."""
    rank, size = world()
    return range(rank * count // size, (rank + 1) * count // size)


def all_gather_object(value: T, group: Group = None) -> list[T]:
    """List what every rank gave, rank zero first. Collective."""
    size = world(group)[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value, group=group)
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
