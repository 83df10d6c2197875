"""How time grows with the batch: it should with texts x videos, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from . import aosm, inputs
from .measure import Call, exponent, forward, forward_backward, interleave
from .records import Check, Section, at_most, figure
from .registry import Benchmark, Run, Shape

EXPONENT = "exponent of the batch size"
ROWS = 8


def op(sweep: Sequence[Shape], run: Run) -> list[Section]:
    """Forward, then forward and backward, each over all batch sizes."""
    return [section(sweep, backward, run) for backward in (False, True)]


def section(sweep: Sequence[Shape], backward: bool, run: Run) -> Section:
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
    """The call of one size, and the check of its first rows."""
    pair = inputs.pair(shape, run.device)
    grad = torch.randn(shape.texts, shape.videos, generator=torch.Generator().manual_seed(1)).to(run.device)
    few = replace(pair, words=pair.words[:ROWS], word_mask=pair.word_mask[:ROWS])
    if not backward:
        call = forward(aosm.scorer(pair), pair.leaves)
        expected = forward(aosm.scorer(few, "eager"), few.leaves)()
        return call, aosm.parity(aosm.OURS, (call()[0][:ROWS],), expected, shape)
    call = forward_backward(aosm.scorer(pair), pair.leaves, grad)
    expected = forward_backward(aosm.scorer(few, "eager"), few.leaves, grad[:ROWS])()
    got = call()
    return call, aosm.parity(aosm.OURS, (got[0][:ROWS], got[1][:ROWS]), expected[:2], shape)


BENCHMARKS = (
    Benchmark(
        name="scaling",
        title="Time against batch size",
        about="Of the frame-word AOSM with as many texts as videos: the exponent p of the fit time = c batch^p. The "
        "number of pairs grows with p = 2.",
        op=op,
        sweep=tuple(Shape(size, size) for size in (128, 256, 512, 1024)),
        quick=tuple(Shape(size, size, dim=32) for size in (16, 32, 64)),
        targets={f"{name}: {EXPONENT}": at_most(2.05) for name in ("forward", "forward and backward")},
        rounds=5,
    ),
)
