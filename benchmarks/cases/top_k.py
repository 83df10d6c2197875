"""top_k of many texts against many videos: its memory, that it equals the matrix, and what it costs beside that."""

from __future__ import annotations

from dataclasses import replace

import torch

import multigrain as mg

from ..harness import inputs
from ..harness.measure import Outputs, ParityError, check, interleave, ratio
from ..harness.probe import Task, peak
from ..harness.records import Check, Section, at_most, figure
from ..harness.registry import Benchmark, Run, Shape

K, BLOCK = 10, 256
PEAK = "peak beyond inputs and result"
COST = "time / score_matrix"


def prepare(shape: Shape, device: str) -> Task:
    """Make the probe's task: the search, and its comparison with the matrix."""
    pair = inputs.pair(shape, device)
    text, video = pair.text(), pair.video()
    scorer = mg.MultiGrain(mg.FrameWord())

    def identical(outputs: Outputs) -> list[Check]:
        """Compare the first and the last block of texts with their rows of the matrix, number for number."""
        last = (len(text) - 1) // BLOCK * BLOCK
        for rows in (slice(0, BLOCK), slice(last, len(text))):
            matrix = mg.score_matrix(scorer, text[rows], video, BLOCK)
            scores, indices = matrix.sort(dim=1, descending=True, stable=True)
            for got, wanted in zip(outputs, (scores[:, :K], indices[:, :K]), strict=True):
                if not torch.equal(got[rows], wanted):
                    raise ParityError(f"top_k of texts {rows.start} to {rows.stop} differs from the matrix")
            eager = mg.MultiGrain(mg.FrameWord(), backend="eager")(text[rows][:8], video)
            error = check("score_matrix", (matrix[:8],), (eager,), 1e-5)
        return [Check("top_k", 0.0, 0.0), error]

    few = text[:64], video[:64]
    return Task(
        lambda: mg.top_k(scorer, *few, min(K, len(few[1])), BLOCK),
        lambda: mg.top_k(scorer, text, video, K, BLOCK),
        identical,
    )


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure the whole search once in a process of its own; two blocks of texts, timed against the matrix."""
    run.log(f"  {shape}")
    whole = peak(prepare, shape, run.device)
    pairs = shape.texts * shape.videos
    notes = [
        f"The whole search took {whole.seconds:.1f} s, {pairs / whole.seconds / 1e6:.2f} million pairs a second",
        f"Times are those of the first {2 * BLOCK} texts",
    ]
    pair = inputs.pair(replace(shape, texts=min(shape.texts, 2 * BLOCK)), run.device)
    text, video = pair.text(), pair.video()
    scorer = mg.MultiGrain(mg.FrameWord())
    timings = interleave(
        {
            "top_k": lambda: mg.top_k(scorer, text, video, K, BLOCK),
            "score_matrix": lambda: mg.score_matrix(scorer, text, video, BLOCK),
        },
        run.rounds,
        run.device,
    )
    figures = [figure(PEAK, [whole.bytes / 1e6], "MB"), ratio(COST, *timings)]
    return [Section(f"{shape.texts:,} x {shape.videos:,}", str(shape), whole.checks, figures, timings, notes)]


BENCHMARKS = (
    Benchmark(
        name="top_k",
        title="top_k",
        about=f"The best {K} videos of each text by the frame-word AOSM, in blocks of {BLOCK}: peak memory in a "
        "process of its own, and equality with the matrix of all scores, bit for bit.",
        op=op,
        sweep=(Shape(10_000, 2_000),),
        quick=(Shape(600, 40, 8, 4, 32),),
        targets={PEAK: at_most(1000)},
        rounds=5,
    ),
)
