"""Aggregators: from the similarities of all token pairs to one score per (query, candidate) pair."""

from .attention import AOSM, ISA
from .base import (
    Aggregator,
    Axis,
    LevelAggregator,
    aggregator_classes,
    aggregator_names,
    build_aggregator,
    register_aggregator,
)
from .normalized_softmax import NormalizedSoftmax
from .token_weighted import TokenWeighted
from .top_k import TopK
from .two_level import LogSumExp, MaxMax, MaxMean, MaxSim, MeanMax, MeanMean, TwoLevel

__all__ = [
    "AOSM",
    "ISA",
    "Aggregator",
    "Axis",
    "LevelAggregator",
    "LogSumExp",
    "MaxMax",
    "MaxMean",
    "MaxSim",
    "MeanMax",
    "MeanMean",
    "NormalizedSoftmax",
    "TokenWeighted",
    "TopK",
    "TwoLevel",
    "aggregator_classes",
    "aggregator_names",
    "build_aggregator",
    "register_aggregator",
]
