"""`multigrain evaluate` of saved features: the time of the whole command and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import multigrain as mg
from multigrain.models import ModelConfig

from ..harness import inputs
from ..harness.measure import ParityError
from ..harness.records import Check, Section, at_most, figure
from ..harness.registry import Benchmark, Run, Shape

TIME, PEAK = "time of the whole command", "peak memory"
CHECKED = 8  # texts whose best videos are compared with the definition


def op(shape: Shape, run: Run) -> list[Section]:
    """Write features, evaluate them in a process of its own, compare what it found."""
    run.log(f"  {shape}")
    size = f"{shape.texts:,} x {shape.videos:,}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, video = inputs.four_grains(shape)
        text.save(folder / "text.pt")
        video.save(folder / "video.pt")
        (folder / "targets.json").write_text(json.dumps([i % shape.videos for i in range(shape.texts)]))
        seconds, peak = _command(folder, "diagonal" if shape.texts == shape.videos else "group_max")
        checks = [_check(folder, text, video)]
    figures = [figure(TIME, [seconds], "s"), figure(PEAK, [peak / 1e6], "MB")]
    return [Section(size, str(shape), checks, figures)]


def _command(folder: Path, protocol: str) -> tuple[float, int]:
    """Run the command; return its seconds, the start of Python included, and the bytes at most resident."""
    arguments = ["--text", "text.pt", "--video", "video.pt", "--targets", "targets.json", "--protocol", protocol]
    command = [sys.executable, "-m", "multigrain.cli", "evaluate", *arguments, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(mg.__file__).parent.parent)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - started, int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


# A process starts with the peak of the one that forked it: a small one in between keeps ours out.
_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _check(folder: Path, text: mg.Features, video: mg.Features) -> Check:
    """Check the best score of the first texts against the definition."""
    scorer = ModelConfig().scorer()
    scorer.backend = "eager"
    with torch.no_grad():
        expected = scorer(text[:CHECKED], video).amax(1)
    lines = (folder / "out" / "rankings.jsonl").read_text().splitlines()[:CHECKED]
    got = torch.tensor([json.loads(line)["found"][0]["score"] for line in lines])
    error = float((got - expected).abs().max())
    if not error <= 1e-5:  # scores are written to six digits
        raise ParityError(f"evaluate: the best scores differ by {error:.1e}")
    return Check("evaluate", error, 1e-5)


ABOUT = (
    "`multigrain evaluate` of X-CLIP's four grains from files to the table, metrics and rankings, the start of Python "
    "included."
)
BENCHMARKS = (
    Benchmark(
        name="evaluate",
        title="Evaluating saved features",
        about=ABOUT,
        op=op,
        sweep=(Shape(1000, 1000, lengths="msrvtt"),),
        quick=(Shape(20, 20, 8, 4, 32),),
        targets={TIME: at_most(20), PEAK: at_most(1000)},
        rounds=1,
    ),
    Benchmark(
        name="evaluate_captions",
        title="Evaluating many captions a video",
        about=f"{ABOUT} The size of MSVD's test, features in half precision.",
        op=op,
        sweep=(Shape(27_763, 670, lengths="msrvtt", dtype="float16"),),
        quick=(Shape(40, 20, 8, 4, 32),),
        targets={PEAK: at_most(2000)},
        rounds=1,
    ),
)
