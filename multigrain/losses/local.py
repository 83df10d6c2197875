"""The losses of one rank's rows: its texts against all videos, and its videos against all texts.

A rank scores its own texts with the videos of all ranks, so that each text's row is complete there. The column of a
video lies in pieces on all ranks: each sends the piece, or the few numbers that say all about it, to the rank of the
video. With keys, texts are gathered too, and the columns of a rank's videos are rows of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import Gathered, Group, all_to_all
from .candidates import Candidates
from .criterion import Criterion, PartialCriterion
from .infonce import InfoNCE


def row_losses(
    criteria: Sequence[Criterion],
    scores: Tensor,
    positives: Tensor,
    momentum: Tensor | None = None,
    share: float = 0.0,
) -> list[Tensor]:
    """Compute each criterion's loss of each row of scores [q, c].

    Args:
        momentum: scores of the same pairs by momentum encoders, for momentum distillation.
        share: of the targets that `momentum` makes; the positives make the rest.

    Raises:
        TypeError: distillation with another criterion than InfoNCE.
    """
    if momentum is None:
        return [criterion.rows(scores, positives) for criterion in criteria]
    losses: list[Tensor] = []
    for criterion in criteria:
        if not isinstance(criterion, InfoNCE):
            raise TypeError(f"criterion: for distillation, expected InfoNCE, got {type(criterion).__name__}")
        losses.append(criterion.rows(scores, criterion.distilled(momentum, positives, share)))
    return losses


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
    if not any(criterion.shares[1] for criterion in criteria):
        return [scores.new_zeros(1) for _ in criteria]
    sizes, videos = batch.sizes["video"], against.numbers[1]
    scores, positives = scores[:, :videos].T, against.of_text[:, :videos].T
    partial = [criterion for criterion in criteria if isinstance(criterion, PartialCriterion)]
    if len(partial) == len(criteria):
        parts = [criterion.partial(scores, positives) for criterion in partial]
        owned = all_to_all(torch.cat(parts, 1), sizes, group).split([part.shape[1] for part in parts], 2)
        if queued is not None:
            of_queue = against.of_video[:, -queued.shape[1] :]
            owned = [torch.cat([x, c.partial(queued, of_queue)[None]]) for x, c in zip(owned, partial, strict=True)]
        return [criterion.join(x) for criterion, x in zip(partial, owned, strict=True)]
    texts = batch.sizes.get("text", [scores.shape[1]])
    padded = F.pad(scores, (0, max(texts) - scores.shape[1]))
    pieces = [piece[:, :number] for piece, number in zip(all_to_all(padded, sizes, group), texts, strict=True)]
    scores = torch.cat(pieces if queued is None else [*pieces, queued], 1)
    return row_losses(criteria, scores, against.of_video)
