"""Losses over matrices of scores, and over batches larger than one process encodes."""

from .cached import CachedLoss
from .infonce import InfoNCE
from .matching import Matching, cascade_negatives, hard_negatives, random_negatives
from .momentum import momentum_update
from .queue import FeatureQueue
from .retrieval import RetrievalLoss

__all__ = [
    "CachedLoss",
    "FeatureQueue",
    "InfoNCE",
    "Matching",
    "RetrievalLoss",
    "cascade_negatives",
    "hard_negatives",
    "momentum_update",
    "random_negatives",
]
