"""The frame-word AOSM against the product alone and against the original formula; with full and with real lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

import multigrain as mg

from ..harness import inputs
from ..harness.inputs import Pair
from ..harness.measure import Call, Outputs, Score, check, interleave, passes, ratio
from ..harness.records import Check, Figure, Section, Timing, at_least, at_most
from ..harness.registry import Benchmark, Run, Shape
from . import baselines

OURS, EAGER, GEMM, ORIGINAL, COMPILED = "multigrain", "multigrain, eager", "bare GEMM", "original", "original, compiled"

# Of scores and of gradients, relative to the largest. A rounding error of a similarity grows 100-fold at AOSM's
# temperature of 0.01. Half precision rounds our gradients as they are returned, the original's similarities at once.
TOLERANCES = {
    ("float32", OURS): (1e-5, 1e-4),
    ("float32", ORIGINAL): (1e-5, 1e-4),
    ("bfloat16", OURS): (1e-4, 1e-2),
    ("bfloat16", ORIGINAL): (5e-2, 0.2),
}


def scorer(pair: Pair, backend: str | None = None) -> Score:
    """Make the library's function (words, frames) -> scores."""
    grain = mg.FrameWord(mg.AOSM())
    return lambda words, frames: grain(pair.text(words), pair.video(frames), backend)


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure the forward pass, then both passes."""
    return [section(shape, backward, run) for backward in (False, True)]


def section(shape: Shape, backward: bool, run: Run) -> Section:
    """Check all candidates on one shape, forward or forward and backward, then time them."""
    name = "forward and backward" if backward else "forward"
    run.log(f"  {name}: {shape}")
    pair = inputs.pair(shape, run.device)
    grad = inputs.score_gradient(shape, run.device) if backward else None

    def call(score: Score) -> Call:
        return passes(score, pair.leaves, grad)

    calls, checks, absent = candidates(pair, shape, call, run)
    # In both passes, too, the yardstick is one product.
    calls[GEMM] = passes(baselines.gemm, pair.leaves)
    timings = interleave(calls, run.rounds, run.device)
    title, notes = f"{name}, {'unit' if shape.unit else 'raw'} tokens", list[str]()
    if shape.lengths != "full":
        title, mean = name, pair.word_mask.sum().item() / shape.texts
        notes.append(f"On average {mean:.1f} of the {shape.words} words of a text are real")
    return Section(title, str(shape), checks, figures(name, timings), timings + absent, notes)


def candidates(
    pair: Pair, shape: Shape, call: Callable[[Score], Call], run: Run
) -> tuple[dict[str, Call], list[Check], list[Timing]]:
    """Collect all that compute the scores, their checks against the definition, and what could not run."""
    calls = {OURS: call(scorer(pair)), EAGER: call(scorer(pair, "eager"))}
    expected = calls[EAGER]()
    checks = parity(OURS, calls[OURS](), expected, shape)
    if shape.lengths != "full":
        # The original masks nothing: it is checked against the definition without masks.
        unmasked = replace(pair, word_mask=torch.ones_like(pair.word_mask))
        expected = call(scorer(unmasked, "eager"))()
    original = baselines.original_aosm if shape.unit else baselines.normalized_original_aosm
    calls[ORIGINAL] = call(original)
    checks += parity(ORIGINAL, calls[ORIGINAL](), expected, shape)
    compiled = compile_original(original, call, run)
    if isinstance(compiled, Timing):
        return calls, checks, [compiled]
    calls[COMPILED] = compiled
    return calls, checks + parity(COMPILED, compiled(), expected, shape), []


def parity(name: str, got: Outputs, expected: Outputs, shape: Shape) -> list[Check]:
    """Check scores and gradients, each within its tolerance."""
    tolerances = TOLERANCES[shape.dtype, OURS if name == OURS else ORIGINAL]
    checks = [check(name, got[:1], expected[:1], tolerances[0])]
    if len(got) > 1:
        checks.append(check(f"{name}, gradients", got[1:], expected[1:], tolerances[1]))
    return checks


def compile_original(original: Score, call: Callable[[Score], Call], run: Run) -> Call | Timing:
    """Warm up and return a call of the compiled formula; or a row that says why there is none."""
    if run.quick:
        return Timing(COMPILED, [], "not run at quick sizes")
    torch.compiler.reset()
    compiled = call(torch.compile(original, dynamic=False))
    try:
        compiled()
    except RuntimeError as error:  # no compiler, no memory
        return Timing(COMPILED, [], f"failed: {str(error).splitlines()[0][:100]}")
    return compiled


def figures(name: str, timings: list[Timing]) -> list[Figure]:
    """Report our time in GEMMs, and how many times faster we are than each other candidate."""
    by_name = {timing.name: timing for timing in timings}
    ours = by_name[OURS]
    others = [other for other in (ORIGINAL, COMPILED, EAGER) if other in by_name]
    faster = [ratio(f"{name}: speed / {other}", by_name[other], ours) for other in others]
    return [ratio(f"{name}: time / {GEMM}", ours, by_name[GEMM]), *faster]


BENCHMARKS = (
    Benchmark(
        name="aosm",
        title="Frame-word AOSM",
        about="Scores of all pairs by attention over the similarity matrix, against the one product of all words with "
        "all frames and against the formula of X-CLIP's code.",
        op=op,
        sweep=(Shape(256, 256), Shape(256, 256, unit=False)),
        quick=(Shape(16, 16, dim=32), Shape(16, 16, dim=32, unit=False)),
        targets={
            f"forward: time / {GEMM}": at_most(1.4),
            f"forward: speed / {ORIGINAL}": at_least(2.8),
            f"forward and backward: time / {GEMM}": at_most(5),
            f"forward and backward: speed / {ORIGINAL}": at_least(1.9),
        },
    ),
    Benchmark(
        name="lengths",
        title="Captions of real lengths",
        about="The same where captions have as many words as those of MSR-VTT. The original formula masks nothing and "
        "computes all slots.",
        op=op,
        sweep=(Shape(256, 256, lengths="msrvtt"),),
        quick=(Shape(24, 24, dim=32, lengths="msrvtt"),),
        targets={f"forward and backward: speed / {ORIGINAL}": at_least(4)},
    ),
)
