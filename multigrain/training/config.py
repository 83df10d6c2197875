"""The settings of a training run, as plain data that YAML and the command line can write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..models import ModelConfig

TASKS = ("frames", "videos")


@dataclass(frozen=True)
class DataConfig:
    """BabyAI pairs: see multigrain.data.babyai.load. `cache` is the folder of the generated rollouts."""

    cache: str = "runs/data"
    pairs: int = 9500
    single: int = 8000
    val: int = 1000
    test: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a linear warm-up and a cosine to zero, both by step.

    Args:
        learning_rate: at the top.
        weight_decay: of matrices; vectors, positions, mixing and bilinear matrices have none.
        betas: of AdamW.
        warmup: the share of the steps, in [0, 1), in which the rate rises.
        clip_norm: upper limit of the gradient's norm.

    Raises:
        ValueError: a value out of range; its name is given.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            _require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _require(self.weight_decay >= 0, "weight_decay", "a number of at least 0", self.weight_decay)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        _require(0 <= self.warmup < 1, "warmup", "a share in [0, 1)", self.warmup)


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Args:
        name: as progress and metrics.jsonl show it.
        task: "frames", a CLIP in miniature: the last frame of the single-action pairs against their sentences,
            one global contrast; or "videos": the model's grains on the training pairs.
        epochs, batch_size: in pairs; an incomplete last batch is left out.
        max_frames: frames of a video, sampled uniformly.
        bucket: sentences of similar length share a batch, sorted within so many batches at a time; 1 = not at
            all. Padding costs time, and sentences of one shape are harder negatives.
        freeze_vision: keep the frame tower as it is. The features of all frames are then computed once and kept
            in memory (pairs x max_frames x dim numbers).

    Raises:
        ValueError: a value out of range; its name is given.
    """

    name: str
    task: str = "videos"
    epochs: int = 5
    batch_size: int = 64
    max_frames: int = 12
    bucket: int = 1
    freeze_vision: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        for name in ("epochs", "batch_size", "max_frames", "bucket"):
            _require(getattr(self, name) >= 1, name, "a positive integer", getattr(self, name))


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run.

    Args:
        validation_pairs: how many validation pairs are scored after each epoch of a "videos" stage; 0 = none.
        checkpoint_seconds: a checkpoint is written at the first step after so many seconds, and after each epoch.
        device: "cpu", "cuda", ..., or "auto": CUDA where there is one.

    Raises:
        ValueError: no stage, or a value out of range; its name is given.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: list[StageConfig] = field(default_factory=list[StageConfig])
    seed: int = 0
    validation_pairs: int = 250
    checkpoint_seconds: float = 20.0
    device: str = "auto"

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        _require(len(names) > 0, "stages", "at least one stage", names)
        _require(len(set(names)) == len(names), "stages", "distinct names", names)
        _require(self.validation_pairs >= 0, "validation_pairs", "at least 0", self.validation_pairs)


def load_config(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """The settings of a YAML (or JSON) file.

    Args:
        name: a path, or the name of a file in multigrain/configs, without its suffix.
        overrides: as on a command line, applied to the file before it is read: ["--seed=1",
            "--model.aggregator.init_args.temperature=0.03", "--model.grains.3.aggregator=max_max",
            "--stages.1.epochs=3"]. Numbers count from 0; a value is YAML.

    Raises:
        FileNotFoundError: no such file; the message lists the configs that come with the package.
        ImportError: jsonargparse is not installed.
        ValueError: unknown settings, or values out of range; the message names them.
    """
    path = _find(name)
    try:
        import yaml
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError('reading a config needs jsonargparse: pip install "multigrain[cli]"') from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for override in overrides:
            place, separator, value = override.removeprefix("--").partition("=")
            _require(override.startswith("--") and bool(separator), "override", "--name=value", override)
            _set(values, place, yaml.safe_load(value))
        settings = parser.instantiate(parser.parse_object(values))
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"config {path}: {error}") from error
    return TrainConfig(**{name: settings[name] for name in TrainConfig.__dataclass_fields__})


def _set(values: Any, place: str, value: object) -> None:
    """Put a value at a dotted place of nested mappings and lists, making mappings on the way."""
    *path, last = place.split(".")
    for name in path:
        key = _key(values, name, place)
        if isinstance(values, dict):
            values.setdefault(key, {})
        values = values[key]
    values[_key(values, last, place)] = value


def _key(values: Any, name: str, place: str) -> Any:
    """The key of a name in a mapping, or its index in a list."""
    if isinstance(values, list):
        _require(name.isdigit() and int(name) < len(values), place, f"a number below {len(values)}", name)
        return int(name)
    _require(isinstance(values, dict), place, "settings to choose from", values)
    return name


def _find(name: str | os.PathLike[str]) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(resources.files("multigrain"))) / "configs"
    if (shipped := folder / f"{path}.yaml").is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise FileNotFoundError(f"config: expected a YAML file or one of {names}; got {os.fspath(name)}")


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
