"""Worlds of gloo processes on this machine, started once for many cases.

    with World(3, folder) as world:
        results = world(function, *arguments)      # function(rank, size, *arguments) on every rank, one result of each

A forkserver imports torch once for all of them. A function is found by name in its module, and what it raises is
raised here.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

TIMEOUT = timedelta(seconds=40)
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.training_parts", "torch.distributed.fsdp", "torch._dynamo", "pytest"])


class World:
    """Processes that wait for functions to run."""

    def __init__(self, size: int, folder: Path, timeout: timedelta = TIMEOUT) -> None:
        self.size = size
        store = folder / f"store{size}"
        pipes = [context.Pipe() for _ in range(size)]
        self.ends = [mine for mine, _ in pipes]
        arguments = [(rank, size, str(store), timeout, theirs) for rank, (_, theirs) in enumerate(pipes)]
        self.processes = [context.Process(target=_serve, args=each, daemon=True) for each in arguments]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for end in self.ends:
            end.send((function, arguments))
        results = [end.recv() for end in self.ends]
        failed = [f"rank {rank}:\n{result}" for rank, (ok, result) in enumerate(results) if not ok]
        assert not failed, "\n".join(failed)
        return [result for _, result in results]

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(10)
            process.kill()


def _serve(rank: int, size: int, store: str, timeout: timedelta, pipe: Connection) -> None:
    # What torchrun sets, for launchers that read it.
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 29500}
    os.environ |= {name: str(value) for name, value in torchrun.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, function(rank, size, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
