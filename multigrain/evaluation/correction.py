"""Evaluations after a transductive correction of hubness, which needs the scores of all queries at once."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .. import checks
from ..distributed import world
from ..hubness import TRANSDUCTIVE
from .retrieval import Evaluation
from .scores import ALL, metrics_by_grain, reranks


def corrected(evaluation: Evaluation, hubness: str, protocol: str = "diagonal") -> Evaluation:
    """Correct an evaluation for hubness: texts rank videos by corrected scores, and videos rank texts by others.

    Each direction is corrected over its own queries, with the scores of all of them (transductive). The result has the
    scores and the metrics for "all"; the correction itself needs room for several more matrices.

    Args:
        hubness: a name of multigrain.hubness.TRANSDUCTIVE.
        protocol: that of the evaluation.

    Raises:
        ValueError: no such name, an evaluation that is corrected already or was reranked, or several ranks.
    """
    check_hubness(hubness)
    _check_comparable(evaluation.reranked)
    checks.require(evaluation.hubness is None, "evaluation", "one without a correction", evaluation.hubness)
    correct = TRANSDUCTIVE[hubness]
    back = evaluation.scores[ALL] if evaluation.reverse is None else evaluation.reverse
    scores, reverse = correct(evaluation.scores[ALL]), correct(back.T).T
    metrics, of_videos = (metrics_by_grain({ALL: x}, protocol, evaluation.targets) for x in (scores, reverse))
    metrics[ALL]["v2t"] = of_videos[ALL]["v2t"]
    return replace(evaluation, scores={ALL: scores}, metrics=metrics, hubness=hubness, reverse=reverse)


def check_hubness(name: str, scorer: nn.Module | None = None) -> None:
    """Check, before anything is computed, that `corrected` can serve the scores of a MultiGrain or Recipe.

    Raises:
        ValueError: no such name; a reranker; or several ranks, of which none holds the whole matrix.
    """
    checks.choice("hubness", name, TRANSDUCTIVE)
    _check_comparable(scorer is not None and reranks(scorer))
    if (ranks := world()[1]) > 1:
        raise ValueError(
            f"hubness: expected one process, since {name} needs the scores of all texts at once, got {ranks}"
        )


def _check_comparable(reranked: bool) -> None:
    if reranked:
        raise ValueError(
            "hubness: expected scores that compare between queries, got those of a reranker, which only order "
            "the candidates of each"
        )
