"""Ranks of a run: how they start, and how they end together.

    torchrun --nproc-per-node 2 -m multigrain.cli train --config demo

The engine is torch.distributed; whatever initialised its process group, training and evaluation divide their work over
it. Without one there is one rank, and everything here is free.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import files
from ..distributed import world
from ..distributed.collectives import from_rank_zero, is_rank_zero

TIMEOUT = 1800.0  # seconds: as long as rank 0 may make data, or read longer videos than the others
_GRACE = 5.0  # seconds between the times at which ranks give up waiting
TERMINATED = 143  # the exit code of a process that SIGTERM ended, as shells give it
_LOST = re.compile(r"/gloo/|could not exchange features|(closed|reset) by peer|timeout caused pair closure")


@contextmanager
def launched(device: torch.device, timeout: float = TIMEOUT) -> Generator[None]:
    """Join a process group where a launcher such as torchrun asks for one: NCCL for CUDA, one device a rank, else gloo.

    Rank 0 speaks; what the others print is dropped, except for the errors that end them.

    Args:
        timeout: seconds that a rank waits for the others.

    Raises:
        ValueError: more ranks than CUDA devices; an environment that is not complete.
        ConnectionError: over gloo, ranks that did not answer in time; they are named.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(f"ranks: expected at most one for each of {devices} CUDA devices, got local rank {local}")
        torch.cuda.set_device(local)
    from torch.distributed.distributed_c10d import (
        PrefixStore,  # where torch has no distributed, here is no import of it
    )
    from torch.distributed.rendezvous import rendezvous

    store, rank, ranks = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))
    with ExitStack() as stack:
        if not is_rank_zero():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            yield
        except RuntimeError as error:
            if "imed out" not in str(error) or not lost(error):
                raise
            missing = _unanswering(PrefixStore("answers", store), rank, ranks, min(timeout, _GRACE))
            raise ConnectionError(f"{missing} did not answer within {timeout:g} seconds (timeout)") from error
    dist.destroy_process_group()  # not after an error: it would wait for ranks that may have ended


def _unanswering(store: Any, rank: int, ranks: int, grace: float) -> str:
    """Name the ranks that do not answer, some time after this one gave up waiting."""
    missing = [0]  # what holds the store, rank 0 or the launcher, may be the one that does not answer

    def ask() -> None:
        store.set(str(rank), "here")
        time.sleep(grace)  # others give up at about the same time
        missing[:] = [other for other in range(ranks) if not store.check([str(other)])]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * grace)
    return f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}" if missing else "another rank"


@contextmanager
def locked(path: files.Location) -> Generator[None]:
    """Keep other writers out of a folder, or away from a file, while the block runs; rank 0 does. Collective.

    Raises:
        BlockingIOError: another writer is there (see files.lock); on every rank.
    """
    with ExitStack() as stack:
        from_rank_zero(lambda: stack.enter_context(files.lock(path)))
        yield


class _Loss(nn.Module):
    """Loss as a module that holds the trained model, as DistributedDataParallel wants it."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        # A stage need not use all of the model; where it does, DDP would warn at length that nothing is unused.
        self.unused = nn.Parameter(next(model.parameters()).new_zeros(1))

    def forward(self, item: Any) -> Tensor:
        return self.loss(item)


def averaged(model: nn.Module, loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """Return the loss with a backward pass that leaves the mean of the ranks' gradients in the parameters."""
    if world()[1] == 1:
        return loss
    # Looking for unused parameters, it also keeps its buckets as they are: sums do not change with a resumption.
    return nn.parallel.DistributedDataParallel(_Loss(model, loss), find_unused_parameters=True)


class Termination:
    """Watch for a request to end: SIGTERM, or the end of the torchrun that started this process.

    A context manager; inside it, SIGTERM only leaves a note (in the main thread, where Python lets it).
    """

    def __init__(self) -> None:
        self._asked = False
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """True where this rank was asked; others may not know yet."""
        return self._asked or self._launcher not in (None, os.getppid())


def lost(error: RuntimeError) -> bool:
    """Tell whether an error says that another rank ended, or did not answer in time."""
    return _LOST.search(str(error)) is not None or (dist.is_available() and isinstance(error, dist.DistError))
