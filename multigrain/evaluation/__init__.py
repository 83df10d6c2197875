"""Retrieval metrics of features or pairs, for each grain and for all together, with any `Encoder`."""

from .correction import check_hubness, corrected
from .encoding import encode
from .retrieval import Evaluation, evaluate, evaluate_features, scores_by_grain
from .scores import metrics_by_grain

__all__ = [
    "Evaluation",
    "check_hubness",
    "corrected",
    "encode",
    "evaluate",
    "evaluate_features",
    "metrics_by_grain",
    "scores_by_grain",
]
