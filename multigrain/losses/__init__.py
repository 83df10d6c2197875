"""Losses over matrices of scores, over features, and over batches larger than one process encodes.

`base` says what a loss is, `criterion` what one of scores is, `whole` what one of features is. A new one is a class in
a file of this folder, exported by `multigrain/__init__.py`, with a test, and listed in `docs/api/index.md`.
"""

from .base import Loss
from .cached import CachedLoss
from .criterion import Criterion, PartialCriterion
from .decorrelation import Decorrelation
from .distillation import Distillation
from .infonce import InfoNCE
from .matching import Matching, cascade_negatives, hard_negatives, random_negatives
from .momentum import momentum_update
from .queue import FeatureQueue
from .ranking import MarginRanking
from .retrieval import RetrievalLoss
from .sigmoid import Sigmoid
from .token import TokenNCE
from .whole import WholeBatchLoss

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
