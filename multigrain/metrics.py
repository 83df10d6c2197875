"""Retrieval metrics: R@K, median and mean rank, in both directions, under a named protocol.

    rank = 1 + number of rivals strictly better (+ a stated share of the ties)

Rivals are all candidates that are not positives of the query. NaN is an error, never a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NotRequired, TypedDict

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import checks
from .hubness import TRANSDUCTIVE

__all__ = ["PROTOCOLS", "RetrievalMetrics", "ranks", "ranks_of_videos", "retrieval_metrics", "summarize"]

TIES = {"optimistic": 0.0, "mean": 0.5, "pessimistic": 1.0}
PROTOCOLS = ("diagonal", "group_max", "all_captions")
"""Names of how the captions of one video are counted, see `retrieval_metrics`."""
RECALLS = (1, 5, 10)
_ELEMENTS = 1 << 20  # scores compared at a time: comparing all at once would double the memory of a large matrix


class RetrievalMetrics(TypedDict):
    """The result of `retrieval_metrics`, which JSON can hold."""

    t2v: dict[str, float]
    v2t: dict[str, float]
    protocol: str
    ties: str
    hubness: NotRequired[str]


def ranks(
    scores: Float[Tensor, "q c"],
    positives: Int[Tensor, "q"] | Bool[Tensor, "q c"] | None = None,
    ties: str = "mean",
) -> Float[Tensor, "q"]:
    """The rank of each query's best positive among the candidates, fp64, from 1.

    Args:
        scores: [queries, candidates], higher is better.
        positives: the column of each query's positive [q], a bool matrix [q, c] of all its positives (only the
            best one is ranked, and the others are no rivals), or None: the diagonal of a square matrix.
        ties: rivals as good as the positive count fully ("pessimistic"), half ("mean": the expected rank under
            a random order) or not at all ("optimistic").

    Raises:
        ValueError: NaN among the scores (the first is named), a query without a positive, shapes that do not fit.
    """
    checks.scores(scores)
    checks.present("scores", scores)
    share = TIES[checks.choice("ties", ties, TIES)]
    if positives is None:
        checks.square(scores, "pass positives otherwise")
        positives = torch.arange(len(scores), device=scores.device)
    if checks.instance("positives", positives, Tensor).dtype != torch.bool:
        checks.labels("positives", positives, len(scores))
        checks.indices("positives", positives, scores.shape[1])
    elif positives.shape != scores.shape:
        raise ValueError(
            f"positives: expected a bool matrix of shape {checks.shape(scores)}, got {checks.shape(positives)}"
        )
    positives = positives.to(scores.device)
    found = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    for rows in _blocks(scores):
        found[rows] = _ranks(scores[rows], positives[rows], share, rows.start)
    return found


def _blocks(scores: Tensor) -> Iterator[slice]:
    step = max(1, _ELEMENTS // scores.shape[1])
    return (slice(i, i + step) for i in range(0, len(scores), step))


def _ranks(scores: Tensor, positives: Tensor, share: float, first_row: int) -> Tensor:
    checks.not_nan(scores, first_row)
    if positives.dtype != torch.bool:
        best = scores.gather(1, rearrange(positives, "q -> q 1").long())
        better, equal = (reduce(x, "q c -> q", "sum") for x in (scores > best, scores == best))
        equal = equal - 1  # the positive itself
    else:
        lonely = ~reduce(positives, "q c -> q", "any")
        if lonely.any():
            row = first_row + int(lonely.nonzero()[0])
            raise ValueError(f"positives: expected one for every query, got none for query {row}")
        best = reduce(torch.where(positives, scores, -torch.inf), "q c -> q 1", "max")
        better, equal = (reduce(x & ~positives, "q c -> q", "sum") for x in (scores > best, scores == best))
    return 1 + better.double() + share * equal.double()


def retrieval_metrics(
    scores: Float[Tensor, "t v"],
    targets: Int[Tensor, "t"] | None = None,
    protocol: str = "diagonal",
    ties: str = "mean",
    hubness: str | None = None,
) -> RetrievalMetrics:
    """R@1, R@5, R@10 (per cent), MdR and MnR (ranks), text to video and back.

    Args:
        scores: [texts, videos].
        targets: the video of each text, [texts]; every video has at least one. Not for "diagonal".
        protocol: "diagonal": text i belongs to video i, a square matrix.
            "all_captions": each text ranks all videos; each video ranks all texts, and its best own one counts.
            "group_max", as in X-CLIP and CLIP4Clip for MSVD: each video ranks the videos, each by its best
            caption, so that a rival's many captions count once. R@1 equals that of "all_captions", the rest is easier.
        ties: see `ranks`.
        hubness: "dual_softmax", "inverted_softmax" or "sinkhorn" corrects the scores first, for each direction over
            its own queries, and is named in the result: all three are transductive.

    Raises:
        ValueError: NaN among the scores (the first pair is named), unknown protocol or correction, targets that do
            not fit.
    """
    checks.choice("protocol", protocol, PROTOCOLS)
    checks.scores(scores)
    checks.present("scores", scores)
    if protocol != "diagonal":
        targets = _targets(scores, targets, protocol)
    elif targets is not None:
        raise ValueError('targets: expected None under the protocol "diagonal"; name "all_captions" or "group_max"')
    else:
        checks.square(scores, 'pass targets and the protocol "all_captions" or "group_max" otherwise')
    by_text = by_video = scores
    if hubness is not None:
        correct = TRANSDUCTIVE[checks.choice("hubness", hubness, TRANSDUCTIVE)]
        by_text, by_video = correct(scores), correct(scores.T).T
    result: RetrievalMetrics = {
        "t2v": summarize(ranks(by_text, targets, ties)),
        "v2t": summarize(ranks_of_videos(by_video, targets, protocol, ties)),
        "protocol": protocol,
        "ties": ties,
    }
    if hubness is not None:
        result["hubness"] = hubness
    return result


def ranks_of_videos(
    scores: Float[Tensor, "t v"],
    targets: Int[Tensor, "t"] | None,
    protocol: str,
    ties: str,
    all_reduce: Callable[[Tensor, str], Tensor] = lambda x, operation: x,
) -> Float[Tensor, "v"]:
    """The rank of each video's best own text ("all_captions"), or of itself among the videos, each by its best text.

    Args:
        targets: the video of each text; None: text i belongs to video i. Where each video has one text, all protocols
            have the same ranks.
        all_reduce: (tensor, "max" or "sum") -> its reduction over all ranks, where each holds some of the texts, and
            all texts of a video are on one rank; default: there is one rank.
    """
    if targets is None:
        targets = torch.arange(len(scores), device=scores.device)
    for rows in _blocks(scores):
        checks.not_nan(scores[rows], rows.start)
    own = rearrange(scores.gather(1, rearrange(targets, "t -> t 1")), "t 1 -> t")
    best = scores.new_full((scores.shape[1],), -torch.inf).scatter_reduce(0, targets, own, "amax")
    best = all_reduce(best, "max")
    rivals, owners = scores, targets
    if protocol == "group_max":
        owners, places = targets.unique(return_inverse=True)
        rivals = scores.new_full((len(owners), scores.shape[1]), -torch.inf)
        rivals.scatter_reduce_(0, repeat(places, "t -> t v", v=scores.shape[1]), scores, "amax")
    videos = torch.arange(scores.shape[1], device=scores.device)
    counts = torch.zeros(2, len(videos), dtype=torch.long, device=scores.device)
    for rows in _blocks(rivals):
        others, x = rearrange(owners[rows], "t -> t 1") != videos, rivals[rows]
        counts += reduce([(x > best) & others, (x == best) & others], "better_or_equal t v -> better_or_equal v", "sum")
    better, equal = all_reduce(counts, "sum").double()
    return 1 + better + TIES[ties] * equal


def summarize(ranks: Float[Tensor, "q"]) -> dict[str, float]:
    """R@1, R@5, R@10 in per cent, median rank (MdR) and mean rank (MnR) of ranks [q]."""
    recalls = {f"R@{k}": 100 * (ranks <= k).double().mean().item() for k in RECALLS}
    ordered, n = ranks.double().sort().values, len(ranks)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return {**recalls, "MdR": median.item(), "MnR": ranks.double().mean().item()}


def _targets(scores: Tensor, targets: Tensor | None, protocol: str) -> Tensor:
    if targets is None:
        raise ValueError(f"targets: expected the video of each text under the protocol {protocol!r}, got None")
    checks.labels("targets", targets, scores.shape[0])
    checks.indices("targets", targets, scores.shape[1])
    missing = torch.bincount(targets, minlength=scores.shape[1]) == 0
    if missing.any():
        raise ValueError(f"targets: expected a text for every video, got none for video {int(missing.nonzero()[0])}")
    return targets.to(scores.device).long()
