"""Timing and parity: candidates interleaved round-robin, and a refusal where one of them is wrong."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .records import Check, Figure, Timing, figure

Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]
Score = Callable[..., Tensor]  # leaves -> scores [queries, candidates]


class ParityError(Exception):
    """A candidate does not compute what it is measured for: there is nothing to report."""


def check(name: str, got: Outputs, expected: Outputs, tolerance: float, order: float = math.inf) -> Check:
    """Compare outputs one by one; the error is the norm of the difference over that of what is expected.

    Args:
        order: of the norm; infinity compares the largest values.

    Raises:
        ParityError: an error above the tolerance, NaN, or another shape.
    """
    error = 0.0
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape:
            raise ParityError(f"{name}: expected shape {list(b.shape)}, got {list(a.shape)}")
        difference, size = (torch.linalg.vector_norm(x, order).item() for x in (a.double() - b.double(), b.double()))
        relative = difference / max(size, 1e-30)
        if not relative <= tolerance:  # NaN included
            raise ParityError(f"{name}: relative error {relative:.2e} is above the tolerance {tolerance:.0e}")
        error = max(error, relative)
    return Check(name, error, tolerance)


def passes(score: Score, leaves: Sequence[Tensor], grad: Tensor | None = None) -> Call:
    """Make a call that returns (scores,), without a graph, or with `grad` (scores, *gradients by the leaves)."""
    leaves = [leaf.detach().requires_grad_(grad is not None) for leaf in leaves]

    def call() -> Outputs:
        with torch.set_grad_enabled(grad is not None):
            scores = score(*leaves)
        if grad is None:
            return (scores,)
        return (scores.detach(), *torch.autograd.grad(scores, leaves, grad.to(scores.dtype)))

    return call


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, device: str, repeat: int = 1) -> list[Timing]:
    """Seconds per call, in rounds A B C A B C ... after one untimed round.

    Args:
        repeat: calls per sample, for what takes only milliseconds; an untimed one then goes before them, so that no
            candidate pays for the threads that the one before it left spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 1):
            for name, call in calls.items():
                if repeat > 1:
                    call()
                sample = _sample(call, device, repeat)
                if turn:
                    seconds[name].append(sample)
    finally:
        gc.enable()
    return [Timing(name, samples) for name, samples in seconds.items()]


def _sample(call: Callable[[], object], device: str, repeat: int) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeat


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def ratio(name: str, numerator: Timing, denominator: Timing) -> Figure:
    """Take the median, over rounds, of the ratio of two samples that were taken in the same round."""
    return figure(name, [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)])


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit seconds = c size^p by least squares, and return p."""
    x, y = [math.log(size) for size in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
