"""A batch encoded in chunks, and once more, against the whole batch at once: peak memory and time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import multigrain as mg

from ..harness.measure import Outputs, check, interleave, ratio
from ..harness.probe import Task, peak
from ..harness.records import Check, Section, Timing, at_most, figure
from ..harness.registry import Benchmark, Run, Shape

PLAIN, CACHED, ENCODE = "plain", "cached", "encoding alone"
CHUNK = 32
MEMORY = f"peak memory / (that of a plain batch of {CHUNK} + the features)"
HEAP = "the same with glibc's own heap"
# glibc keeps freed blocks of up to 32 MB in a heap that fragments; with a fixed threshold it returns them, and resident
# memory is what is in use.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TIME = "time / (plain + encoding once more)"
TOLERANCE = 1e-4  # of gradients, relative to the largest

Inputs = tuple[Tensor, Tensor]


class Towers(nn.Module):
    """Words and frames [B, L, dim] through transformers with dropout: sentence and word, video and frame features."""

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(dim, width), nn.Linear(width, dim)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True, norm_first=True)
        self.text, self.video = (
            nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) for _ in ("text", "video")
        )

    def forward(self, chunk: Inputs) -> tuple[mg.Features, mg.Features]:
        """Features of texts and videos."""
        words, frames = (
            self.outside(tower(self.inside(x))) for tower, x in zip((self.text, self.video), chunk, strict=True)
        )
        return mg.Features(sentence=words[:, 0], word=words), mg.Features(video=frames.mean(1), frame=frames)


class Steps:
    """Two ways to a gradient, on one batch and with the same dropout."""

    def __init__(self, shape: Shape, device: str, batch: int, chunk: int) -> None:
        torch.manual_seed(0)
        quick = shape.dim < 64
        self.towers = Towers(shape.dim, 32 if quick else 256, 1 if quick else 3).to(device)
        self.loss = mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence(), mg.FrameWord()), mg.InfoNCE()).to(device)
        words, frames = (torch.randn(batch, n, shape.dim, device=device) for n in (shape.words, shape.frames))
        self.chunks: list[Inputs] = list(zip(words.split(chunk), frames.split(chunk), strict=True))

    def plain(self) -> Outputs:
        """Encode everything with its graph; in the same chunks, so that dropout draws alike."""
        text, video = (mg.Features.cat(side) for side in zip(*map(self.towers, self.chunks), strict=True))
        return self._gradients(lambda: self.loss(text, video))

    def cached(self) -> Outputs:
        """Encode chunk by chunk, twice."""
        return self._gradients(lambda: mg.CachedLoss(self.loss)(self.towers, self.chunks))

    def encode(self) -> None:
        """Encode every chunk once, without a graph: the work that CachedLoss adds."""
        with torch.no_grad():
            for chunk in self.chunks:
                self.towers(chunk)

    def _gradients(self, loss: Callable[[], Tensor]) -> Outputs:
        self.towers.zero_grad()
        loss().backward()
        return tuple(p.grad for p in self.towers.parameters() if p.grad is not None)

    def seeded(self, step: Callable[[], Outputs]) -> Outputs:
        """Take a step whose dropout begins the same."""
        torch.manual_seed(1)
        return step()


def prepare(shape: Shape, device: str, who: str) -> Task:
    """Make the probe's task: the whole batch cached, or one chunk plain."""
    steps = Steps(shape, device, shape.texts if who == CACHED else CHUNK, CHUNK)
    small = Steps(shape, device, 4, 2)
    step, other = (steps.cached, steps.plain) if who == CACHED else (steps.plain, steps.cached)

    def compare(outputs: Outputs) -> list[Check]:
        got = tuple(x.clone() for x in outputs)
        return [check(who, got, steps.seeded(other), TOLERANCE)]

    return Task(small.cached, lambda: steps.seeded(step), compare)


def op(shape: Shape, run: Run) -> list[Section]:
    """Measure peaks in fresh processes, then times in this one."""
    run.log(f"  in chunks of {CHUNK}: {shape}")
    peaks = {who: peak(prepare, shape, run.device, RETURNED, who=who) for who in (PLAIN, CACHED)}
    heap = {who: peak(prepare, shape, run.device, who=who) for who in (PLAIN, CACHED)}
    features = 4 * shape.dim * (shape.texts * (1 + shape.words) + shape.videos * (1 + shape.frames))
    shares = [each[CACHED].bytes / (each[PLAIN].bytes + features) for each in (peaks, heap)]
    steps = Steps(shape, run.device, shape.texts, CHUNK)
    calls = {CACHED: steps.cached, PLAIN: steps.plain, ENCODE: steps.encode}
    cached, plain, encode = timings = interleave(calls, run.rounds, run.device)
    both = Timing("", [a + b for a, b in zip(plain.seconds, encode.seconds, strict=True)])
    more = (cached.median - plain.median) / encode.median
    section = Section(
        f"{shape.texts} pairs in chunks of {CHUNK}",
        str(shape),
        peaks[PLAIN].checks + peaks[CACHED].checks,
        [figure(MEMORY, shares[:1]), figure(HEAP, shares[1:]), ratio(TIME, cached, both)],
        timings,
        [
            f"A plain batch of {CHUNK} needs {peaks[PLAIN].bytes / 1e6:,.0f} MB, the cached one of {shape.texts} "
            f"{peaks[CACHED].bytes / 1e6:,.0f} MB, and the features of all are {features / 1e6:,.0f} MB",
            f"Beyond the plain batch of {shape.texts} it took {more:.2f} times as long as encoding alone",
        ],
    )
    return [section]


BENCHMARKS = (
    Benchmark(
        name="cached",
        title="A large batch in the memory of a chunk",
        about="`CachedLoss` with two small transformers, dropout on, forward and backward: its peak memory (in a fresh "
        "process, less what was there before and the gradients that it leaves) against that of a batch as large as "
        "one chunk, and its time against that of the whole batch at once. Memory is what is in use: glibc was told to "
        "return freed blocks, which it otherwise keeps in a heap that fragments.",
        op=op,
        sweep=(Shape(512, 512, dim=128),),
        quick=(Shape(64, 64, words=6, frames=4, dim=16),),
        targets={MEMORY: at_most(1.25), TIME: at_most(1.5)},
        rounds=3,
    ),
)
