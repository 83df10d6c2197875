"""The loss of a batch cut over two gloo processes: every pair scored once (local), or all of them twice (global)."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import multigrain as mg
from multigrain import distributed

from ..harness import inputs, measure, traffic
from ..harness.records import Check, Section, Timing, at_most, figure
from ..harness.registry import Benchmark, Run, Shape

RANKS = 2
SCORER, STEP = "scorer, local / global", "whole step, local / global"
COUNTED, LOOPBACK = "bytes handed to collectives / formula", "bytes on the loopback device / formula"
TOLERANCE = 1e-4  # of gradients, relative to the largest: rounding errors grow 100-fold at AOSM's temperature


def op(shape: Shape, run: Run) -> list[Section]:
    """Start the ranks, and put together what they measured."""
    run.log(f"  {RANKS} processes: {shape}")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(RANKS, multiprocessing.get_context("spawn")) as pool,
    ):
        ranks = [pool.submit(_rank, rank, f"file://{folder}/store", shape, run.rounds) for rank in range(RANKS)]
        found = [rank.result() for rank in ranks]
    seconds: list[dict[str, list[float]]] = [each["seconds"] for each in found]
    slower = {name: [max(pair) for pair in zip(*(s[name] for s in seconds), strict=True)] for name in seconds[0]}
    ratios = {
        kind: [max(s[f"{kind}, local"][i] / s[f"{kind}, global"][i] for s in seconds) for i in range(run.rounds)]
        for kind in ("scorer", "step")
    }
    figures = [figure(SCORER, ratios["scorer"]), figure(STEP, ratios["step"])]
    figures += [figure(COUNTED, found[0]["counted"]), figure(LOOPBACK, found[0]["loopback"])]
    sent = found[0]["formula"]
    section = Section(
        f"{shape.texts} x {shape.videos} on {RANKS} processes of one thread",
        str(shape),
        [check for each in found for check in each["checks"]][:2],
        figures,
        [Timing(name, samples) for name, samples in slower.items()],
        [
            f"By the formula each rank sends {sent['local'] / 1e6:.3g} MB in a step with local, "
            f"{sent['global'] / 1e6:.3g} MB with global; beside it a header of {found[0]['header']} bytes"
        ],
    )
    return [section]


def _rank(rank: int, store: str, shape: Shape, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        return _measure(rank, shape, rounds)
    finally:
        dist.barrier()
        dist.destroy_process_group()


def _measure(rank: int, shape: Shape, rounds: int) -> dict[str, Any]:
    """Measure one rank: seconds by name and round, bytes, and the checks of its gradients."""
    batch = inputs.four_grains(shape)
    share = slice(rank * shape.texts // RANKS, (rank + 1) * shape.texts // RANKS)
    own = tuple(side[share] for side in batch)
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord())
    losses = {mode: mg.RetrievalLoss(scorer, mg.InfoNCE(), mode) for mode in ("local", "global")}
    expected = _gradients(mg.RetrievalLoss(scorer, mg.InfoNCE(), "none"), batch)
    checks: list[Check] = []
    for mode, loss in losses.items():
        # DDP divides by the number of ranks.
        got = tuple(grad / RANKS for grad in _gradients(loss, own))
        checks.append(measure.check(mode, got, tuple(grad[share] for grad in expected), TOLERANCE))
    calls: dict[str, Callable[[], object]] = {
        "scorer, local": lambda: _scores(scorer, own[0], batch[1]),
        "scorer, global": lambda: _scores(scorer, *batch),
        "step, local": lambda: _gradients(losses["local"], own),
        "step, global": lambda: _gradients(losses["global"], own),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    formula = {mode: _formula(own, shape, mode) for mode in losses}
    on_device: list[float] = []
    for turn in range(rounds + 1):
        for name, call in calls.items():
            dist.barrier()
            before, start = traffic.loopback(), time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            dist.barrier()
            if turn:
                seconds[name].append(elapsed)
            if turn and name == "step, local":
                on_device.append((traffic.loopback() - before) / (RANKS * formula["local"]))
    counted: dict[str, traffic.Traffic] = {}
    for mode, loss in losses.items():
        with traffic.Traffic() as counted[mode]:
            _gradients(loss, own)
        if (sent := counted[mode].tensors) != formula[mode]:
            raise measure.ParityError(f"{mode}: {formula[mode]} bytes by the formula, {sent} sent")
    return {
        "seconds": seconds,
        "checks": checks,
        "counted": [sent.tensors / formula[mode] for mode, sent in counted.items()],
        "loopback": on_device,
        "formula": formula,
        "header": counted["local"].objects,
    }


def _formula(own: tuple[mg.Features, mg.Features], shape: Shape, mode: str) -> int:
    """Compute the bytes that a rank sends in one step, forward and backward."""
    text, video = (inputs.as_leaves(side) for side in own)
    if mode == "global":
        return sum(distributed.wire_bytes((text, video), RANKS, gloo=True))
    # The parts of columns: six numbers of fp32 for each video of another rank, and their gradient.
    return sum(distributed.wire_bytes((video,), RANKS, gloo=True)) + 2 * 6 * 4 * (shape.videos - len(video))


def _gradients(loss: mg.RetrievalLoss, sides: tuple[mg.Features, mg.Features]) -> tuple[Tensor, ...]:
    """Run both passes; return the gradients by all features."""
    leaves = [inputs.as_leaves(side) for side in sides]
    loss.zero_grad()
    loss(*leaves).backward()
    return tuple(side[name].features.grad for side in leaves for name in side.names)  # type: ignore[misc]


def _scores(scorer: mg.MultiGrain, *sides: mg.Features) -> None:
    """Run the scorer alone, forward and backward."""
    scorer(*(inputs.as_leaves(side) for side in sides)).sum().backward()


BENCHMARKS = (
    Benchmark(
        name="gather",
        title="A batch on two processes",
        about="X-CLIP's four grains and InfoNCE, forward and backward, the batch cut over two gloo processes that run "
        "side by side: `local`, where each scores its texts with the videos of both, against `global`, where both "
        "score everything. Gradients are checked against those of one process with the whole batch. Times are of the "
        "slower process; bytes are what a process sends.",
        op=op,
        sweep=(Shape(256, 256),),
        quick=(Shape(8, 8, words=6, frames=4, dim=16),),
        targets={SCORER: at_most(0.6), COUNTED: at_most(1)},
        rounds=7,
    ),
)
