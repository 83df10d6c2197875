"""RetrievalLoss: features in, loss out, over one process or many.

    none     criterion(scorer(text, video))
    local    scorer(texts of this rank, videos of all): every pair is scored on one rank alone
    global   scorer(texts of all, videos of all), on every rank

Local needs the videos of all ranks, and no texts: a row of scores is complete on its rank. A column lacks the rows of
other ranks: these send its scores there, or for InfoNCE and Sigmoid a few numbers each (`PartialCriterion`).

On R ranks the loss of rank r is R times its share of the loss L of the whole batch (`global`: L itself), so that the
mean over ranks is L. With the gather's summed gradient, what DDP, FSDP2, Fabric and accelerate leave after they average
gradients over ranks is the gradient of L: as if one process had the whole batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..aggregators import Aggregator
from ..distributed import Group, gather, single_rank, world
from ..tokens import Features
from .base import Loss
from .batch import find_problem, grains_read, id_sets, select_read, text_and_video, whole_batch
from .candidates import collect_candidates
from .criterion import Criterion, Ids
from .local import column_losses, row_losses
from .queue import FeatureQueue

GATHERS = ("auto", "local", "global", "none")


class RetrievalLoss(Loss):
    """criterion(scorer(text, video), ids), over the batches of all ranks.

    Its `terms` are those of a criterion that is a sum; their means over the ranks are those of the whole batch.

    Args:
        scorer: Features x Features -> scores [texts, videos], such as MultiGrain.
        criterion: scores [texts, videos], ids -> scalar, such as InfoNCE or a sum of such. `local`, queues and keys
            need a Criterion, which is a mean over rows, or a sum of them.
        gather: "none"; "local": each rank scores its texts with all videos; "global": all texts with all videos;
            "auto": local (global for a criterion that is no Criterion) where torch.distributed has more than one rank,
            else none. In a group of one rank all are the same. All ranks have to call, with the same grains, widths and
            dtypes, but batches and lengths may differ.
        group: the process group; None: the default one.
        exchange_dtype: of the features while they travel, such as torch.bfloat16; None: their own.
        distillation: alpha from 0 to 1, for InfoNCE with keys: the share of the targets that is the softmax of the
            scores of keys with keys; the rest is the positives' (ALBEF's momentum distillation, alpha
            .4: Li et al. 2021, arXiv 2107.07651). An attribute that may be changed between steps.

    The scorer and the criterion may learn: wrap this module, or one that holds it, as you wrap the towers, such as
    DistributedDataParallel(RetrievalLoss(...)), so that their gradients are averaged too.

    Raises:
        ValueError: an unknown gather, or distillation out of range or without keys.
        TypeError: a scorer or criterion that is none; local, queues or keys with a criterion that is no Criterion;
            distillation with another than InfoNCE.

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
        distillation: float = 0.0,
    ) -> None:
        super().__init__()
        checks.number("distillation", distillation, 0, 1)
        self.scorer, self.criterion = checks.scorer("scorer", scorer, but=Loss), _check_criterion(criterion)
        self.gather = checks.choice("gather", gather, GATHERS)
        self.group, self.exchange_dtype, self.distillation = group, exchange_dtype, distillation
        self._found: dict[str, Tensor] = {}
        if gather == "local":
            _criteria(criterion, 'gather="local"')

    def forward(
        self,
        text: Features,
        video: Features,
        ids: Ids | None = None,
        keys: tuple[Features, Features] | None = None,
        text_queue: FeatureQueue | None = None,
        video_queue: FeatureQueue | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch of pairs: text i belongs to video i, or to those of the same id (see InfoNCE).

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
        if self.distillation and keys is None:
            raise ValueError(
                f"keys: expected (text, video) of momentum encoders, whose scores make {self.distillation:g} of the "
                "targets (distillation), got None; where there are none, pass (text.detach(), video.detach())"
            )
        checks.instances(Features, text=text, video=video)
        text, video = select_read(grains_read(self.scorer), text, video)
        ranks = 1 if self.gather == "none" else world(self.group)[1]
        more = any(given is not None for given in (keys, text_queue, video_queue))
        if more or (ranks > 1 and self.gather != "global" and _has_rows(self.criterion)):
            return self._over_rows(ranks, text, video, ids, keys, (text_queue, video_queue))
        if ranks > 1:
            text, video, ids = whole_batch(text, video, ids, self.group, self.exchange_dtype)
        loss = self.criterion(self.scorer(text, video), ids)
        self._found = self.criterion.terms if isinstance(self.criterion, Loss) else {}
        return loss

    def _over_rows(
        self,
        ranks: int,
        text: Features,
        video: Features,
        ids: Ids | None,
        keys: tuple[Features, Features] | None,
        queues: tuple[FeatureQueue | None, FeatureQueue | None],
    ) -> Tensor:
        """Compute this rank's share of the loss of the whole batch, times the number of ranks."""
        terms = _criteria(self.criterion, "keys and queues")
        criteria = [criterion for _, _, criterion in terms]
        for name, queue in zip(("text_queue", "video_queue"), queues, strict=True):
            if queue is not None:
                checks.instance(name, queue, FeatureQueue)
        sent, kept = {"video": video}, {"text": text}
        if keys is not None:
            keys = select_read(grains_read(self.scorer), *(x.detach() for x in text_and_video("keys", keys)))
            sent, kept = {"text": keys[0], "video": keys[1]}, {"online text": text, "online video": video}
        problem = find_problem(text, video, ids, keys)
        if self.gather == "none":
            batch = single_rank(sent, id_sets(ids), problem)
        else:
            batch = gather(sent, id_sets(ids), self.group, self.exchange_dtype, problem, kept)
        against = collect_candidates(batch, ids, queues)

        scores = self.scorer(text, against.videos)
        if ranks == 1:  # an error on one rank of several would leave the others waiting
            checks.contrasted(scores, against.of_text)
        if keys is None:
            rows = row_losses(criteria, scores, against.of_text)
            queue, own_videos = against.text_queue, batch.features["video"][batch.own("video")]
            queued = None if queue is None else self.scorer(queue, own_videos).T
            columns = column_losses(criteria, scores, queued, against, batch, self.group)
        else:
            share = self.distillation
            with torch.no_grad():
                momentum = self.scorer(keys[0], against.videos) if share else None
            rows = row_losses(criteria, scores, against.of_text, momentum, share)
            scores = self.scorer(against.texts, video).T
            with torch.no_grad():
                momentum = self.scorer(against.texts, keys[1]).T if share else None
            columns = row_losses(criteria, scores, against.of_video, momentum, share)

        values: list[Tensor] = []
        for (_, weight, criterion), row, column in zip(terms, rows, columns, strict=True):
            by_query, by_candidate = criterion.shares
            value = by_query * row.sum() / against.numbers[0] + by_candidate * column.sum() / against.numbers[1]
            values.append(ranks * weight * value)
        self._found = {name: value.detach() for (name, _, _), value in zip(terms, values, strict=True)}
        if isinstance(self.criterion, Loss):
            self.criterion.terms = self._found  # nobody called the criterion itself
        return torch.stack(values).sum()

    def _terms_of(self, loss: Tensor) -> dict[str, Tensor]:
        return self._found if len(self._found) > 1 else super()._terms_of(loss)


def _check_criterion(value: nn.Module) -> nn.Module:
    """Return a loss of scores, or raise: the name of its first argument tells it from a loss of embeddings."""
    for _, _, loss in _summands(value):
        reads = checks.reads(loss)
        if isinstance(loss, Aggregator) or not checks.takes(loss, 2) or reads in (None, "embeddings", "text", "query"):
            what = "" if reads is None else f", which reads {reads}"
            hint = "; wrap it in multigrain.interop's MetricCriterion" if reads == "embeddings" else ""
            raise TypeError(
                f"criterion: expected a loss of scores, such as InfoNCE(), got {checks.named(loss)}{what}{hint}"
            )
    return value


def _summands(criterion: nn.Module) -> list[tuple[str, float, nn.Module]]:
    """Name, weight and loss of each term of a criterion."""
    if isinstance(criterion, Loss):
        return [(term.name, term.weight, term.loss) for term in criterion.summands()]
    return [(type(criterion).__name__, 1.0, criterion)]


def _has_rows(criterion: nn.Module) -> bool:
    """Tell whether each term is a Criterion, which can be computed row by row."""
    return all(isinstance(loss, Criterion) for _, _, loss in _summands(criterion))


def _criteria(criterion: nn.Module, what: str) -> list[tuple[str, float, Criterion]]:
    """Name, weight and loss of each term, each a Criterion; an error says `what` needs one."""
    terms: list[tuple[str, float, Criterion]] = []
    for name, weight, loss in _summands(criterion):
        if not isinstance(loss, Criterion):
            raise TypeError(
                f"criterion: for {what}, expected a Criterion (a mean over rows: see its method `rows`) or a sum "
                f"of them, got {type(loss).__name__}"
            )
        terms.append((name, weight, loss))
    return terms
