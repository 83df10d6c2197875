"""RetrievalLoss: features in, loss out, over one process or many.

    none     criterion(scorer(text, video))
    local    (texts of this rank x videos of all) one way, (texts of all x videos of this rank) the other way
    global   the whole matrix, on every rank

On R ranks the loss of rank r is R times its share of the loss L of the whole batch (`global`: L itself), so that the
mean over ranks is L. With the gather's summed gradient, what DDP, FSDP2, Fabric and accelerate leave after they average
gradients over ranks is the gradient of L: as if one process had the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..distributed import Gathered, Group, alone, gather, world
from ..grains import Grain
from ..scorer import MultiGrain
from ..tokens import Features
from .infonce import Ids
from .queue import FeatureQueue

GATHERS = ("auto", "local", "global", "none")


class RetrievalLoss(nn.Module):
    """criterion(scorer(text, video), ids), over the batches of all ranks.

    Args:
        scorer: Features x Features -> scores [texts, videos], such as MultiGrain.
        criterion: scores [texts, videos], ids -> scalar, such as InfoNCE. `local`, queues and keys need its form by
            direction, a method `one_way` like that of InfoNCE.
        gather: "none"; "local": each rank scores its rows and its columns; "global": all of the matrix; "auto": local
            (global for a criterion without `one_way`) where torch.distributed has more than one rank, else none.
            In a group of one rank all are the same. All ranks have to call, with the same grains, widths and dtypes,
            but batches and lengths may differ.
        group: the process group; None: the default one.
        exchange_dtype: of the features while they travel, such as torch.bfloat16; None: their own.

    The scorer and the criterion may learn: wrap this module, or one that holds it, as you wrap the towers, such as
    DistributedDataParallel(RetrievalLoss(...)), so that their gradients are averaged too.

    Raises:
        ValueError: an unknown gather.
        TypeError: local, queues or keys with a criterion that has no `one_way`.

    Example:
        >>> scorer = mg.MultiGrain(mg.Grain("sentence", "video"))
        >>> text, video = mg.Features(sentence=torch.randn(4, 8)), mg.Features(video=torch.randn(4, 8))
        >>> RetrievalLoss(scorer, mg.InfoNCE())(text, video).shape
        torch.Size([])
    """

    def __init__(
        self,
        scorer: nn.Module,
        criterion: nn.Module,
        gather: str = "auto",
        group: Group = None,
        exchange_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scorer, self.criterion = scorer, criterion
        self.gather = checks.choice("gather", gather, GATHERS)
        self.group, self.exchange_dtype = group, exchange_dtype
        if gather == "local":
            self._need_one_way('gather="local"')

    def forward(
        self,
        text: Features,
        video: Features,
        ids: Ids | None = None,
        keys: tuple[Features, Features] | None = None,
        text_queue: FeatureQueue | None = None,
        video_queue: FeatureQueue | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch of pairs: text i belongs to video i, or to those of the same id (see InfoNCE).

        Args:
            text, video: this rank's.
            ids: this rank's; None: the diagonal of the whole batch.
            keys: (text, video) of the same items by momentum encoders, the candidates in place of `text` and `video`;
                no gradient reaches them.
            text_queue, video_queue: more candidates for videos and for texts: negatives, or positives by id. Push to
                them after the call. With keys or queues, global works as local does.

        Raises:
            ValueError: features or ids that do not fit together; over several ranks, the same error on each.
        """
        text, video = _scored(self.scorer, text, video)
        candidates = (text, video) if keys is None else _scored(self.scorer, keys[0].detach(), keys[1].detach())
        queues = (text_queue, video_queue)
        ranks = 1 if self.gather == "none" else world(self.group)[1]
        extras = keys is not None or any(queue is not None for queue in queues)
        if extras:
            self._need_one_way("keys and queues")
        elif ranks == 1:
            return self.criterion(self.scorer(text, video), ids)
        sides = {"text": candidates[0], "video": candidates[1]}
        given = () if ids is None else ids if isinstance(ids, tuple) else (ids,)
        problem = _problem(text, video, candidates, ids)
        if ranks == 1:
            batch = alone(sides, given, problem)
        else:
            batch = gather(sides, given, self.group, self.exchange_dtype, problem)
        if not extras and (self.gather == "global" or not self._has_one_way):
            everyone = None if ids is None else batch.ids if isinstance(ids, tuple) else batch.ids[0]
            return self.criterion(self.scorer(batch.features["text"], batch.features["video"]), everyone)
        if keys is None:
            text, video = (batch.features[side][batch.own(side)] for side in sides)
        return ranks * self._share(text, video, batch, queues)

    def _share(
        self, text: Features, video: Features, batch: Gathered, queues: tuple[FeatureQueue | None, FeatureQueue | None]
    ) -> Tensor:
        """What this rank's texts and videos add to the loss of the whole batch."""
        text_ids, video_ids = (batch.ids[0], batch.ids[-1]) if batch.ids else (None, None)
        texts, text_column_ids = _with_queue(batch.features["text"], text_ids, queues[0])
        videos, video_column_ids = _with_queue(batch.features["video"], video_ids, queues[1])
        if len(batch.ids) == 2:  # a single set of ids matches itself
            _check_positives("query", text_ids, video_column_ids)
            _check_positives("candidate", video_ids, text_column_ids)
        by_text = self.scorer(text, videos), _positives(batch.own("text"), text_ids, video_column_ids, text.device)
        by_video = self.scorer(texts, video).T, _positives(batch.own("video"), video_ids, text_column_ids, text.device)
        one_way = cast("Callable[[Tensor, Tensor], Tensor]", self.criterion.one_way)
        return one_way(*by_text).sum() / batch.total("text") + one_way(*by_video).sum() / batch.total("video")

    @property
    def _has_one_way(self) -> bool:
        return callable(getattr(self.criterion, "one_way", None))

    def _need_one_way(self, what: str) -> None:
        if not self._has_one_way:
            raise TypeError(
                f"criterion: {what} needs its loss by direction, a method one_way(scores, positives) as that of "
                f"InfoNCE, which {type(self.criterion).__name__} lacks"
            )


def _scored(scorer: nn.Module, text: Features, video: Features) -> tuple[Features, Features]:
    """The grains that a MultiGrain reads: no other needs to travel."""
    if not isinstance(scorer, MultiGrain):
        return text, video
    grains = cast("list[Grain]", list(scorer.grains))
    return _only(text, {grain.query for grain in grains}), _only(video, {grain.candidate for grain in grains})


def _only(features: Features, names: set[str]) -> Features:
    """The grains of these names; those that are missing are the scorer's to miss."""
    kept = {name: features[name] for name in features.names if name in names}
    return Features(**kept) if kept else features


def _problem(text: Features, video: Features, candidates: tuple[Features, Features], ids: Ids | None) -> str | None:
    """What is wrong with this rank's sizes and ids, to be raised on every rank."""
    texts, videos = len(text), len(video)
    if (len(candidates[0]), len(candidates[1])) != (texts, videos):
        return f"keys: expected {texts} texts and {videos} videos, got {len(candidates[0])} and {len(candidates[1])}"
    if not isinstance(ids, tuple) and texts != videos:
        return f"expected as many videos as texts ({texts}; a pair of ids says otherwise which match), got {videos}"
    try:
        for name, side, length in zip(("texts", "videos"), _pair(ids), (texts, videos), strict=True):
            if side is not None:
                checks.labels(f"ids of the {name}", side, length)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _pair(ids: Ids | None) -> tuple[Tensor | None, Tensor | None]:
    return ids if isinstance(ids, tuple) else (ids, ids)


def _with_queue(features: Features, ids: Tensor | None, queue: FeatureQueue | None) -> tuple[Features, Tensor | None]:
    """Candidates and their ids, those of the batch before those of the queue."""
    if queue is None or queue.features is None:
        return features, ids
    if ids is None or queue.ids is None:
        if ids is not queue.ids:
            raise ValueError(
                f"ids: expected them for both the batch and what was pushed to its queue, or for neither, "
                f"got them for {'the queue' if ids is None else 'the batch'} alone"
            )
        return Features.cat([features, queue.features.to(features.device)]), None
    return Features.cat([features, queue.features.to(features.device)]), torch.cat([ids, queue.ids.to(ids.device)])


def _positives(own: slice, row_ids: Tensor | None, column_ids: Tensor | None, device: torch.device) -> Tensor:
    """For this rank's rows: the column of each, or with ids a bool matrix [rows, columns]."""
    if row_ids is None or column_ids is None:
        return torch.arange(own.start, own.stop, device=device)
    return row_ids[own, None] == column_ids


def _check_positives(name: str, rows: Tensor | None, columns: Tensor | None) -> None:
    """Every row of the whole batch has a positive: the same answer on all ranks."""
    if rows is None or columns is None:
        return
    lonely = ~torch.isin(rows, columns)
    if lonely.any():
        raise ValueError(f"ids: expected a positive for every {name}, got none for {name} {int(lonely.nonzero()[0])}")
