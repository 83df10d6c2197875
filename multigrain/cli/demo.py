"""The main job: BabyAI pairs, training, evaluation, a page of pictures (`multigrain demo`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .. import training
from ..distributed.collectives import is_rank_zero
from ..models import XCLIP
from ..training import BabyAIConfig, Evaluation, TrainConfig, parallel
from . import runs
from .runs import Run

if TYPE_CHECKING:
    from ..data.babyai import BabyAI

_CHOSEN = "on the validation split; the test split was scored once, at the end, and decided nothing"
_QUICK = "This is the one-minute version, on few pairs: it shows that everything runs, not what can be learned."


def demo(
    out: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    workers: int | None = None,
    cache: str | None = None,
    resume: bool = True,
) -> Path:
    """All phases with the settings of configs/demo.yaml; returns the page to open.

    Args:
        out: folder of the run.
        quick: much smaller data and fewer epochs: about a minute, and much worse figures.
        seed: of the worlds, the split and the training.
        workers: processes that generate pairs; None = one per core.
        cache: folder of the generated pairs; default: that of the config.
        resume: go on where an interrupted run stopped.

    Raises:
        ImportError, OSError, ValueError: a missing extra, a folder that cannot be written or is in use, a damaged
            checkpoint.
    """
    config = training.load_config("demo")
    given = cast("BabyAIConfig", config.data)
    data = dataclasses.replace(given, seed=seed, cache=cache or given.cache)
    config = dataclasses.replace(config, seed=seed, data=data)
    if quick:
        config = shrink(config)
    run = Run(config, out, runs.config_text("demo"), workers, resume, "multigrain demo", _QUICK * quick, _CHOSEN)
    check(run)
    with parallel.locked(out):
        training.check(config)
        pairs = cast("BabyAI", runs.load(run))
        model = runs.fit(run, pairs)
        return show(run, model, pairs, runs.evaluate(run, model, pairs.test))


def shrink(config: TrainConfig) -> TrainConfig:
    """The same job in about a minute."""
    data = dataclasses.replace(config.data, pairs=1000, single=2500, val=50, test=100)
    stages = [dataclasses.replace(stage, epochs=min(stage.epochs, 5)) for stage in config.stages]
    return dataclasses.replace(config, data=data, stages=stages, validation_pairs=50)


def check(run: Run) -> None:
    """As `runs.check`, and that there is what the pairs and the pictures need."""
    for package, extra in {"minigrid": "demo", "matplotlib": "viz"}.items():
        runs.require(package, extra)
    runs.check(run)


def show(run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation, page: Path | None = None) -> Path:
    """Report (see `runs.report`), draw the pictures and write the page (default index.html in the folder of the
    results); returns the page, which rank 0 writes.
    """
    from .pages import write_pictures

    runs.report(run, evaluation, data.test, data=data.metadata)
    evaluation, page = evaluation.whole(), page or run.results / "index.html"
    if is_rank_zero():
        with run.clock.phase("pictures"):
            page = write_pictures(run, model, data, evaluation, page)
    print(f"Time: {run.clock}")
    return page
