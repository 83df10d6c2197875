"""From a scorer and features to the matrix of each grain, and from matrices to metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .. import checks
from ..distributed import world
from ..metrics import RetrievalMetrics, retrieval_metrics
from ..recipes import Recipe
from ..scorer import MultiGrain, grains_of
from ..scoring import score_matrix
from ..tokens import Features
from .encoding import Count
from .merged import merged_metrics

ALL = "all"
_BACK = "all, of videos"


def matrices(
    scorer: nn.Module, text: Features, video: Features, progress: Count | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The matrix of each grain, one after the other; then, as "all", that of the scorer; and as _BACK what ranks texts,
    if it is another. Whoever drops each before the next holds two at a time."""
    if isinstance(scorer, Recipe):
        for name, matrix in matrices(scorer.scorer, text, video, progress):
            if name != ALL or scorer.reranker is None:
                yield name, matrix
            del matrix
        if scorer.reranker is not None:
            yield ALL, scorer.reranked_of(text, video, "t2v").cpu()
        if scorer.reranker is not None or scorer.reverse is not None:
            yield _BACK, scorer.reranked_of(text, video, "v2t").cpu()
        return
    if not isinstance(scorer, MultiGrain):
        yield ALL, score_matrix(scorer, text, video, device="cpu")
        return
    total: Tensor | None = None
    for done, (grain, weight) in enumerate(zip(grains_of(scorer), scorer.weights, strict=True), 1):
        alone = MultiGrain(grain, strict=scorer.strict, backend=scorer.backend)
        matrix = score_matrix(alone, text, video, device="cpu")
        if progress is not None:
            progress(done, len(scorer.grains))
        total = torch.zeros_like(matrix) if total is None else total
        total.add_(matrix, alpha=float(weight))
        yield grain.name, matrix
        del matrix
    assert total is not None  # a MultiGrain has a grain
    yield ALL, total


def names_of(scorer: nn.Module) -> list[str]:
    """Those of `matrices`."""
    names = [ALL]
    if isinstance(scorer, Recipe):
        names += [_BACK] * (scorer.reranker is not None or scorer.reverse is not None)
        scorer = scorer.scorer
    return [*(grain.name for grain in grains_of(scorer)), *names]


def judged(
    found: Iterable[tuple[str, Tensor]], protocol: str, targets: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None, dict[str, RetrievalMetrics]]:
    """({"all": scores}, what ranks texts where that is another matrix, metrics) of `matrices`. Collective.

    Each matrix of a grain is ranked and dropped: those of large collections have no place beside each other.
    """
    kept: dict[str, Tensor] = {}
    metrics: dict[str, RetrievalMetrics] = {}
    for name, matrix in found:
        metrics |= _metrics({name: matrix}, protocol, targets)
        if name in (ALL, _BACK):
            kept[name] = matrix
        del matrix
    if _BACK in metrics:
        metrics[ALL]["v2t"] = metrics.pop(_BACK)["v2t"]
    return {ALL: kept[ALL]}, kept.get(_BACK), metrics


def reranks(scorer: nn.Module) -> bool:
    """Whether a reranker has the last word."""
    return isinstance(scorer, Recipe) and scorer.reranker is not None


def check_reranker(scorer: nn.Module) -> None:
    """That an evaluation can serve: better said before anything is computed.

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
    """R@1/5/10, MdR and MnR both ways, of every matrix; `targets` has the video of each text, None: text i's is i."""
    texts, videos = next(iter(scores.values())).shape
    check_counts(protocol, texts, videos)
    if protocol == "diagonal":
        _check_diagonal(targets)
        targets = None
    return {name: retrieval_metrics(matrix, targets, protocol) for name, matrix in scores.items()}


def _metrics(scores: dict[str, Tensor], protocol: str, targets: Tensor | None) -> dict[str, RetrievalMetrics]:
    """As `metrics_by_grain`, of the texts of all ranks. Collective."""
    if world()[1] == 1 or targets is None:
        return metrics_by_grain(scores, protocol, targets)
    return {name: merged_metrics(matrix, targets, protocol) for name, matrix in scores.items()}


def check_targets(targets: Tensor | None, texts: int, videos: int, protocol: str) -> None:
    """What the ranks have to agree in before they take their shares: the same error on each."""
    check_counts(protocol, texts, videos)
    if targets is not None:
        checks.labels("targets", targets, texts)
        checks.indices("targets", targets, videos)
        if protocol == "diagonal":
            _check_diagonal(targets)
    elif protocol != "diagonal":
        raise ValueError(f"targets: expected the video of each text under the protocol {protocol!r}, got None")


def _check_diagonal(targets: Tensor | None) -> None:
    if targets is not None and not torch.equal(targets.cpu(), torch.arange(len(targets))):
        raise ValueError("targets: expected none under 'diagonal', where text i belongs to video i, got others")


def check_counts(protocol: str, texts: int, videos: int) -> None:
    """That there are texts, and under "diagonal" as many as videos."""
    if texts == 0:
        raise ValueError("pairs: expected at least one to evaluate, got none")
    if protocol == "diagonal" and texts != videos:
        raise ValueError(
            f"protocol: expected one text a video under 'diagonal', got {texts} texts and {videos} videos; "
            f"'all_captions' and 'group_max' are for more"
        )
