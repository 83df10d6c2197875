"""Cases in forked workers, each measured: none may hang, crash, or take more time or memory than it is allowed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 10.0, 768
"""What a case may take: of the processor's time, and of memory beside the quarter of a gigabyte of a bare process."""
_HANGS = 120.0  # seconds of the clock, on however busy a machine
_ADDRESSES = 3 << 30  # bytes that a worker may ask for; what takes more than it may is seen, and the machine is safe
_CASES = 400  # of a worker: a fresh one has its memory in one piece

Judge = Callable[[int], str]
"""Runs a case, by its number, and says how it ended, in a word; what it raises is a violation."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    case: int
    outcome: str
    """in a word; "" for a violation"""
    reason: str = ""
    """of a violation"""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def bad(self) -> str:
        """Why it is a violation, or ""."""
        if not self.outcome:
            return self.reason
        if self.seconds > SECONDS:
            return f"{self.outcome} after {self.seconds:.1f} s of processor time"
        return f"{self.outcome} with {self.megabytes:.0f} MB" if self.megabytes > MEGABYTES else ""


def run(judge: Judge, cases: Iterable[int], workers: int = 2) -> Iterator[Outcome]:
    """The outcome of each case, as they come."""
    left, context = iter(cases), multiprocessing.get_context("fork")
    busy: dict[Connection, tuple[Any, int, float, int]] = {}  # process, case, since, cases so far

    def start() -> None:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(judge, there), daemon=True)
        process.start()
        there.close()
        give(here, process, 0)

    def give(connection: Connection, process: Any, done: int) -> None:
        if done < _CASES and (case := next(left, None)) is not None:
            connection.send(case)
            busy[connection] = process, case, time.monotonic(), done
            return
        connection.send(None)
        process.join()
        connection.close()
        if done == _CASES:
            start()

    for _ in range(workers):
        start()
    try:
        while busy:
            ready = wait(list(busy), timeout=1.0)
            for connection, (process, case, since, done) in list(busy.items()):
                if connection in ready:
                    del busy[connection]
                    try:
                        yield connection.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        yield Outcome(case, "", f"the worker died: exit code {process.exitcode}")
                        start()
                        continue
                    give(connection, process, done + 1)
                elif time.monotonic() - since > _HANGS:
                    del busy[connection]
                    process.kill()
                    process.join()
                    yield Outcome(case, "", f"it hangs: no answer in {_HANGS:.0f} s", _HANGS)
                    start()
    finally:
        for process, *_ in busy.values():
            process.kill()
            process.join()


def _work(judge: Judge, connection: Connection) -> None:
    gc.freeze()
    _forget_peak()
    inherited = _peak()  # of whoever forked, such as a test runner
    if (memory := Path("/proc/self/statm")).exists():
        size = int(memory.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESSES, size + _ADDRESSES))
    while (case := connection.recv()) is not None:
        _forget_peak()
        since = time.process_time()
        try:
            outcome, reason = judge(case), ""
        except Exception:
            outcome, reason = "", traceback.format_exc()
        seconds = time.process_time() - since
        connection.send(Outcome(case, outcome, reason, seconds, max(0.0, _peak() - inherited)))
        gc.collect()


def _forget_peak() -> None:
    """Let the kernel measure the peak anew, where it does."""
    if (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")


def _peak() -> float:
    """Megabytes that the process had at most."""
    if (status := Path("/proc/self/status")).exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of its whole life


def summary(outcomes: Iterable[Outcome]) -> str:
    """Counts by outcome, and the worst time and memory."""
    done = list(outcomes)
    counts = Counter("violation" if o.bad else o.outcome for o in done)
    slow = max(done, key=lambda o: o.seconds, default=Outcome(0, ""))
    large = max(done, key=lambda o: o.megabytes, default=Outcome(0, ""))
    return (
        f"{len(done):,} cases: {', '.join(f'{count:,} {name}' for name, count in counts.most_common())}; "
        f"at most {slow.seconds:.1f} s (case {slow.case}) and, beside the bare process, {large.megabytes:.0f} MB "
        f"(case {large.case})"
    )
