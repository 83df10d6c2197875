"""The candidates of one rank's texts and videos in a loss over rows: those of all ranks, keys and queues included."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import Gathered
from ..tokens import Features
from .criterion import Ids, split_ids
from .queue import FeatureQueue


class Candidates(NamedTuple):
    """The items that this rank's texts and videos are compared with: those of all ranks, then those of the queues.

    Attributes:
        videos: the candidates of texts.
        texts: the candidates of videos where there are keys; otherwise texts are not gathered, and this is None.
        of_text: [own texts, videos], True = a positive.
        of_video: [own videos, texts of all ranks and of the queue], True = a positive.
        text_queue: the texts of the queue; None where it is empty.
        numbers: of the texts and of the videos of all ranks, without the queues.
    """

    videos: Features
    texts: Features | None
    of_text: Tensor
    of_video: Tensor
    text_queue: Features | None
    numbers: tuple[int, int]


def collect_candidates(
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
    video, texts = batch.features["video"], batch.features.get("text")
    if ids is None:  # an item's id is its place in the whole batch
        text_ids = video_ids = torch.arange(len(video), device=video.device)
        own_text_ids = own_video_ids = text_ids[batch.own("video")]
    else:
        text_ids, video_ids = batch.ids[0], batch.ids[-1]
        own_text_ids, own_video_ids = (x.to(video.device, torch.int64) for x in split_ids(ids))
    (text_queue, old_text_ids), (video_queue, old_video_ids) = (
        _read_queue(queue, ids is not None, video.device) for queue in queues
    )
    all_text_ids, all_video_ids = torch.cat([text_ids, old_text_ids]), torch.cat([video_ids, old_video_ids])
    if len(batch.ids) == 2:  # a single set of ids matches itself
        _check_positives("query", text_ids, all_video_ids)
        _check_positives("candidate", video_ids, all_text_ids)
    return Candidates(
        video if video_queue is None else Features.cat([video, video_queue]),
        texts if texts is None or text_queue is None else Features.cat([texts, text_queue]),
        own_text_ids[:, None] == all_video_ids,
        own_video_ids[:, None] == all_text_ids,
        text_queue,
        (len(text_ids), len(video_ids)),
    )


def _read_queue(queue: FeatureQueue | None, labelled: bool, device: torch.device) -> tuple[Features | None, Tensor]:
    """Return a queue's items and their ids: None where it is empty; -1, which no item of the batch has, without ids."""
    if queue is None or queue.features is None:
        return None, torch.empty(0, dtype=torch.int64, device=device)
    if (queue.ids is not None) != labelled:
        raise ValueError(
            f"ids: expected them for both the batch and what was pushed to its queue, or for neither, "
            f"got them for {'the batch' if labelled else 'the queue'} alone"
        )
    ids = torch.full((len(queue),), -1) if queue.ids is None else queue.ids
    return queue.features.to(device), ids.to(device)


def _check_positives(name: str, rows: Tensor, columns: Tensor) -> None:
    """Raise, on all ranks alike, where a row of the whole batch has no positive."""
    lonely = ~torch.isin(rows, columns)
    if lonely.any():
        raise ValueError(f"ids: expected a positive for every {name}, got none for {name} {int(lonely.nonzero()[0])}")
