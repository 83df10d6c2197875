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
from .losses import CachedLoss, FeatureQueue, InfoNCE, RetrievalLoss, momentum_update
from .metrics import ranks, retrieval_metrics
from .scorer import MultiGrain
from .scoring import score_matrix, top_k
from .tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "AOSM",
    "Aggregator",
    "CachedLoss",
    "FeatureQueue",
    "Features",
    "FrameWord",
    "Grain",
    "InfoNCE",
    "LogSumExp",
    "MaxMax",
    "MaxMean",
    "MaxSim",
    "MeanMax",
    "MeanMean",
    "MultiGrain",
    "RetrievalLoss",
    "SentenceFrame",
    "Tokens",
    "VideoSentence",
    "VideoWord",
    "build_aggregator",
    "momentum_update",
    "ranks",
    "register_aggregator",
    "retrieval_metrics",
    "score_matrix",
    "top_k",
]
