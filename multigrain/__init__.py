"""multigrain: every way that a sentence and a video can be compared: grains x aggregators x losses."""

from . import interrupts as interrupts  # isort: skip  # before torch
from . import recipes as recipes
from .aggregators import Aggregator, build_aggregator, register_aggregator
from .aggregators.attention import AOSM, ISA
from .aggregators.normalized_softmax import NormalizedSoftmax
from .aggregators.token_weighted import TokenWeighted
from .aggregators.top_k import TopK
from .aggregators.two_level import LogSumExp, MaxMax, MaxMean, MaxSim, MeanMax, MeanMean
from .cross_encoder import CrossEncoder, SegmentScorer, rerank
from .grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .grains.pooled import CrossAttentionPool, PooledGrain, QueryPooler, SoftmaxPool
from .heads.pool import AttentionPool, MeanPool, Pool, Pooler
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
from .scorer import MultiGrain
from .scoring import score_matrix, top_k
from .tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "AOSM",
    "ISA",
    "Aggregator",
    "AttentionPool",
    "CachedLoss",
    "Criterion",
    "CrossAttentionPool",
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
    "MeanPool",
    "MultiGrain",
    "NormalizedSoftmax",
    "PartialCriterion",
    "Pool",
    "PooledGrain",
    "Pooler",
    "QueryPooler",
    "RetrievalLoss",
    "SegmentScorer",
    "SentenceFrame",
    "Sigmoid",
    "SoftmaxPool",
    "TokenNCE",
    "TokenWeighted",
    "Tokens",
    "TopK",
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
