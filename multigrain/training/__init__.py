"""Training and evaluation: one loop for every stage, resumable at any step. Needs the extras `models` and `cli`.

    config = training.load_config("demo")
    data = config.data.load()
    model = training.train(config, data, "runs/demo")
    training.evaluate(model, data.test).metrics["all"]["t2v"]["R@1"]

As commands: `multigrain train` and `multigrain evaluate`.
"""

from __future__ import annotations

from ..data.pairs import Data, Pairs
from ..evaluation import (
    Evaluation,
    check_hubness,
    corrected,
    encode,
    evaluate,
    evaluate_features,
    metrics_by_grain,
    scores_by_grain,
)
from .config import BabyAIConfig, ClipsConfig, OptimizerConfig, StageConfig, TrainConfig
from .config_files import load_config
from .loop import train
from .run_folder import TrainingProgress as Progress
from .validate import check, device

__all__ = [
    "BabyAIConfig",
    "ClipsConfig",
    "Data",
    "Evaluation",
    "OptimizerConfig",
    "Pairs",
    "Progress",
    "StageConfig",
    "TrainConfig",
    "check",
    "check_hubness",
    "corrected",
    "device",
    "encode",
    "evaluate",
    "evaluate_features",
    "load_config",
    "metrics_by_grain",
    "scores_by_grain",
    "train",
]
