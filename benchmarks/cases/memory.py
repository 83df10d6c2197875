"""Peak memory of the frame-word AOSM, forward and backward, at a small and at a large batch."""

from __future__ import annotations

from dataclasses import replace

from ..harness import inputs
from ..harness.measure import Outputs, passes
from ..harness.probe import Task, peak
from ..harness.records import Check, Section, at_most, figure
from ..harness.registry import Benchmark, Run, Shape
from . import aosm, baselines

OURS, ORIGINAL = "multigrain", "original"
PEAK = "peak beyond inputs, outputs and gradients"
SHARE = f"{PEAK} / original formula's"
ROWS = 8  # texts whose scores and gradients are checked

# The original formula holds about ten tensors of this many elements at once.
LARGEST_ORIGINAL = 5e8


def prepare(shape: Shape, device: str, who: str) -> Task:
    """Make the probe's task."""
    pair = inputs.pair(shape, device)
    small = inputs.pair(Shape(16, 16, shape.words, shape.frames, shape.dim, shape.dtype), device)
    grad = inputs.score_gradient(shape, device)
    score = aosm.scorer(pair) if who == OURS else baselines.original_aosm
    score_small = aosm.scorer(small) if who == OURS else baselines.original_aosm

    def rows(outputs: Outputs) -> list[Check]:
        """Check some rows without the rest: the gradient of a text depends on its own scores alone."""
        few = replace(pair, words=pair.words[:ROWS], word_mask=pair.word_mask[:ROWS])
        expected = passes(aosm.scorer(few, "eager"), few.leaves, grad[:ROWS])()
        return aosm.parity(who, (outputs[0][:ROWS], outputs[1][:ROWS]), expected[:2], shape)

    return Task(
        passes(score_small, small.leaves, grad[:16, :16]),
        passes(score, pair.leaves, grad),
        rows,
    )


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure the peak of ours and, where it fits, of the original formula."""
    run.log(f"  forward and backward: {shape}")
    ours = peak(prepare, shape, run.device, who=OURS)
    figures, checks = [figure(PEAK, [ours.bytes / 1e6], "MB")], ours.checks
    notes = [f"One copy of all similarities in fp32 would be {shape.similarities * 4 / 1e6:,.0f} MB"]
    if shape.similarities <= LARGEST_ORIGINAL:
        original = peak(prepare, shape, run.device, who=ORIGINAL)
        checks = checks + original.checks
        figures.append(figure(SHARE, [ours.bytes / original.bytes]))
        notes.append(f"The original formula needs {original.bytes / 1e6:,.0f} MB")
    return [Section(f"{shape.texts} x {shape.videos}", str(shape), checks, figures, notes=notes)]


BENCHMARKS = (
    Benchmark(
        name="memory",
        title="Peak memory",
        about="Of the frame-word AOSM, forward and backward, each in a fresh process: the high-water mark of resident "
        "memory during the call, less what was there before and what it returns.",
        op=op,
        sweep=(Shape(256, 256), Shape(2048, 2048)),
        quick=(Shape(64, 64, dim=32),),
        targets={PEAK: at_most(256)},
        rounds=1,
    ),
)
