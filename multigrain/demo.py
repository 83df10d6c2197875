"""The main job, phase by phase: pairs, training, evaluation, pictures.

`multigrain demo` runs all four; `multigrain train` the first two, `multigrain evaluate` the first and the last two.
Every phase picks up what an earlier, interrupted run left in the cache and in the folder of the run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import training
from .metrics import RetrievalMetrics
from .models import XCLIP
from .report import tables
from .report.console import Bars, Clock, print_table
from .tokens import Features
from .training import TrainConfig, checkpoint

if TYPE_CHECKING:
    from .data.babyai import BabyAI

_CHOSEN = "on the validation split; the test split was scored once, at the end, and decided nothing"
_QUICK = "This is the one-minute version, on few pairs: it shows that everything runs, not what can be learned."
_SCORING = ("grains", "aggregator", "weights")
_PACKAGES = {"minigrid": "demo", "timm": "models", "safetensors": "models", "matplotlib": "viz"}


@dataclass
class Run:
    """A run's settings, its folder, and how long its phases took.

    Args:
        config: all settings.
        out: folder of the run.
        source: the config as text, for the page.
        workers: processes that generate pairs; None = one per core.
        resume: go on from the checkpoint in `out`, where there is one.
        title, note, chosen: for the page: its title, a remark, how the settings were chosen.
        results: folder of the metrics and the page; default `out`.
    """

    config: TrainConfig
    out: Path
    source: str = ""
    workers: int | None = None
    resume: bool = True
    title: str = "multigrain"
    note: str = ""
    chosen: str = ""
    results: Path = field(default=Path(), kw_only=True)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if self.results == Path():
            self.results = self.out

    @property
    def max_frames(self) -> int:
        """Frames of a video."""
        return self.config.stages[-1].max_frames

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in the folder; none where it is not."""
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []

    def count_training(self) -> None:
        """Add the stages of training to the clock, those of earlier processes included."""
        before: dict[str, float] = {}
        for line in self.history():
            # The seconds of a stage start again where an interrupted run was resumed.
            spent = line["seconds"] - before.get(line["stage"], 0)
            self.clock.add(f"training {line['stage']}", spent if spent >= 0 else line["seconds"])
            before[line["stage"]] = line["seconds"]


@dataclass(frozen=True)
class Evaluation:
    """Features, score matrices [texts, videos] and metrics of a split, by grain and for "all"."""

    text: Features
    video: Features
    scores: dict[str, Tensor]
    metrics: dict[str, RetrievalMetrics]


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
        ImportError, OSError, ValueError: a missing extra, a folder that cannot be written, a damaged checkpoint.
    """
    config = training.load_config("demo")
    data = dataclasses.replace(config.data, seed=seed, cache=cache or config.data.cache)
    config = dataclasses.replace(config, seed=seed, data=data)
    if quick:
        config = shrink(config)
    run = Run(config, out, config_text("demo"), workers, resume, "multigrain demo", _QUICK * quick, _CHOSEN)
    check(run)
    pairs = generate(run)
    model = fit(run, pairs)
    evaluation = evaluate(run, model, pairs)
    return show(run, model, pairs, evaluation)


def shrink(config: TrainConfig) -> TrainConfig:
    """The same job in about a minute."""
    data = dataclasses.replace(config.data, pairs=1000, single=2500, val=50, test=100)
    stages = [dataclasses.replace(stage, epochs=min(stage.epochs, 5)) for stage in config.stages]
    return dataclasses.replace(config, data=data, stages=stages, validation_pairs=50)


def config_text(name: str) -> str:
    """The YAML of a config, by path or by its name in the package; its comments say how it was chosen."""
    shipped = Path(__file__).with_name("configs") / f"{name}.yaml"
    return (Path(name) if Path(name).is_file() else shipped).read_text(encoding="utf-8")


def check(run: Run) -> None:
    """Whatever can be wrong is said before anything is computed.

    Raises:
        ImportError: an extra is not installed.
        OSError: the folder cannot be written to.
        ValueError, TypeError: grains or aggregators that do not exist, or do not fit.
    """
    for package, extra in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'{package} is not installed: pip install "multigrain[{extra}]"')
    checkpoint.open_folder(run.out)
    run.config.model.scorer()


def generate(run: Run) -> BabyAI:
    """The pairs, from the cache or generated into it."""
    with run.clock.phase("pairs"):
        return training.load_data(run.config.data, workers=run.workers)


def fit(run: Run, data: BabyAI) -> XCLIP:
    """The model after all stages of training."""
    with Bars([stage.name for stage in run.config.stages]) as bars:
        model = training.train(run.config, data, run.out, resume=run.resume, progress=bars.training)
    run.count_training()
    return model


def restore(run: Run) -> tuple[Run, XCLIP]:
    """The run as it was trained, and its model, scored by the grains that the given run asks for.

    Raises:
        FileNotFoundError: nothing was trained in that folder.
        ValueError: other pairs than those it was trained on, so that the test would not be unseen; grains that
            would need parameters that were not trained.
    """
    if not (run.out / "config.json").is_file() or not (run.out / "model").is_dir():
        raise FileNotFoundError(f"out: expected the folder of a finished training, got {run.out}; train first")
    trained, asked = training.load_config(run.out / "config.json"), run.config
    data = dataclasses.replace(trained.data, cache=asked.data.cache)
    for name, value in dataclasses.asdict(data).items():
        if (got := getattr(asked.data, name)) != value:
            raise ValueError(f"data.{name}: expected {value!r}, with which {run.out} was trained, got {got!r}")
    model = XCLIP.from_pretrained(run.out / "model")
    settings = dataclasses.replace(trained.model, **{name: getattr(asked.model, name) for name in _SCORING})
    scorer, results = settings.scorer(), run.out
    # Another default aggregator means something only where a grain names none.
    same = dataclasses.replace(settings, aggregator=trained.model.aggregator) == trained.model
    if not same or str(scorer) != str(trained.model.scorer()):
        if any(True for part in (scorer, model.scorer) for _ in part.parameters()):
            raise ValueError("model: expected the grains of the training, since grains have parameters; got others")
        print("multigrain: scored by other grains or aggregators than it was trained with", file=sys.stderr)
        model.scorer, results = scorer, checkpoint.open_folder(run.out / "rescored")
    config = dataclasses.replace(trained, data=data, model=settings)
    restored = dataclasses.replace(run, config=config, results=results)
    restored.count_training()
    return restored, model


def evaluate(run: Run, model: XCLIP, data: BabyAI) -> Evaluation:
    """Scores and metrics of the test split."""
    with run.clock.phase("evaluation"), Bars() as bars:
        encoded = bars.counter("encoding test pairs")
        text, video = training.encode(model, data.test, max_frames=run.max_frames, progress=encoded)
        scores = training.scores_by_grain(model, text, video, progress=bars.counter("scoring grains"))
        return Evaluation(text, video, scores, training.metrics_by_grain(scores))


def show(run: Run, model: XCLIP, data: BabyAI, evaluation: Evaluation) -> Path:
    """Print the table, write metrics.json, the pictures and the page; returns the page."""
    from .report.run import write_pictures

    count = len(data.test)
    print_table(evaluation.metrics, count, f"{count:,} unseen sentences against {count:,} videos")
    print(tables.verdict(evaluation.metrics, count))
    with run.clock.phase("pictures"):
        page = write_pictures(run, model, data, evaluation)
    print(f"Time: {run.clock}")
    checkpoint.write_json(
        run.results / "metrics.json",
        {
            "metrics": evaluation.metrics,
            "chance": tables.chance(count),
            "candidates": count,
            "mean_recall_at_1": tables.recall_at_1(evaluation.metrics["all"]),
            "seconds": run.clock.seconds,
            "data": data.metadata,
            "settings": dataclasses.asdict(run.config),
            "environment": checkpoint.environment(),
        },
    )
    return page
