"""Losses over matrices of scores, and over batches larger than one process encodes."""

from .cached import CachedLoss
from .infonce import InfoNCE
from .momentum import momentum_update
from .queue import FeatureQueue
from .retrieval import RetrievalLoss

__all__ = ["CachedLoss", "FeatureQueue", "InfoNCE", "RetrievalLoss", "momentum_update"]
