"""Score matrices of a scorer and of each of its grains, and the metrics of matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..distributed import world
from ..metrics import RetrievalMetrics, retrieval_metrics
from ..recipes import Recipe
from ..scorer import MultiGrain, grains_of
from ..scoring import ProgressCallback, score_matrix
from ..tokens import Features
from .merged import merged_metrics

ALL = "all"
_REVERSE = "all, of videos"


def score_matrices(
    scorer: nn.Module, text: Features, video: Features, progress: ProgressCallback | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the score matrix of each grain, then that of the scorer as ALL, then the one that ranks the texts of a
    video as _REVERSE, if it is another. A caller that drops each before the next holds two at a time.
    """
    if isinstance(scorer, Recipe):
        for name, matrix in score_matrices(scorer.scorer, text, video, progress):
            if name != ALL or scorer.reranker is None:
                yield name, matrix
            del matrix
        if scorer.reranker is not None:
            yield ALL, scorer.reranked_of(text, video, "t2v").cpu()
        if scorer.reranker is not None or scorer.reverse is not None:
            yield _REVERSE, scorer.reranked_of(text, video, "v2t").cpu()
        return
    if not isinstance(scorer, MultiGrain):
        yield ALL, score_matrix(scorer, text, video, device="cpu")
        return
    total: Tensor | None = None
    for done, (grain, weight) in enumerate(zip(grains_of(scorer), scorer.weights, strict=True), 1):
        of_grain = MultiGrain(grain, strict=scorer.strict, backend=scorer.backend)
        matrix = score_matrix(of_grain, text, video, device="cpu")
        if progress is not None:
            progress(done, len(scorer.grains))
        total = torch.zeros_like(matrix) if total is None else total
        total.add_(matrix, alpha=float(weight))
        yield grain.name, matrix
        del matrix
    assert total is not None  # a MultiGrain has a grain
    yield ALL, total


def rank_matrices(
    matrices: Iterable[tuple[str, Tensor]], protocol: str, targets: Tensor
) -> tuple[dict[str, Tensor], Tensor | None, dict[str, RetrievalMetrics]]:
    """Return ({"all": scores}, what ranks texts where that is another matrix, metrics) of `score_matrices`. Collective.

    The matrix of each grain is ranked and dropped: large collections leave no room for all of them.
    """
    kept: dict[str, Tensor] = {}
    metrics: dict[str, RetrievalMetrics] = {}
    for name, matrix in matrices:
        if world()[1] == 1:
            metrics |= metrics_by_grain({name: matrix}, protocol, targets)
        else:
            metrics[name] = merged_metrics(matrix, targets, protocol)
        if name in (ALL, _REVERSE):
            kept[name] = matrix
        del matrix
    if _REVERSE in metrics:
        metrics[ALL]["v2t"] = metrics.pop(_REVERSE)["v2t"]
    return {ALL: kept[ALL]}, kept.get(_REVERSE), metrics


def reranks(scorer: nn.Module) -> bool:
    """Tell whether a reranker has the last word."""
    return isinstance(scorer, Recipe) and scorer.reranker is not None


def check_reranker(scorer: nn.Module) -> None:
    """Check, before anything is computed, that an evaluation can serve a scorer.

    Raises:
        ValueError: a recipe with a reranker over several ranks, of which none holds the whole matrix.
    """
    if reranks(scorer) and (ranks := world()[1]) > 1:
        raise ValueError(
            f"recipe: expected one process, since the reranker of {scorer.name!r} needs the scores of all texts at "
            f"once, got {ranks}"
        )


def metrics_by_grain(
    scores: dict[str, Tensor], protocol: str = "diagonal", targets: Tensor | None = None
) -> dict[str, RetrievalMetrics]:
    """Compute R@1/5/10, MdR and MnR both ways of every matrix.

    Args:
        targets: the video of each text; None: text i belongs to video i.
    """
    texts, videos = next(iter(scores.values())).shape
    check_counts(protocol, texts, videos)
    if protocol == "diagonal":
        check_diagonal(targets)
        targets = None
    return {name: retrieval_metrics(matrix, targets, protocol) for name, matrix in scores.items()}


def check_diagonal(targets: Tensor | None) -> None:
    """Check that text i belongs to video i."""
    if targets is not None and not torch.equal(targets.cpu(), torch.arange(len(targets))):
        raise ValueError("targets: expected none under 'diagonal', where text i belongs to video i, got others")


def check_counts(protocol: str, texts: int, videos: int) -> None:
    """Check that there are texts, and under "diagonal" as many as videos."""
    if texts == 0:
        raise ValueError("pairs: expected at least one to evaluate, got none")
    if protocol == "diagonal" and texts != videos:
        raise ValueError(
            f"protocol: expected one text a video under 'diagonal', got {texts} texts and {videos} videos; "
            f"'all_captions' and 'group_max' are for more"
        )
