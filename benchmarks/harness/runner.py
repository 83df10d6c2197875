"""Runs a benchmark and makes its record."""

from __future__ import annotations

import torch

from . import machine
from .records import Result
from .registry import Benchmark, Run


class Unavailable(Exception):
    """The device that was asked for is not here."""


def run(benchmark: Benchmark, device: str | None = None, quick: bool = False, rounds: int | None = None) -> Result:
    """Measure all points of the sweep, and put machine, versions, commit and targets beside what was found.

    Args:
        device: "cpu" or "cuda"; None: that of the benchmark's group.

    Raises:
        Unavailable: no CUDA device here.
        measure.ParityError: a candidate does not compute what it should; nothing is recorded.
    """
    device = device or benchmark.group
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"{benchmark.name} needs a CUDA device, and torch sees none here")
    rounds = rounds or (2 if quick else benchmark.rounds)
    where = machine.machine(device)
    started = machine.now()
    context = Run(device, quick, rounds)
    context.log(f"{benchmark.name}: {rounds} rounds on {where['gpu'] or where['cpu']}")
    shapes = benchmark.quick if quick else benchmark.sweep
    sections = [section for shape in shapes for section in benchmark.op(shape, context)]
    # A target belongs to one kind of machine.
    targets = benchmark.targets if torch.device(device).type == benchmark.group else {}
    return Result(
        name=benchmark.name,
        device=device,
        quick=quick,
        rounds=rounds,
        date=started,
        commit=machine.commit(),
        machine=where,
        versions=machine.versions(),
        sections=[section.judged(targets, quick) for section in sections],
    )
