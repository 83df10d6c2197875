"""Heads: Features -> Features with more grains, such as the video that a temporal encoder makes of frames."""

from .pool import AttentionPool, MeanPool, Pool, Pooler
from .temporal import TemporalLSTM, TemporalTransformer
from .transformer import Transformer
from .video import Encode, number_of_heads, temporal_encoder, video_head

__all__ = [
    "AttentionPool",
    "Encode",
    "MeanPool",
    "Pool",
    "Pooler",
    "TemporalLSTM",
    "TemporalTransformer",
    "Transformer",
    "number_of_heads",
    "temporal_encoder",
    "video_head",
]
