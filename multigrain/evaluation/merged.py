"""Retrieval metrics of texts that are spread over ranks: ranks are merged, never matrices.

Each rank has the scores [own texts, videos] of its texts against all videos, and all texts of a video are on one rank.
The rank of a text is therefore known where the text is. The best own score of a video is on one rank (a maximum over
ranks finds it), and its rivals are counted where they are (a sum over ranks).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import checks
from ..distributed.collectives import all_gather_object, all_reduce
from ..metrics import PROTOCOLS, RetrievalMetrics, ranks, ranks_of_videos, summarize


def merged_metrics(
    scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], protocol: str = "diagonal", ties: str = "mean"
) -> RetrievalMetrics:
    """Compute multigrain.retrieval_metrics of the scores of all ranks, the same to the last bit. Collective.

    Args:
        scores, targets: of this rank's texts, none or more, and the video of each.

    Raises:
        ValueError: see multigrain.retrieval_metrics; on every rank.
    """
    checks.choice("protocol", protocol, PROTOCOLS)
    _check_counts(targets, scores.shape[1], protocol)
    problem, t2v = None, torch.empty(0, dtype=torch.float64)
    try:
        t2v = ranks(scores, targets, ties) if len(scores) else t2v
    except ValueError as error:
        problem = str(error)
    found = all_gather_object((t2v, problem))
    if problems := [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(found) if problem]:
        raise ValueError("; ".join(problems))
    v2t = video_ranks(scores, targets, protocol, ties)
    all_texts = torch.cat([part for part, _ in found])
    return {"t2v": summarize(all_texts), "v2t": summarize(v2t), "protocol": protocol, "ties": ties}


def video_ranks(
    scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], protocol: str = "all_captions", ties: str = "mean"
) -> Float[Tensor, "v"]:
    """Rank the best own text of each video among the texts of all ranks. Collective."""
    return ranks_of_videos(scores, targets, protocol, ties, all_reduce)


def _check_counts(targets: Tensor, videos: int, protocol: str) -> None:
    """Check that every video has a text, and under "diagonal" no more than one."""
    counts = all_reduce(torch.bincount(targets, minlength=videos))
    if protocol == "diagonal" and not (counts == 1).all():
        raise ValueError(
            f"protocol: expected one text a video under 'diagonal', got {int(counts.sum())} texts and {videos} videos"
        )
    if missing := (counts == 0).nonzero()[:, 0].tolist():
        raise ValueError(f"targets: expected a text for every video, got none for video {missing[0]}")
