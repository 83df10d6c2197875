"""Evaluation of a model on pairs, and of features: retrieval metrics for each grain and for all together.

Where torch.distributed has several ranks, `evaluate` and `evaluate_features` are collective: each rank encodes its
share of the videos, whose features all ranks gather, and scores their texts against all videos; ranks are merged, never
matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks
from ..data.pairs import Pairs
from ..distributed import world
from ..distributed.collectives import all_gather_object, share
from ..metrics import RetrievalMetrics
from ..models.protocol import Encoder, check_encoder, device_of, evaluating, ranker_of
from ..scoring import ProgressCallback
from ..tokens import Features
from .encoding import encode_rows, encode_texts, first_rows, join_parts
from .scores import ALL, check_counts, check_diagonal, check_reranker, rank_matrices, reranks, score_matrices

TEXTS = 1024  # whose features are held at a time


@dataclass(frozen=True)
class Evaluation:
    """Scores of texts against videos, the video of each text, and the metrics by grain and for "all".

    Over several ranks, the texts are those of this rank, and the metrics those of all.

    Args:
        scores: by the name "all", [texts, videos]. Those of each grain are ranked and dropped: `scores_by_grain` has
            them.
        targets: the video of each text, [texts].
        texts, videos: the pair of each row and (its first one) of each column.
        metrics: by grain.
        broken: of each video that could not be read, its name and why; it and its texts are left out.
        hubness: the correction that made the scores and the metrics; see `corrected`.
        reverse: where it is not `scores`, what ranks the texts of each video, for "all", [texts, videos]: after a
            correction, or for a recipe with a scorer for each direction or with a reranker.
        reranked: a reranker made the scores for "all", of which only the order means something.
    """

    scores: dict[str, Float[Tensor, "t v"]]
    targets: Int[Tensor, "t"]
    texts: list[int]
    videos: list[int]
    metrics: dict[str, RetrievalMetrics]
    broken: tuple[str, ...] = ()
    hubness: str | None = None
    reverse: Float[Tensor, "t v"] | None = None
    reranked: bool = False

    def gathered(self) -> Evaluation:
        """Return the evaluation with the texts of all ranks, in their order. Collective.

        Ranks gather each other's matrices, so it is for small collections, such as those that a page shows.
        """
        back = self.scores[ALL] if self.reverse is None else self.reverse
        parts = all_gather_object((self.texts, self.targets, self.scores[ALL], back))
        texts = [row for part, *_ in parts for row in part]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        targets, scores, back = (torch.cat(found)[order] for found in list(zip(*parts, strict=True))[1:])
        reverse = None if self.reverse is None else back
        return replace(self, scores={ALL: scores}, targets=targets, texts=sorted(texts), reverse=reverse)


def evaluate(
    model: Encoder,
    pairs: Pairs,
    indices: Sequence[int] | None = None,
    max_frames: int = 12,
    protocol: str = "diagonal",
    batch_size: int = 100,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Encode and score pairs: texts against the distinct videos among them, which are those of distinct ids.

    Texts stream: their features are never held together, but for a recipe with a reranker. Until all are scored, the
    matrices of all grains are.

    Args:
        indices: which pairs; None = all.
        protocol: see multigrain.retrieval_metrics.
        workers: processes that read videos ahead; 0: none.
        progress: called with (videos and texts done, all of them).

    Raises:
        Unreadable: no video could be read.
        ValueError: pairs that the protocol is not for; a reranker over several ranks.
    """
    check_encoder(model)
    scorer = ranker_of(model)
    check_reranker(scorer)
    rows = list(range(len(pairs.sentences)) if indices is None else indices)
    ids: list[int] = pairs.ids[rows].tolist()
    order = first_rows(pairs, rows)
    total = len(order) + len(rows)
    check_counts(protocol, len(rows), len(order))

    def count(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    own = [order[i] for i in share(len(order))]
    encoded = all_gather_object(encode_rows(model, pairs, own, max_frames, batch_size, workers, count))
    video, kept, broken = join_parts(encoded)
    column = {int(pairs.ids[row]): i for i, row in enumerate(kept)}
    here = {int(pairs.ids[row]) for row in encoded[world()[0]][1]}
    rows = [row for row, i in zip(rows, ids, strict=True) if i in here]
    targets = torch.tensor([column[int(pairs.ids[row])] for row in rows], dtype=torch.long)
    scores: dict[str, Tensor] = {}
    step = len(rows) if reranks(scorer) else TEXTS
    for start in range(0, len(rows), step):
        text = encode_texts(model, [pairs.sentences[row] for row in rows[start : start + step]], batch_size)
        device = device_of(model)
        with evaluating(model):
            for name, matrix in score_matrices(scorer, text.to(device), video.to(device)):
                scores.setdefault(name, matrix.new_empty(len(rows), len(video)))[start : start + step] = matrix
        count(min(start + step, len(rows)) + total - len(rows), total)
    none = torch.empty(0, len(video))  # of a rank without a text
    names = next(filter(None, all_gather_object(list(scores))))
    found = ((name, scores.pop(name, none)) for name in names)
    ranked, reverse, metrics = rank_matrices(found, protocol, targets)
    return Evaluation(ranked, targets, rows, kept, metrics, broken, reverse=reverse, reranked=reranks(scorer))


def evaluate_features(
    text: Features,
    video: Features,
    scorer: nn.Module,
    targets: Int[Tensor, "t"] | None = None,
    protocol: str = "diagonal",
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluate features that are there already, like `evaluate`; two matrices [texts, videos] are held at a time.

    Args:
        scorer: such as MultiGrain; or a Recipe, for features that its heads made.
        targets: the video of each text; None: text i's is video i.
        progress: called with (grains done, grains in all).

    Raises:
        KeyError, ValueError: features that the scorer is not for, or targets and a protocol that do not fit them;
            a reranker over several ranks.
    """
    check_reranker(scorer)
    _check_targets(targets, len(text), len(video), protocol)
    targets = torch.arange(len(text)) if targets is None else targets
    rows, videos = list(range(len(text))), list(range(len(video)))
    if world()[1] > 1:
        own = share(len(video))
        rows = [row for row, target in enumerate(targets.tolist()) if target in own]
        text, targets = text[rows], targets[rows]
    found = score_matrices(scorer, text, video, progress)
    scores, reverse, metrics = rank_matrices(found, protocol, targets)
    return Evaluation(scores, targets, rows, videos, metrics, reverse=reverse, reranked=reranks(scorer))


def scores_by_grain(
    model: Encoder, text: Features, video: Features, progress: ProgressCallback | None = None
) -> dict[str, Float[Tensor, "texts videos"]]:
    """Compute the score matrix of each grain by its name, and of their weighted sum by the name "all".

    A recipe gives the scores that rank the videos of a text; its reranker has no part in them.

    Args:
        progress: called with (grains done, grains in all).
    """
    device = device_of(model)
    return dict(score_matrices(model.scorer, text.to(device), video.to(device), progress))


def _check_targets(targets: Tensor | None, texts: int, videos: int, protocol: str) -> None:
    """Check the targets of all texts before ranks take their shares, so that every rank raises the same error."""
    check_counts(protocol, texts, videos)
    if targets is not None:
        checks.labels("targets", targets, texts)
        checks.indices("targets", targets, videos)
        if protocol == "diagonal":
            check_diagonal(targets)
    elif protocol != "diagonal":
        raise ValueError(f"targets: expected the video of each text under the protocol {protocol!r}, got None")
