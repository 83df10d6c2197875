"""Losses over matrices of scores."""

from .infonce import InfoNCE
from .retrieval import RetrievalLoss

__all__ = ["InfoNCE", "RetrievalLoss"]
