"""multigrain: every way that a sentence and a video can be compared: grains x aggregators x losses."""

from .aggregators import Aggregator, build_aggregator, register_aggregator
from .aggregators.attention import AOSM, ISA
from .aggregators.normalized_softmax import NormalizedSoftmax
from .aggregators.token_weighted import TokenWeighted
from .aggregators.top_k import TopK
from .aggregators.two_level import LogSumExp, MaxMax, MaxMean, MaxSim, MeanMax, MeanMean
from .grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .losses import CachedLoss, FeatureQueue, InfoNCE, RetrievalLoss, momentum_update
from .losses.base import Loss
from .losses.criterion import Criterion, PartialCriterion
from .losses.decorrelation import Decorrelation
from .losses.distillation import Distillation
from .losses.ranking import MarginRanking
from .losses.sigmoid import Sigmoid
from .losses.token import TokenNCE
from .losses.whole import WholeBatchLoss
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
    "Criterion",
    "CrossAttentionPool",
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
    "MeanPool",
    "MultiGrain",
    "NormalizedSoftmax",
    "PartialCriterion",
    "Pool",
    "PooledGrain",
    "Pooler",
    "QueryPooler",
    "RetrievalLoss",
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
    "momentum_update",
    "ranks",
    "register_aggregator",
    "retrieval_metrics",
    "score_matrix",
    "top_k",
]
