"""MaxSim and Mean-Max of one query against many documents or videos, against the packages that do nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

import multigrain as mg

from ..harness import inputs
from ..harness.measure import check, interleave, ratio
from ..harness.records import Section, Timing, at_least
from ..harness.registry import Benchmark, Run, Shape
from . import baselines

OURS = "multigrain"
AGGREGATORS = {"MaxSim": mg.MaxSim, "Mean-Max": mg.MeanMax}
JUDGED = ("maxsim-cpu", "PyLate's formula")


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure each aggregator."""
    return [section(shape, name, run) for name in AGGREGATORS]


@torch.no_grad()
def section(shape: Shape, name: str, run: Run) -> Section:
    """Time all that are installed; everyone is handed the same unit tokens in the layout that they want."""
    run.log(f"  {name}: {shape}")
    pair = inputs.pair(shape, run.device)
    grain = mg.Grain("word", "frame", AGGREGATORS[name](direction="query"))
    text = mg.Features(word=mg.Tokens(pair.words, unit=True))
    video = mg.Features(frame=mg.Tokens(pair.frames, unit=True))
    rivals = baselines.maxsim_rivals(pair.words, pair.frames, mean=name == "Mean-Max")
    calls = {OURS: lambda: grain(text, video)} | {n: score for n, score in rivals.items() if callable(score)}
    absent = [Timing(n, [], why) for n, why in rivals.items() if isinstance(why, str)]
    expected: tuple[Tensor] = (grain(text, video, "eager"),)
    checks = [check(n, (score(),), expected, 1e-5) for n, score in calls.items()]
    timings = interleave(calls, run.rounds, run.device, repeat=3)
    figures = [ratio(f"{name}: speed / {other.name}", other, timings[0]) for other in timings[1:]]
    title = f"{name}, {shape.words} x {shape.frames} x {shape.dim}"
    return Section(title, str(shape), checks, figures, timings + absent)


BENCHMARKS = (
    Benchmark(
        name="maxsim",
        title="MaxSim and Mean-Max on a CPU",
        about="One query against 1,000 documents of 300 tokens, and against 1,000 videos of 12 frames; Mean-Max over "
        "query tokens is what others compute as MaxSim divided by their number.",
        op=op,
        sweep=(Shape(1, 1000, 32, 300, 128), Shape(1, 1000, 32, 12, 512)),
        quick=(Shape(1, 50, 32, 30, 64),),
        targets={f"{name}: speed / {other}": at_least(0.95) for name in AGGREGATORS for other in JUDGED},
        rounds=31,
    ),
)
