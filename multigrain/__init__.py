"""multigrain: every way that a sentence and a video can be compared: grains x aggregators x losses."""

from .aggregators import Aggregator, build_aggregator, register_aggregator
from .aggregators.attention import AOSM, ISA
from .aggregators.normalized_softmax import NormalizedSoftmax
from .aggregators.token_weighted import TokenWeighted
from .aggregators.top_k import TopK
from .aggregators.two_level import LogSumExp, MaxMax, MaxMean, MaxSim, MeanMax, MeanMean
from .grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .losses import CachedLoss, FeatureQueue, InfoNCE, RetrievalLoss, momentum_update
from .metrics import ranks, retrieval_metrics
from .poolers import AttentionPool, CrossAttentionPool, MeanPool, Pool, PooledGrain, Pooler, QueryPooler, SoftmaxPool
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
    "CrossAttentionPool",
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
    "MeanPool",
    "MultiGrain",
    "NormalizedSoftmax",
    "Pool",
    "PooledGrain",
    "Pooler",
    "QueryPooler",
    "RetrievalLoss",
    "SentenceFrame",
    "SoftmaxPool",
    "TokenWeighted",
    "Tokens",
    "TopK",
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
