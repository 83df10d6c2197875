"""Runs, phase by phase: pairs, training, evaluation; `multigrain train`, `evaluate` and `demo` are made of them.

Every phase picks up what an earlier, interrupted run left in the cache and in the folder of the run. Where
torch.distributed has several ranks, `load`, `fit` and `evaluate` are for all to call, and rank 0 writes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, training
from ..checks import printable
from ..data.manifest import missing_videos
from ..data.pairs import Data, Pairs, frames_of
from ..distributed.collectives import rank_zero_first
from ..models import XCLIP, ModelConfig
from ..models.original import is_original
from ..training import BabyAIConfig, ClipsConfig, Evaluation, TrainConfig, checkpoint
from .console import Bars, Clock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCORING = ("grains", "aggregator", "weights")
_PACKAGES = {"timm": "models", "safetensors": "models"}
NAMED = 3  # missing videos in a message


@dataclass
class Run:
    """Settings of a run, its folder, and how long its phases took.

    Args:
        config: all settings.
        out: folder of the run.
        source: the config as text, for the page.
        workers: processes that generate BabyAI pairs; None = one per core.
        resume: go on from the checkpoint in `out`, where there is one.
        title, note, chosen: for the page: its title, a remark, how the settings were chosen.
        results: folder of the metrics and the page; default `out`.
        trust: packages of your own whose aggregators the settings may name, see XCLIP.from_pretrained.
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
    trust: Sequence[str] = field(default=(), kw_only=True)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if self.results == Path():
            self.results = self.out

    @property
    def max_frames(self) -> int:
        """Frames of a video."""
        return self.config.stages[-1].max_frames

    def history(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl in the folder; none where it is not."""
        return checkpoint.MetricsLog(self.out / "metrics.jsonl").read()

    def count_training(self) -> None:
        """Add the stages of training to the clock, those of earlier processes included."""
        before: dict[str, float] = {}
        for line in self.history():
            # The seconds of a stage start again where an interrupted run was resumed.
            spent = line["seconds"] - before.get(line["stage"], 0)
            self.clock.add(f"training {line['stage']}", spent if spent >= 0 else line["seconds"])
            before[line["stage"]] = line["seconds"]


def check(run: Run) -> None:
    """Check the settings of a run before anything is computed.

    Raises:
        ImportError: an extra is not installed.
        OSError: the folder cannot be written to.
        ValueError, TypeError: grains or aggregators that do not exist, or do not fit.
    """
    for package, extra in {**run.config.data.packages, **_PACKAGES}.items():
        require(package, extra)
    files.open_folder(run.out)
    run.config.model.scorer()


def check_cache(config: TrainConfig, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Check that the cache named in the folder of a run has pairs: none are generated where such a file says.

    Args:
        overrides: those of the user, who may say it.

    Raises:
        FileNotFoundError: there are none.
    """
    if not isinstance(config.data, BabyAIConfig) or any(o.startswith("--data.cache=") for o in overrides):
        return
    if not any(Path(config.data.cache).glob("babyai-*")):
        raise FileNotFoundError(
            f"{folder}: expected the run's pairs in {config.data.cache}, there are none; "
            "--cache FOLDER says where to generate them"
        )


def require(package: str, extra: str) -> None:
    """Check that a package is installed.

    Raises:
        ImportError: it is not; the extra that has it is named.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f'{package} is not installed: pip install "multigrain[{extra}]"')


def load(run: Run, splits: Sequence[str] = ("train", "val", "test")) -> Data:
    """Load the pairs; those of BabyAI from the cache, or generated into it.

    Videos of these splits of a manifest that are not there are counted on stderr.

    Raises:
        FileNotFoundError: with data.strict, a video is not there.
    """
    with run.clock.phase("pairs"), rank_zero_first():
        data = run.config.data.load(workers=run.workers)
    if isinstance(run.config.data, ClipsConfig):
        clips = {clip.video: clip for split in splits for clip in getattr(data, split).clips}
        if missing := [str(clip.video) for clip in missing_videos(list(clips.values()))]:
            message = f"{run.config.data.manifest}: {len(missing)} of {len(clips)} videos are missing: "
            message += ", ".join(missing[:NAMED]) + ", ..." * (len(missing) > NAMED)
            if run.config.data.strict:
                raise FileNotFoundError(message)
            print(f"multigrain: {printable(message)}", file=sys.stderr)
    return data


def fit(run: Run, data: Data) -> XCLIP:
    """Train through all stages and return the model."""
    with Bars([stage.name for stage in run.config.stages]) as bars:
        model = training.train(run.config, data, run.out, resume=run.resume, progress=bars.training)
    run.count_training()
    if (broken := run.out / "broken.txt").is_file():
        count = len(broken.read_bytes().splitlines())
        print(f"multigrain: {count} videos could not be read and were left out: see {broken}", file=sys.stderr)
    return model


def restore(run: Run) -> tuple[Run, XCLIP]:
    """Return the run as it was trained, and its model, scored by the grains that the given run asks for.

    Raises:
        FileNotFoundError: nothing was trained in that folder.
        ValueError: other pairs than those it was trained on, so that the test would not be unseen; grains that
            would need parameters that were not trained.
    """
    if not (run.out / "config.json").is_file() or not (run.out / "model").is_dir():
        raise FileNotFoundError(f"out: expected the folder of a finished training, got {run.out}; train first")
    trained, asked = training.load_config(run.out / "config.json", trust=run.trust), run.config
    settings, results = _rescored(trained.model, asked.model), run.out
    if isinstance(asked.data, BabyAIConfig):
        _same_pairs(trained.data, asked.data, run.out)
    model = XCLIP.from_pretrained(run.out / "model", run.trust)
    # Another default aggregator means something only where a grain names none.
    same = dataclasses.replace(settings, aggregator=trained.model.aggregator) == trained.model
    if not same or str(settings.scorer()) != str(trained.model.scorer()):
        scorer = settings.scorer()
        if any(True for part in (scorer, model.scorer) for _ in part.parameters()):
            raise ValueError(
                f"model: expected the grains of the training, since grains have parameters; got others; {_AS_TRAINED}"
            )
        print(f"multigrain: scored by other grains or aggregators than in training; {_AS_TRAINED}", file=sys.stderr)
        model.recipe.scorer, results = scorer, files.open_folder(run.out / "rescored")
    config = dataclasses.replace(trained, data=asked.data, model=settings, workers=asked.workers, device=asked.device)
    restored = dataclasses.replace(run, config=config, results=results)
    restored.count_training()
    return restored, model


_AS_TRAINED = "leave out --config and such settings to evaluate as it was trained"


def _rescored(trained: ModelConfig, asked: ModelConfig) -> ModelConfig:
    """Return the settings of the training with the grains that are asked for."""
    if trained.recipe != asked.recipe:
        raise ValueError(
            f"model.recipe: expected that of the training, {trained.recipe}, got {asked.recipe}; {_AS_TRAINED}"
        )
    scoring = {name: getattr(asked, name) for name in SCORING}
    if trained.recipe is not None and any(getattr(trained, name) != value for name, value in scoring.items()):
        raise ValueError(
            f"model: expected no grains, aggregator or weights for the recipe {trained.recipe.name!r}; {_AS_TRAINED}"
        )
    return dataclasses.replace(trained, **scoring)


def _same_pairs(trained: object, asked: BabyAIConfig, out: Path) -> None:
    """Check that the pairs are those of the training: a split by other settings would test on trained pairs."""
    if not isinstance(trained, BabyAIConfig):
        raise ValueError(f"data: expected a manifest, with which {out} was trained, got BabyAI pairs; {_AS_TRAINED}")
    for name, got in dataclasses.asdict(asked).items():
        if name != "cache" and (value := getattr(trained, name)) != got:
            raise ValueError(
                f"data.{name}: expected {value!r}, with which {out} was trained, got {got!r}; {_AS_TRAINED}"
            )


def load_model(path: str | os.PathLike[str], architecture: str | None = None, trust: Sequence[str] = ()) -> XCLIP:
    """Load the model of a folder, of the folder of a run, or of a checkpoint file of X-CLIP's code or of CLIP.

    It is on CUDA where there is one.

    Args:
        architecture: of a file of CLIP, see XCLIP.from_clip.
        trust: of a folder, see XCLIP.from_pretrained.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no such model.
    """
    path = Path(path)
    if path.is_dir():
        model = XCLIP.from_pretrained(path, trust)
    elif path.is_file():
        model = XCLIP.from_original(path) if is_original(path) else XCLIP.from_clip(path, architecture)
    else:
        raise FileNotFoundError(f"model: expected a folder or a checkpoint file, got {path}")
    return model.eval().to(training.device("auto"))


def evaluate(run: Run, model: XCLIP, pairs: Pairs, hubness: str | None = None) -> Evaluation:
    """Evaluate a split; with `hubness`, the scores are corrected by it (see training.corrected)."""
    if hubness is not None:
        training.check_hubness(hubness, model.recipe)
    with run.clock.phase("evaluation"), Bars() as bars:
        evaluation = training.evaluate(
            model.to(training.device(run.config.device)),
            pairs,
            max_frames=run.max_frames,
            protocol=run.config.data.protocol,
            batch_size=min(100, run.config.stages[-1].batch_size),
            workers=run.config.workers,
            progress=bars.counter("encoding and scoring the test"),
        )
        return evaluation if hubness is None else training.corrected(evaluation, hubness, run.config.data.protocol)


def numbered_pair(
    folder: str | os.PathLike[str], number: int, cache: str | None = None, trust: Sequence[str] = ()
) -> tuple[str, NDArray[np.uint8], str]:
    """Load a pair of the test split of a run: its sentence, the frames of its video, and what to call it.

    Args:
        number: which, counted from 0.
        cache: folder of the generated pairs; default that of the run.
        trust: see XCLIP.from_pretrained.

    Raises:
        FileNotFoundError: no run in that folder.
        ValueError: no such pair, or a video that cannot be read.
    """
    path = Path(folder) / "config.json"
    if not path.is_file() or not (Path(folder) / "model").is_dir():
        raise FileNotFoundError(f"model: expected with --pair the folder of a finished training, got {folder}")
    overrides = [] if cache is None else [f"--data.cache={cache}"]
    config = training.load_config(path, overrides, trust)
    check_cache(config, Path(folder), overrides)
    test = config.data.load().test
    if number >= len(test.sentences):
        raise ValueError(f"pair: expected one from 0 to {len(test.sentences) - 1}, got {number}")
    frames = frames_of(test, number, config.stages[-1].max_frames)
    return test.sentences[number], frames, f"the video of test pair {number}"
