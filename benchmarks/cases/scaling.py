"""Time against batch size: it should grow with texts x videos."""

from __future__ import annotations

from dataclasses import replace

from ..harness import inputs
from ..harness.measure import Call, exponent, interleave, passes
from ..harness.records import Check, Section, at_most, figure
from ..harness.registry import Benchmark, Run, Shape
from . import aosm

EXPONENT = "exponent of the batch size"
ROWS = 8


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure the forward pass, then both passes, each over batches from an eighth of the shape's up to it."""
    sweep = [replace(shape, texts=shape.texts // part, videos=shape.videos // part) for part in (8, 4, 2, 1)]
    return [section(sweep, backward, run) for backward in (False, True)]


def section(sweep: list[Shape], backward: bool, run: Run) -> Section:
    """Interleave the sizes, and fit the exponent round by round."""
    name = "forward and backward" if backward else "forward"
    run.log(f"  {name}: batch {', '.join(str(shape.texts) for shape in sweep)}")
    calls: dict[str, Call] = {}
    checks: list[Check] = []
    for shape in sweep:
        calls[f"batch {shape.texts}"], found = _call(shape, backward, run)
        checks += found
    timings = interleave(calls, run.rounds, run.device)
    sizes = [shape.texts for shape in sweep]
    exponents = [exponent(sizes, seconds) for seconds in zip(*(t.seconds for t in timings), strict=True)]
    inputs_of = f"{sizes[0]} x {sizes[0]} to {sweep[-1]}"
    return Section(name, inputs_of, checks, [figure(f"{name}: {EXPONENT}", exponents, "")], timings)


def _call(shape: Shape, backward: bool, run: Run) -> tuple[Call, list[Check]]:
    """Make the call of one size, and check its first rows."""
    pair = inputs.pair(shape, run.device)
    grad = inputs.score_gradient(shape, run.device) if backward else None
    few = replace(pair, words=pair.words[:ROWS], word_mask=pair.word_mask[:ROWS])
    call = passes(aosm.scorer(pair), pair.leaves, grad)
    expected = passes(aosm.scorer(few, "eager"), few.leaves, None if grad is None else grad[:ROWS])()
    got = tuple(x[:ROWS] for x in call()[:2])  # scores, and the gradient by the words
    return call, aosm.parity(aosm.OURS, got, expected[:2], shape)


BENCHMARKS = (
    Benchmark(
        name="scaling",
        title="Time against batch size",
        about="Of the frame-word AOSM with as many texts as videos: the exponent p of the fit time = c batch^p. The "
        "number of pairs grows with p = 2.",
        op=op,
        sweep=(Shape(1024, 1024),),
        quick=(Shape(64, 64, dim=32),),
        targets={f"{name}: {EXPONENT}": at_most(2.05) for name in ("forward", "forward and backward")},
        rounds=5,
    ),
)
