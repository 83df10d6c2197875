"""RetrievalLoss: features in, loss out, over one process or many.

    none     criterion(scorer(text, video))
    local    scorer(texts of this rank, videos of all): every pair is scored on one rank alone
    global   scorer(texts of all, videos of all), on every rank

Local needs the videos of all ranks, and no texts: a row of scores is whole on its rank, and what a column needs of the
rows elsewhere are six numbers of each rank (`InfoNCE.partial`).

On R ranks the loss of rank r is R times its share of the loss L of the whole batch (`global`: L itself), so that the
mean over ranks is L. With the gather's summed gradient, what DDP, FSDP2, Fabric and accelerate leave after they average
gradients over ranks is the gradient of L: as if one process had the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..distributed import Gathered, Group, alone, deal, gather, world
from ..grains import Grain
from ..scorer import MultiGrain
from ..tokens import Features
from .infonce import Ids
from .queue import FeatureQueue

GATHERS = ("auto", "local", "global", "none")


class _InParts(Protocol):
    """A criterion that can be computed from parts of its rows: see `InfoNCE`."""

    def partial(self, scores: Tensor, positives: Tensor) -> Tensor: ...
    def join(self, parts: Tensor) -> Tensor: ...


class RetrievalLoss(nn.Module):
    """criterion(scorer(text, video), ids), over the batches of all ranks.

    Args:
        scorer: Features x Features -> scores [texts, videos], such as MultiGrain.
        criterion: scores [texts, videos], ids -> scalar, such as InfoNCE. `local`, queues and keys need it in parts:
            methods `partial` and `join` as those of InfoNCE.
        gather: "none"; "local": each rank scores its texts with all videos; "global": all texts with all videos;
            "auto": local (global for a criterion without parts) where torch.distributed has more than one rank, else
            none. In a group of one rank all are the same. All ranks have to call, with the same grains, widths and
            dtypes, but batches and lengths may differ.
        group: the process group; None: the default one.
        exchange_dtype: of the features while they travel, such as torch.bfloat16; None: their own.

    The scorer and the criterion may learn: wrap this module, or one that holds it, as you wrap the towers, such as
    DistributedDataParallel(RetrievalLoss(...)), so that their gradients are averaged too.

    Raises:
        ValueError: an unknown gather.
        TypeError: local, queues or keys with a criterion that has no parts.

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
            self._need_parts('gather="local"')

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
        ranks = 1 if self.gather == "none" else world(self.group)[1]
        extras = keys is not None or text_queue is not None or video_queue is not None
        if extras:
            self._need_parts("keys and queues")
        elif ranks == 1:
            return self.criterion(self.scorer(text, video), ids)
        elif self.gather == "global" or not self._has_parts:
            batch = self._gather({"text": text, "video": video}, ids, _problem(text, video, keys, ids))
            everyone = (batch.ids if isinstance(ids, tuple) else batch.ids[0]) if batch.ids else None
            return self.criterion(self.scorer(batch.features["text"], batch.features["video"]), everyone)
        return ranks * self._share(text, video, ids, keys, (text_queue, video_queue))

    def _gather(
        self, sides: dict[str, Features], ids: Ids | None, problem: str | None, kept: dict[str, Features] | None = None
    ) -> Gathered:
        given = () if ids is None else ids if isinstance(ids, tuple) else (ids,)
        if self.gather == "none":
            return alone(sides, given, problem)
        return gather(sides, given, self.group, self.exchange_dtype, problem, kept)

    def _share(
        self,
        text: Features,
        video: Features,
        ids: Ids | None,
        keys: tuple[Features, Features] | None,
        queues: tuple[FeatureQueue | None, FeatureQueue | None],
    ) -> Tensor:
        """What this rank's texts and videos add to the loss of the whole batch."""
        kept, sides = {"text": text}, {"video": video}
        if keys is not None:
            kept = {"online text": text, "online video": video}
            text_keys, video_keys = _scored(self.scorer, keys[0].detach(), keys[1].detach())
            sides = {"text": text_keys, "video": video_keys}
        batch = self._gather(sides, ids, _problem(text, video, keys, ids), kept)
        own, text_ids, video_ids = _labels(batch, ids)
        text_queue, video_queue = (_queued(queue, ids is not None, text.device) for queue in queues)
        if len(batch.ids) == 2:  # a single set of ids matches itself
            _check_positives("query", text_ids, torch.cat([video_ids, video_queue.ids]))
            _check_positives("candidate", video_ids, torch.cat([text_ids, text_queue.ids]))

        criterion = cast("_InParts", self.criterion)
        scores = self.scorer(text, video_queue.after(batch.features["video"]))
        rows = criterion.partial(scores, own[0][:, None] == torch.cat([video_ids, video_queue.ids]))[None]
        if keys is None:
            columns = criterion.partial(scores[:, : len(video_ids)].T, video_ids[:, None] == own[0])
            columns = deal(columns, batch.sizes["video"], self.group)
            if text_queue.features is not None:
                scores = self.scorer(text_queue.features, batch.features["video"][batch.own("video")])
                queued = criterion.partial(scores.T, own[1][:, None] == text_queue.ids)
                columns = torch.cat([columns, queued[None]])
        else:
            scores = self.scorer(text_queue.after(batch.features["text"]), video)
            columns = criterion.partial(scores.T, own[1][:, None] == torch.cat([text_ids, text_queue.ids]))[None]
        return criterion.join(rows).sum() / len(text_ids) + criterion.join(columns).sum() / len(video_ids)

    @property
    def _has_parts(self) -> bool:
        return all(callable(getattr(self.criterion, name, None)) for name in ("partial", "join"))

    def _need_parts(self, what: str) -> None:
        if not self._has_parts:
            raise TypeError(
                f"criterion: for {what}, expected one that can be computed in parts (methods partial and join, as "
                f"those of InfoNCE), got {type(self.criterion).__name__}"
            )


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
    text_ids, video_ids = (x.to(videos.device, torch.int64) for x in _pair(ids))
    return (text_ids, video_ids), batch.ids[0], batch.ids[-1]


def _pair(ids: Ids) -> tuple[Tensor, Tensor]:
    return ids if isinstance(ids, tuple) else (ids, ids)


def _problem(text: Features, video: Features, keys: tuple[Features, Features] | None, ids: Ids | None) -> str | None:
    """What is wrong with this rank's sizes and ids, to be raised on every rank."""
    texts, videos = len(text), len(video)
    if keys is not None and (len(keys[0]), len(keys[1])) != (texts, videos):
        return f"keys: expected {texts} texts and {videos} videos, got {len(keys[0])} and {len(keys[1])}"
    if not isinstance(ids, tuple) and texts != videos:
        return f"expected as many videos as texts ({texts}; a pair of ids says otherwise which match), got {videos}"
    try:
        for name, side, length in zip(
            ("texts", "videos"), _pair(ids) if ids is not None else (), (texts, videos), strict=False
        ):
            checks.labels(f"ids of the {name}", side, length)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _scored(scorer: nn.Module, text: Features, video: Features) -> tuple[Features, Features]:
    """The grains that a MultiGrain reads: no other needs to travel."""
    if not isinstance(scorer, MultiGrain):
        return text, video
    grains = cast("list[Grain]", list(scorer.grains))
    reads = [grain.reads for grain in grains]
    return _only(text, {name for r in reads for name in r[0]}), _only(video, {name for r in reads for name in r[1]})


def _only(features: Features, names: set[str]) -> Features:
    """The grains of these names; those that are missing are the scorer's to miss."""
    kept = {name: features[name] for name in features.names if name in names}
    return Features(**kept) if kept else features


def _check_positives(name: str, rows: Tensor, columns: Tensor) -> None:
    """Every row of the whole batch has a positive: the same answer on all ranks."""
    lonely = ~torch.isin(rows, columns)
    if lonely.any():
        raise ValueError(f"ids: expected a positive for every {name}, got none for {name} {int(lonely.nonzero()[0])}")
