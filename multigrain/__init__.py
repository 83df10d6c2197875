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
from .hubness import dual_softmax, dynamic_inverted_softmax, inverted_softmax, sinkhorn
from .losses import (
    CachedLoss,
    Criterion,
    Decorrelation,
    Distillation,
    FeatureQueue,
    InfoNCE,
    Loss,
    MarginRanking,
    Matching,
    PartialCriterion,
    RetrievalLoss,
    Sigmoid,
    TokenNCE,
    WholeBatchLoss,
    cascade_negatives,
    hard_negatives,
    momentum_update,
    random_negatives,
)
from .metrics import ranks, retrieval_metrics
from .pairs import CrossEncoder, SegmentScorer, rerank
from .scorer import MultiGrain
from .scoring import score_matrix, top_k
from .tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "AOSM",
    "Aggregator",
    "CachedLoss",
    "Criterion",
    "CrossEncoder",
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
    "Matching",
    "MaxMax",
    "MaxMean",
    "MaxSim",
    "MeanMax",
    "MeanMean",
    "MultiGrain",
    "PartialCriterion",
    "RetrievalLoss",
    "SegmentScorer",
    "SentenceFrame",
    "Sigmoid",
    "TokenNCE",
    "Tokens",
    "VideoSentence",
    "VideoWord",
    "WholeBatchLoss",
    "build_aggregator",
    "cascade_negatives",
    "dual_softmax",
    "dynamic_inverted_softmax",
    "hard_negatives",
    "inverted_softmax",
    "momentum_update",
    "random_negatives",
    "ranks",
    "register_aggregator",
    "rerank",
    "retrieval_metrics",
    "score_matrix",
    "sinkhorn",
    "top_k",
]
