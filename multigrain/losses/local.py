"""What one rank adds to a loss over rows: its texts against all videos, and its videos against all texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import Gathered, Group, deal
from ..tokens import Features
from .criterion import Criterion, Ids, PartialCriterion, pair
from .queue import FeatureQueue


class Candidates(NamedTuple):
    """What this rank's texts and videos are compared with: the items of all ranks, then those of the queues."""

    videos: Features
    texts: Features | None
    """None: they were not gathered, since there are no keys"""
    of_text: Tensor
    """[own texts, videos], True = a positive"""
    of_video: Tensor
    """[own videos, texts of all ranks and of the queue], True = a positive"""
    text_queue: Features | None
    numbers: tuple[int, int]
    """texts and videos of all ranks, without the queues"""


def candidates(
    batch: Gathered, ids: Ids | None, queues: tuple[FeatureQueue | None, FeatureQueue | None]
) -> Candidates:
    """Collect the candidates of this rank's texts and videos.

    Args:
        batch: videos of all ranks, and texts of all ranks where there are keys.
        ids: this rank's.
        queues: of texts, of videos.

    Raises:
        ValueError: ids for a queue alone or for the batch alone; a text or video without a positive.
    """
    video = batch.features["video"]
    own, text_ids, video_ids = _labels(batch, ids)
    text_queue, video_queue = (_queued(queue, ids is not None, video.device) for queue in queues)
    all_texts, all_videos = torch.cat([text_ids, text_queue.ids]), torch.cat([video_ids, video_queue.ids])
    if len(batch.ids) == 2:  # a single set of ids matches itself
        _check_positives("query", text_ids, all_videos)
        _check_positives("candidate", video_ids, all_texts)
    texts = batch.features.get("text")
    return Candidates(
        video_queue.after(video),
        None if texts is None else text_queue.after(texts),
        own[0][:, None] == all_videos,
        own[1][:, None] == all_texts,
        text_queue.features,
        (len(text_ids), len(video_ids)),
    )


def column_losses(
    criteria: Sequence[Criterion],
    scores: Tensor,
    queued: Tensor | None,
    against: Candidates,
    batch: Gathered,
    group: Group,
) -> list[Tensor]:
    """Compute each criterion's loss of each of this rank's videos, whose scores are on all ranks. Collective.

    Args:
        scores: [this rank's texts, videos of all ranks and of the queue].
        queued: [this rank's videos, queued texts]; None: there are none.
    """
    sizes, positives = batch.sizes["video"], against.of_video
    videos = against.numbers[1]
    here = scores[:, :videos].T, against.of_text[:, :videos].T
    scores = here[0]
    if not any(criterion.shares[1] for criterion in criteria):
        return [scores.new_zeros(1) for _ in criteria]
    in_parts = [criterion for criterion in criteria if isinstance(criterion, PartialCriterion)]
    if len(in_parts) == len(criteria):
        parts = [criterion.partial(*here) for criterion in in_parts]
        dealt = deal(torch.cat(parts, 1), sizes, group).split([part.shape[1] for part in parts], 2)
        if queued is not None:
            old = queued, positives[:, -queued.shape[1] :]
            dealt = [torch.cat([x, c.partial(*old)[None]]) for x, c in zip(dealt, in_parts, strict=True)]
        return [criterion.join(x) for criterion, x in zip(in_parts, dealt, strict=True)]
    numbers = batch.sizes.get("text", [scores.shape[1]])
    padded = F.pad(scores, (0, max(numbers) - scores.shape[1]))
    whole = [part[:, :number] for part, number in zip(deal(padded, sizes, group), numbers, strict=True)]
    whole = torch.cat(whole if queued is None else [*whole, queued], 1)
    return [criterion.rows(whole, positives) for criterion in criteria]


class _Queued(NamedTuple):
    """What a queue holds: features, None where it is empty, and their ids."""

    features: Features | None
    ids: Tensor

    def after(self, features: Features) -> Features:
        return features if self.features is None else Features.cat([features, self.features])


def _queued(queue: FeatureQueue | None, labelled: bool, device: torch.device) -> _Queued:
    """A queue's items and ids; without ids, one that no item of the batch has."""
    if queue is None or queue.features is None:
        return _Queued(None, torch.empty(0, dtype=torch.int64, device=device))
    if (queue.ids is not None) != labelled:
        raise ValueError(
            f"ids: expected them for both the batch and what was pushed to its queue, or for neither, "
            f"got them for {'the batch' if labelled else 'the queue'} alone"
        )
    ids = torch.full((len(queue),), -1) if queue.ids is None else queue.ids
    return _Queued(queue.features.to(device), ids.to(device))


def _labels(batch: Gathered, ids: Ids | None) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Ids of this rank's texts and videos, and of those of all ranks; without ids, their place in the whole batch."""
    videos = batch.features["video"]
    if ids is None:
        order = torch.arange(len(videos), device=videos.device)
        own = order[batch.own("video")]
        return (own, own), order, order
    text_ids, video_ids = (x.to(videos.device, torch.int64) for x in pair(ids))
    return (text_ids, video_ids), batch.ids[0], batch.ids[-1]


def _check_positives(name: str, rows: Tensor, columns: Tensor) -> None:
    """Every row of the whole batch has a positive: the same answer on all ranks."""
    lonely = ~torch.isin(rows, columns)
    if lonely.any():
        raise ValueError(f"ids: expected a positive for every {name}, got none for {name} {int(lonely.nonzero()[0])}")
