"""multigrain: every way that a sentence and a video can be compared: grains x aggregators x losses."""

from .aggregators import (
    AOSM,
    Aggregator,
    LogSumExp,
    MaxMax,
    MaxMean,
    MaxSim,
    MeanMax,
    MeanMean,
    build_aggregator,
    register_aggregator,
)
from .grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .losses import (
    CachedLoss,
    Criterion,
    Decorrelation,
    Distillation,
    FeatureQueue,
    InfoNCE,
    Loss,
    MarginRanking,
    PartialCriterion,
    RetrievalLoss,
    Sigmoid,
    TokenNCE,
    WholeBatchLoss,
    momentum_update,
)
from .metrics import ranks, retrieval_metrics
from .scorer import MultiGrain
from .scoring import score_matrix, top_k
from .tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "AOSM",
    "Aggregator",
    "CachedLoss",
    "Criterion",
    "Decorrelation",
    "Distillation",
    "FeatureQueue",
    "Features",
    "FrameWord",
    "Grain",
    "InfoNCE",
    "LogSumExp",
    "Loss",
    "MarginRanking",
    "MaxMax",
    "MaxMean",
    "MaxSim",
    "MeanMax",
    "MeanMean",
    "MultiGrain",
    "PartialCriterion",
    "RetrievalLoss",
    "SentenceFrame",
    "Sigmoid",
    "TokenNCE",
    "Tokens",
    "VideoSentence",
    "VideoWord",
    "WholeBatchLoss",
    "build_aggregator",
    "momentum_update",
    "ranks",
    "register_aggregator",
    "retrieval_metrics",
    "score_matrix",
    "top_k",
]
