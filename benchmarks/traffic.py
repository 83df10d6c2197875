"""Bytes that this process sends, counted by the tensors that it hands to collectives."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts all-gathers, reduce-scatters and all-reduces of the default group while it is entered, by kind.

    Of S bytes handed in, each of R ranks sends (R - 1) S in an all-gather, (R - 1) / R S in a reduce-scatter and twice
    that in an all-reduce, in one round or around a ring.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}

    @property
    def total(self) -> int:
        """All bytes sent."""
        return sum(self.sent.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._count(func.__name__.split(".")[0].strip("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, args: Any) -> None:
        ranks = dist.get_world_size()
        # allgather_(outputs, inputs), reduce_scatter_(outputs, inputs by rank), allreduce_(tensors)
        handed = args[0] if kind == "allreduce" else args[1]
        size = sum(t.nbytes for t in torch.utils._pytree.tree_leaves(handed) if isinstance(t, Tensor))
        share = {"allgather": ranks - 1, "reduce_scatter": (ranks - 1) / ranks, "allreduce": 2 * (ranks - 1) / ranks}
        self.sent[kind] = self.sent.get(kind, 0) + round(size * share[kind])
