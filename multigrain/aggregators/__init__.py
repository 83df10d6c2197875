"""Aggregators: from the similarities of all token pairs to one score per (query, candidate) pair.

`base` says what an aggregator is. A new one is a class in a file of this folder that `register_aggregator` gives a
name, exported by `multigrain/__init__.py`, judged by a function in `tests/oracle.py`, and listed in
`docs/api/index.md`.
"""

from .attention import AOSM, ISA, Mixing
from .base import (
    Aggregator,
    aggregator_names,
    aggregator_of,
    build_aggregator,
    clean,
    register_aggregator,
    two_orders,
    zero_empty,
)
from .normalized_softmax import NormalizedSoftmax
from .token_weighted import TokenWeighted
from .top_k import TopK
from .two_level import LogSumExp, MaxMax, MaxMean, MaxSim, MeanMax, MeanMean, TwoLevel

__all__ = [
    "AOSM",
    "ISA",
    "Aggregator",
    "LogSumExp",
    "MaxMax",
    "MaxMean",
    "MaxSim",
    "MeanMax",
    "MeanMean",
    "Mixing",
    "NormalizedSoftmax",
    "TokenWeighted",
    "TopK",
    "TwoLevel",
    "aggregator_names",
    "aggregator_of",
    "build_aggregator",
    "clean",
    "register_aggregator",
    "two_orders",
    "zero_empty",
]
