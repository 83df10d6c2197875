"""X-CLIP's four grains together against the frame-word grain alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import multigrain as mg

from . import inputs
from .measure import check, forward, forward_backward, interleave, ratio
from .records import Section, at_most
from .registry import Benchmark, Run, Shape

FOUR, ONE = "four grains", "frame-word grain"


def op(sweep: Sequence[Shape], run: Run) -> list[Section]:
    """One section for each shape and pass."""
    return [section(shape, backward, run) for shape in sweep for backward in (False, True)]


def section(shape: Shape, backward: bool, run: Run) -> Section:
    """Time the scorer of four grains and its most expensive one, with the gradients by all that each reads."""
    name = "forward and backward" if backward else "forward"
    run.log(f"  {name}: {shape}")
    pair = inputs.pair(shape, run.device)
    generator = torch.Generator(run.device).manual_seed(2)
    sentence, video = (inputs.tokens(size, 1, shape, generator)[:, 0] for size in (shape.texts, shape.videos))
    grains = mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord()
    four, eager = mg.MultiGrain(*grains), mg.MultiGrain(*grains, backend="eager")
    grad = torch.randn(shape.texts, shape.videos, generator=generator, device=run.device)

    def score(scorer: mg.MultiGrain, leaves: tuple[Tensor, ...]) -> Tensor:
        words, frames, sentence, video = leaves
        text = mg.Features(word=pair.text(words)["word"], sentence=mg.Tokens(sentence, unit=shape.unit))
        videos = mg.Features(frame=pair.video(frames)["frame"], video=mg.Tokens(video, unit=shape.unit))
        return scorer(text, videos)

    one, leaves = mg.FrameWord(), (*pair.leaves, sentence, video)
    passes = (lambda f, x: forward_backward(f, x, grad)) if backward else forward
    calls = {
        FOUR: passes(lambda *x: score(four, x), leaves),
        ONE: passes(lambda words, frames: one(pair.text(words), pair.video(frames)), pair.leaves),
    }
    checks = [check(FOUR, calls[FOUR](), passes(lambda *x: score(eager, x), leaves)(), 1e-4)]
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
