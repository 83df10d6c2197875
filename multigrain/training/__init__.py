"""Training and evaluation: one loop for every stage, resumable at any step. Needs the extras `models` and `cli`.

    config = training.load_config("demo")
    data = training.load_data(config.data)
    model = training.train(config, data, "runs/demo")
    training.evaluate(model, data.test).metrics["all"]["t2v"]["R@1"]

As commands: `multigrain train` and `multigrain evaluate`.
"""

from __future__ import annotations

from .config import BabyAIConfig, ClipsConfig, OptimizerConfig, StageConfig, TrainConfig
from .correction import check_hubness, corrected
from .data import Data, Pairs, load_data
from .encoding import encode
from .evaluation import Evaluation, evaluate, evaluate_features, protocol_of, scores_by_grain
from .judging import metrics_by_grain
from .loop import train
from .preflight import check, device
from .reading import load_config
from .recording import Progress

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
    "load_data",
    "metrics_by_grain",
    "protocol_of",
    "scores_by_grain",
    "train",
]
