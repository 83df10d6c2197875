"""pytorch-metric-learning: its losses, miners and metrics over scores, and our criteria among its losses.

    MetricCriterion(loss, miner)   its loss as a criterion of scores, for RetrievalLoss
    CriterionLoss(criterion)       our criterion as one of its losses
    ScoreDistance()                scores [q, c] in place of embeddings, their transpose in place of references
    FeatureDistance(scorer, ...)   features packed into embeddings, for what keeps these (CrossBatchMemory)

Needs the extra `metric`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..aggregators.base import DIRECTIONS
from ..losses import InfoNCE, Loss
from ..losses.criterion import Ids, ids_of_scores
from ..tokens import Features, Tokens

try:
    import pytorch_metric_learning as _partner
    from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
    from pytorch_metric_learning.losses import BaseMetricLossFunction, ContrastiveLoss
except ImportError as error:
    if (error.name or "").split(".")[0] != "pytorch_metric_learning":
        raise
    raise ImportError(
        'pytorch-metric-learning is missing, expected version 2.8 or newer: pip install "multigrain[metric]"'
    ) from error

if tuple(int(part) for part in _partner.__version__.split(".")[:2]) < (2, 8):
    raise ImportError(
        f"pytorch-metric-learning: expected version 2.8 or newer, got {_partner.__version__}: "
        'pip install --upgrade "multigrain[metric]"'
    )

# grain -> (most tokens, width)
Sizes: TypeAlias = "Mapping[str, tuple[int, int]]"


class ScoreDistance(CosineSimilarity):
    """Scores as a similarity: `loss(scores, labels, ref_emb=scores.T, ref_labels=ref_labels)`.

    `ref_labels` must not be the object `labels`: the package takes pairs (i, i) for one item then, and drops them.
    A subclass of CosineSimilarity, since Circle, TCM, TupletMargin and others want one. Losses that use embeddings in
    another way (regularizers, VICReg, proxies, `swap=True`) mean nothing here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalize_embeddings = False

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Return the scores; a copy, since miners write into it."""
        if query_emb is ref_emb or query_emb.shape[1] != len(ref_emb):
            raise ValueError(
                f"ref_emb: expected the transpose of the scores {checks.shape(query_emb)}, got "
                f"{'nothing' if query_emb is ref_emb else checks.shape(ref_emb)}"
            )
        return query_emb.clone()

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Raise: there is no distance of two embeddings."""
        raise NotImplementedError("ScoreDistance knows scores of all pairs, not of two embeddings")


class MetricCriterion(Loss):
    """A loss of the package as a criterion: scores, ids -> scalar, such as RetrievalLoss takes (not its `local`).

    It adds up with criteria of ours: `MetricCriterion(loss) + 0.5 * InfoNCE()`.

    The mean of both directions: queries as anchors, and candidates. With NTXentLoss and one positive for each, or
    SupConLoss, it is InfoNCE, at a higher cost: NTXentLoss takes memory of the third power of the batch.

    Args:
        loss: with `distance=ScoreDistance()`.
        miner: with the same; finds its pairs or triplets anew for each direction.
        direction: "both", "query" or "candidate".

    Raises:
        TypeError: a loss or miner that is no module.
        ValueError: a loss or miner with another distance, a ContrastiveLoss with the margins of one, an unknown
            direction.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None, direction: str = "both") -> None:
        super().__init__()
        self.loss, self.miner = loss, miner
        self.direction = checks.choice("direction", direction, DIRECTIONS)
        for name, part in (("loss", loss), ("miner", miner)):
            for module in [] if part is None else checks.instance(name, part, nn.Module).modules():
                if isinstance(module, BaseDistance) and not isinstance(module, ScoreDistance):
                    raise ValueError(f"{name}: expected distance=ScoreDistance(), got {type(module).__name__}")
                # Of a similarity the margins are the other way round; the defaults leave almost every pair alone.
                if isinstance(module, ContrastiveLoss) and module.pos_margin < module.neg_margin:
                    raise ValueError(
                        f"{name}: expected a pos_margin above neg_margin, as ContrastiveLoss(pos_margin=1, "
                        f"neg_margin=0, ...), since scores are similarities, got {module.pos_margin} and "
                        f"{module.neg_margin}"
                    )

    def forward(self, scores: Float[Tensor, "q c"], ids: Ids | None = None) -> Float[Tensor, ""]:
        """Compute the loss, a scalar.

        Args:
            ids: as in InfoNCE.

        Raises:
            ValueError: scores or ids of the wrong shape.
        """
        queries, candidates = ids_of_scores(scores, ids)
        losses: list[Tensor] = []
        if self.direction != "candidate":
            losses.append(self._one_way(scores, queries, candidates))
        if self.direction != "query":
            losses.append(self._one_way(scores.T, candidates, queries))
        return torch.stack(losses).mean()

    def _one_way(self, scores: Tensor, labels: Tensor, ref_labels: Tensor) -> Tensor:
        ref_labels = ref_labels.clone()  # an object of its own: see ScoreDistance
        mined = None if self.miner is None else self.miner(scores, labels, scores.T, ref_labels)
        return self.loss(scores, labels, mined, scores.T, ref_labels)


class CriterionLoss(BaseMetricLossFunction):
    """A criterion of ours as a loss of the package: `loss(embeddings, labels, ref_emb=..., ref_labels=...)`.

    Not inside the package's wrappers. MultipleLosses passes no references: criteria add up instead (see
    MetricCriterion). CrossBatchMemory and SelfSupervisedLoss refuse losses whose class they do not list, and a memory
    holds references without a positive in the batch, which criteria refuse: FeatureQueue is that memory here.

    Args:
        criterion: scores, (labels, ref_labels) -> scalar; None: InfoNCE().
        distance: of the package; None: CosineSimilarity. The scores are the similarities, or minus the distances.
    """

    def __init__(self, criterion: nn.Module | None = None, distance: BaseDistance | None = None) -> None:
        super().__init__(distance=distance)
        self.criterion = InfoNCE() if criterion is None else criterion

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        """Return the loss as the package's reducers take it.

        Raises:
            ValueError: no references, no labels, or the pairs of a miner.
        """
        if ref_emb is embeddings or labels is None or ref_labels is None:
            raise ValueError("CriterionLoss: expected labels, ref_emb and ref_labels: one modality against another")
        if indices_tuple is not None:
            raise ValueError("indices_tuple: expected None, since a criterion takes all pairs")
        matrix = self.distance(embeddings, ref_emb)
        loss = self.criterion(matrix if self.distance.is_inverted else -matrix, (labels, ref_labels))
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def get_default_distance(self) -> Any:
        """The distance where none is given."""
        return CosineSimilarity()


class FeatureDistance(CosineSimilarity):
    """A scorer as a similarity of packed features: `loss(d.pack_queries(text), ..., ref_emb=d.pack_candidates(video))`.

    An embedding holds all grains of an item, normalised, and their masks, so that what stores or gathers embeddings
    stores and gathers features.

    Args:
        scorer: Features x Features -> scores.
        query, candidate: the grains to pack, name -> (most tokens, width).
        reverse: the embeddings are candidates, and the references queries.

    Example:
        >>> distance = FeatureDistance(scorer, {"sentence": (1, 512)}, {"frame": (12, 512)})
        >>> memory = CrossBatchMemory(NTXentLoss(distance=distance), distance.embedding_size, memory_size=4096)
    """

    def __init__(self, scorer: nn.Module, query: Sizes, candidate: Sizes, reverse: bool = False) -> None:
        super().__init__()
        self.normalize_embeddings = False
        self.scorer, self.reverse = scorer, reverse
        self.query, self.candidate = dict(query), dict(candidate)
        # One width for both, so that CrossBatchMemory can hold them in one tensor.
        self.embedding_size = max(_width(self.query), _width(self.candidate))

    def pack_queries(self, features: Features) -> Float[Tensor, "q e"]:
        """Pack queries into embeddings."""
        return _pack(features, self.query, self.embedding_size)

    def pack_candidates(self, features: Features) -> Float[Tensor, "c e"]:
        """Pack candidates into embeddings."""
        return _pack(features, self.candidate, self.embedding_size)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Score packed features.

        Raises:
            ValueError: no references where queries and candidates are packed differently.
        """
        if query_emb is ref_emb and self.query != self.candidate:
            raise ValueError("ref_emb: expected packed features of the other side, got nothing")
        if self.reverse:
            return self.scorer(_unpack(ref_emb, self.query), _unpack(query_emb, self.candidate)).T
        return self.scorer(_unpack(query_emb, self.query), _unpack(ref_emb, self.candidate))

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Score pairs of packed features."""
        return torch.cat([self.compute_mat(q, c)[0] for q, c in zip(query_emb.split(1), ref_emb.split(1), strict=True)])


def _width(sizes: Sizes) -> int:
    return sum(length * (dim + 1) for length, dim in sizes.values())


def _pack(features: Features, sizes: Sizes, width: int) -> Tensor:
    """Pack features [B, width]: for each grain its tokens and then their mask, padded to its size."""
    parts: list[Tensor] = []
    for name, (length, dim) in sizes.items():
        tokens = features[name].normalized()
        if tokens.dim != dim or tokens.length > length:
            raise ValueError(f"{name}: expected at most {length} tokens of width {dim}, got {features[name]!r}")
        x, missing = tokens.features, length - tokens.length
        mask = x.new_ones(x.shape[:2]) if tokens.mask is None else tokens.mask.to(x.dtype)
        parts += [F.pad(x, (0, 0, 0, missing)).flatten(1), F.pad(mask, (0, missing))]
    row = torch.cat(parts, 1)
    return F.pad(row, (0, width - row.shape[1]))


def _unpack(rows: Tensor, sizes: Sizes) -> Features:
    grains: dict[str, Tokens] = {}
    for name, (length, dim) in sizes.items():
        x, mask, rows = rows.tensor_split((length * dim, length * (dim + 1)), 1)
        grains[name] = Tokens(x.unflatten(1, (length, dim)), mask > 0, unit=True)
    return Features(**grains)
