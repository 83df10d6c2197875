"""Bytes that this process sends, counted by what it hands to collectives, or by the loopback device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts what the default group is asked to exchange while this is entered.

    Of S bytes handed in, each of R ranks sends (R - 1) S in an all-gather, (R - 1) / R S in a reduce-scatter or in an
    all-to-all of equal shares, and twice that in an all-reduce, in one round or around a ring. `tensors` are those of
    tensors, `objects` those of pickled objects.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors = self.objects = 0
        self._gather_object = dist.all_gather_object
        self._pickled = False

    def __enter__(self) -> Traffic:
        dist.all_gather_object = self._object
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        dist.all_gather_object = self._gather_object
        super().__exit__(*error)

    def _object(self, *arguments: Any, **options: Any) -> None:
        self._pickled = True
        self._gather_object(*arguments, **options)
        self._pickled = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and not func.__name__.startswith("barrier"):
            sent = self._sent(func.__name__.split(".")[0].strip("_"), args)
            self.objects += sent * self._pickled
            self.tensors += sent * (not self._pickled)
        return func(*args, **(kwargs or {}))

    def _sent(self, kind: str, args: Any) -> int:
        ranks = dist.get_world_size()
        others = (ranks - 1) / ranks
        share = {"allgather": ranks - 1, "reduce_scatter": others, "allreduce": 2 * others, "alltoall_base": others}
        # allreduce_(tensors, ...), and allgather_, reduce_scatter_ and alltoall_base_(outputs, inputs, ...)
        handed = args[0] if kind == "allreduce" else args[1]
        return round(share[kind] * sum(x.nbytes for x in _flat(handed)))


def _flat(nested: Any) -> list[Tensor]:
    return [nested] if isinstance(nested, Tensor) else [x for each in nested for x in _flat(each)]


def loopback() -> int:
    """Bytes that went over this machine's loopback device since it started: everybody's, with TCP's headers."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))
