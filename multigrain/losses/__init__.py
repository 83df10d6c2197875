"""Losses over matrices of scores, over features, and over batches larger than one process encodes."""

from .base import Loss
from .batch import WholeBatchLoss
from .cached import CachedLoss
from .criterion import Criterion, PartialCriterion
from .decorrelation import Decorrelation
from .distillation import Distillation
from .infonce import InfoNCE
from .matching import Matching, cascade_negatives, hard_negatives, random_negatives
from .queue import FeatureQueue, momentum_update
from .ranking import MarginRanking
from .retrieval import RetrievalLoss
from .sigmoid import Sigmoid
from .token import TokenNCE

__all__ = [
    "CachedLoss",
    "Criterion",
    "Decorrelation",
    "Distillation",
    "FeatureQueue",
    "InfoNCE",
    "Loss",
    "MarginRanking",
    "Matching",
    "PartialCriterion",
    "RetrievalLoss",
    "Sigmoid",
    "TokenNCE",
    "WholeBatchLoss",
    "cascade_negatives",
    "hard_negatives",
    "momentum_update",
    "random_negatives",
]
