"""multigrain: every way that a sentence and a video can be compared: grains x aggregators x losses."""

from . import interrupts as interrupts  # isort: skip  # before torch
from . import aggregators, grains, heads, hubness, losses, metrics, recipes
from .aggregators import (
    AOSM,
    Aggregator,
    LogSumExp,
    MaxMax,
    MaxMean,
    MaxSim,
    MeanMax,
    MeanMean,
    TokenWeighted,
    register_aggregator,
)
from .cross_encoder import rerank
from .grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .losses import CachedLoss, InfoNCE, RetrievalLoss, Sigmoid
from .metrics import retrieval_metrics
from .scorer import MultiGrain
from .scoring import score_matrix, top_k
from .tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "AOSM",
    "Aggregator",
    "CachedLoss",
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
    "Sigmoid",
    "TokenWeighted",
    "Tokens",
    "VideoSentence",
    "VideoWord",
    "aggregators",
    "grains",
    "heads",
    "hubness",
    "losses",
    "metrics",
    "recipes",
    "register_aggregator",
    "rerank",
    "retrieval_metrics",
    "score_matrix",
    "top_k",
]
