"""Grains: two named levels of granularity of query and candidate, and how they are compared."""

from .grain import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from .pooled import CrossAttentionPool, PooledGrain, QueryPooler, SoftmaxPool

__all__ = [
    "CrossAttentionPool",
    "FrameWord",
    "Grain",
    "PooledGrain",
    "QueryPooler",
    "SentenceFrame",
    "SoftmaxPool",
    "VideoSentence",
    "VideoWord",
]
