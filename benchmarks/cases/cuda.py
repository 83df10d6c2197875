"""On a GPU of the H100/H200 class, bf16: AOSM against the original formula, its memory, a huge batch, and MaxSim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

import multigrain as mg

from ..harness import inputs
from ..harness.measure import Call, Score, check, interleave, passes, ratio
from ..harness.probe import Task, peak
from ..harness.records import Check, Section, Timing, at_least, at_most, figure
from ..harness.registry import Benchmark, Run, Shape
from . import aosm, baselines, memory

OURS = aosm.OURS
ROWS = 8
TRAINED = "steps with finite loss and gradients"

# How each package scores queries [q, m, D] against documents [c, n, D], without and with gradients.
Fused = Callable[[ModuleType, Tensor, Tensor], Tensor]
RIVALS: dict[str, tuple[str, Fused, Fused]] = {
    "late-interaction-kernels": (
        "late_interaction_kernels",
        lambda m, q, d: m.maxsim(q, d),
        lambda m, q, d: m.maxsim(q, d),
    ),
    "flash-maxsim": (
        "flash_maxsim",
        lambda m, q, d: m.flash_maxsim(q[0], d)[None] if len(q) == 1 else m.flash_maxsim_batched(q, d),
        lambda m, q, d: m.flash_maxsim_batched_train(q, d),
    ),
}


def maxsim(shape: Shape, run: Run) -> list[Section]:
    """Time ours and each installed package on the same unit tokens; its words are ours, its documents our frames.

    A single query or a few are scored forward; batches of one size on both sides are trained.
    """
    backward = shape.texts == shape.videos
    name = "MaxSim training" if backward else "MaxSim forward"
    run.log(f"  {name}: {shape}")
    pair = inputs.pair(shape, run.device)
    grad = inputs.score_gradient(shape, run.device) if backward else None

    def call(score: Score) -> Call:
        return passes(score, pair.leaves, grad)

    def ours(backend: str | None = None) -> Score:
        grain = mg.Grain("word", "frame", mg.MaxSim())
        return lambda q, d: grain(_unit("word", q), _unit("frame", d), backend)

    calls, absent = {OURS: call(ours())}, list[Timing]()
    for rival, (module, *scores) in RIVALS.items():
        found = baselines.package(module)
        if isinstance(found, str):
            absent.append(Timing(rival, [], found))
        else:
            calls[rival] = call(lambda q, d, m=found, score=scores[backward]: score(m, q, d))
    expected = call(ours("eager"))()
    outputs = {name: call() for name, call in calls.items()}
    checks = [check(n, out[:1], expected[:1], 5e-3) for n, out in outputs.items()]
    # Where two similarities are equal but for rounding, the gradient goes to either: a few tokens differ altogether.
    checks += [check(f"{n}, gradients", out[1:], expected[1:], 5e-2, order=2) for n, out in outputs.items() if backward]
    timings = interleave(calls, run.rounds, run.device, repeat=10)
    figures = [ratio(f"{name}: speed / {other.name}", other, timings[0]) for other in timings[1:]]
    title = f"{name}, {shape.texts} x {shape.videos}, {shape.words} x {shape.frames} x {shape.dim}"
    return [Section(title, str(shape), checks, figures, timings + absent)]


def _unit(name: str, x: Tensor) -> mg.Features:
    return mg.Features(**{name: mg.Tokens(x, unit=True)})


def prepare_step(shape: Shape, device: str) -> Task:
    """Make the probe's task of one training step: scores, InfoNCE, gradients; texts and videos are pairs by index."""
    pair, small = inputs.pair(shape, device), inputs.pair(Shape(16, 16, dtype=shape.dtype), device)

    def step(score: Score, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = mg.InfoNCE().to(device)(score(*leaves))
        return (loss.detach()[None], *torch.autograd.grad(loss, leaves))

    def check_step(outputs: tuple[Tensor, ...]) -> list[Check]:
        """Check that gradients are finite and that the scores of some texts are those of the definition."""
        finite = torch.stack([x.isfinite().all() for x in outputs]).float()
        few = inputs.Pair(pair.words[:ROWS], pair.word_mask[:ROWS], pair.frames, pair.frame_mask, pair.unit)
        got, wanted = (passes(aosm.scorer(few, backend), few.leaves)() for backend in (None, "eager"))
        return [check("finite", (finite,), (torch.ones_like(finite),), 0), check(OURS, got, wanted, 1e-4)]

    return Task(
        lambda: step(aosm.scorer(small), small.leaves),
        lambda: step(aosm.scorer(pair), pair.leaves),
        check_step,
    )


def step(shape: Shape, run: Run) -> list[Section]:
    """Measure one step in a process of its own."""
    run.log(f"  one step: {shape}")
    found = peak(prepare_step, shape, run.device)
    figures = [
        figure(TRAINED, [1.0], ""),  # the probe raises otherwise
        figure("seconds of one step", [found.seconds], "s"),
        figure("peak beyond inputs and gradients", [found.bytes / 1e6], "MB"),
    ]
    return [Section(f"batch {shape.texts}", str(shape), found.checks, figures)]


def _bf16(texts: int, videos: int, words: int = 32, frames: int = 12, dim: int = 512) -> Shape:
    return Shape(texts, videos, words, frames, dim, "bfloat16")


BENCHMARKS = (
    Benchmark(
        name="cuda_aosm",
        title="Frame-word AOSM on a GPU",
        about="bf16 tokens. A time of 2.5 GEMMs is 40 % of the bare GEMM's throughput.",
        op=aosm.op,
        sweep=(_bf16(1024, 1024),),
        quick=(_bf16(16, 16, dim=32),),
        targets={
            f"forward: time / {aosm.GEMM}": at_most(2.5),
            f"forward and backward: speed / {aosm.ORIGINAL}": at_least(8),
            f"forward and backward: speed / {aosm.COMPILED}": at_least(3),
        },
        rounds=21,
        group="cuda",
    ),
    Benchmark(
        name="cuda_memory",
        title="Peak memory on a GPU",
        about="Of the frame-word AOSM, forward and backward, by the allocator's own high-water mark.",
        op=memory.op,
        sweep=(_bf16(1024, 1024),),
        quick=(_bf16(16, 16, dim=32),),
        targets={memory.SHARE: at_most(0.02)},
        rounds=1,
        group="cuda",
    ),
    Benchmark(
        name="cuda_step",
        title="A batch of 16,384 on one GPU",
        about="One training step of the frame-word AOSM under InfoNCE, with gradients by all tokens: that it runs is "
        "the figure.",
        op=step,
        sweep=(_bf16(16_384, 16_384),),
        quick=(_bf16(64, 64, dim=32),),
        targets={TRAINED: at_least(1)},
        rounds=1,
        group="cuda",
    ),
    Benchmark(
        name="cuda_maxsim",
        title="MaxSim on a GPU",
        about="On the shapes that late-interaction-kernels and flash-maxsim publish, bf16, D 128.",
        op=maxsim,
        sweep=(
            _bf16(1, 1000, 32, 300, 128),
            _bf16(1, 1000, 32, 1024, 128),
            _bf16(1, 1000, 128, 1024, 128),
            _bf16(16, 32, 32, 8192, 128),
            _bf16(64, 64, 32, 300, 128),
            _bf16(64, 64, 32, 1024, 128),
        ),
        quick=(_bf16(1, 20, 32, 30, 64), _bf16(16, 16, 8, 12, 64)),
        targets={f"MaxSim {way}: speed / {rival}": at_least(1) for way in ("forward", "training") for rival in RIVALS},
        rounds=31,
        group="cuda",
    ),
)
