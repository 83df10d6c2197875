"""X-CLIP's four grains together against the frame-word grain alone."""

from __future__ import annotations

from torch import Tensor, nn

import multigrain as mg

from ..harness import inputs
from ..harness.measure import Call, check, interleave, passes, ratio
from ..harness.records import Section, at_most
from ..harness.registry import Benchmark, Run, Shape

FOUR, ONE = "four grains", "frame-word grain"


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure the forward pass, then both passes."""
    return [section(shape, backward, run) for backward in (False, True)]


def section(shape: Shape, backward: bool, run: Run) -> Section:
    """Time the scorer of four grains and its most expensive one, with the gradients by all that each reads."""
    name = "forward and backward" if backward else "forward"
    run.log(f"  {name}: {shape}")
    grad = inputs.score_gradient(shape, run.device) if backward else None

    def call(scorer: nn.Module, *sides: mg.Features) -> Call:
        def score(*leaves: Tensor) -> Tensor:
            rest = iter(leaves)
            given = [{n: mg.Tokens(next(rest), side[n].mask, unit=shape.unit) for n in side.names} for side in sides]
            return scorer(*(mg.Features(**tokens) for tokens in given))

        return passes(score, [side[name].features for side in sides for name in side.names], grad)

    text, video = inputs.four_grains(shape, run.device)
    grains = mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord()
    calls = {
        FOUR: call(mg.MultiGrain(*grains), text, video),
        ONE: call(mg.FrameWord(), mg.Features(word=text["word"]), mg.Features(frame=video["frame"])),
    }
    checks = [check(FOUR, calls[FOUR](), call(mg.MultiGrain(*grains, backend="eager"), text, video)(), 1e-4)]
    timings = interleave(calls, run.rounds, run.device)
    title = name if shape.lengths == "full" else f"{name}, captions of real lengths"
    return Section(title, str(shape), checks, [ratio(f"{name}: time / {ONE}", *timings)], timings)


BENCHMARKS = (
    Benchmark(
        name="four_grains",
        title="X-CLIP's four grains",
        about="Video-sentence, video-word, sentence-frame and frame-word scores and their mean, with gradients by all "
        "four features, against the frame-word grain alone with its two.",
        op=op,
        sweep=(Shape(256, 256), Shape(256, 256, lengths="msrvtt")),
        quick=(Shape(16, 16, dim=32),),
        targets={f"forward and backward: time / {ONE}": at_most(1.25)},
        rounds=21,
    ),
)
