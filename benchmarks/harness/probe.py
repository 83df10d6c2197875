"""Peak memory of one call, in a process of its own.

On a CPU the kernel keeps the high-water mark of a process's resident memory. The probe makes the inputs, warms up
with a tiny problem (threads, libraries), returns free heap to the kernel, resets the mark (`/proc/self/clear_refs`),
calls once and reads the mark. What the call returns is subtracted; whatever a library keeps for later calls counts.
On CUDA the allocator keeps that mark itself.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .machine import ROOT
from .measure import Outputs, ParityError
from .records import Check
from .registry import Shape


@dataclass(frozen=True)
class Task:
    """A task to measure: a warm-up on a tiny problem, the call itself, and the check of what it returned."""

    warm_up: Callable[[], object]
    call: Callable[[], Outputs]
    check: Callable[[Outputs], list[Check]]


@dataclass(frozen=True)
class Peak:
    """Bytes that a call needed at once beyond its inputs and what it returned, and the seconds it took."""

    bytes: int
    seconds: float
    checks: list[Check]


def peak(prepare: Callable[..., Task], shape: Shape, device: str, **options: str) -> Peak:
    """Measure the peak of the task that a module's function makes of a shape, a device and options.

    Raises:
        ParityError: the task's check failed.
        RuntimeError: anything else in the process did.
    """
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what this process keeps for later is not there for the other one
    name = f"{prepare.__module__}:{prepare.__qualname__}"
    request = {"prepare": name, "shape": asdict(shape), "device": device, "options": options}
    command = [sys.executable, "-m", "benchmarks.harness.probe", json.dumps(request), str(torch.get_num_threads())]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the probe of {name} failed:\n{run.stderr}")
    answer = json.loads(run.stdout.splitlines()[-1])
    if "parity" in answer:
        raise ParityError(answer["parity"])
    return Peak(**answer | {"checks": [Check(**check) for check in answer["checks"]]})


def _measure(task: Task, device: str) -> tuple[int, float, Outputs]:
    task.warm_up()
    gc.collect()
    before, read = _reset(device)
    start = time.perf_counter()
    outputs = task.call()
    high = read()
    seconds = time.perf_counter() - start
    returned = sum(t.untyped_storage().nbytes() for t in outputs)
    return max(0, high - before - returned), seconds, outputs


def _reset(device: str) -> tuple[int, Callable[[], int]]:
    """Return the memory now, and a function that reads its highest value since."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

        def read() -> int:
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device)

        return torch.cuda.memory_allocated(device), read
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS"), lambda: _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _main(request: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    wanted = json.loads(request)
    module, _, function = wanted["prepare"].partition(":")
    prepare = getattr(importlib.import_module(module), function)
    task = prepare(Shape(**wanted["shape"]), wanted["device"], **wanted["options"])
    size, seconds, outputs = _measure(task, wanted["device"])
    try:
        checks = task.check(outputs)
    except ParityError as error:
        print(json.dumps({"parity": str(error)}))
        return
    print(json.dumps(asdict(Peak(size, seconds, checks))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
