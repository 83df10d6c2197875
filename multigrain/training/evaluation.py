"""From a model and pairs to retrieval metrics, for each grain and for all together.

Where torch.distributed has several ranks, `evaluate` and `evaluate_features` are collective: each rank encodes its
share of the videos, whose features are exchanged, and scores their texts against all videos; ranks are merged, never
matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks
from ..distributed import world
from ..hubness import TRANSDUCTIVE
from ..metrics import RetrievalMetrics, retrieval_metrics
from ..models import XCLIP
from ..models.evaluating import evaluating
from ..recipes import Recipe
from ..scorer import MultiGrain, grains_of
from ..scoring import score_matrix
from ..tokens import Features
from . import parallel
from .config import ClipsConfig, TrainConfig
from .data import Pairs
from .encoding import Count, encode_texts, encode_videos, first_rows, joined
from .merging import merged_metrics

ALL = "all"
TEXTS = 1024  # whose features are held at a time


@dataclass(frozen=True)
class Evaluation:
    """Scores of texts against videos by grain and for "all", which of them belong together, and the metrics.

    Over several ranks, the texts are those of this rank, and the metrics those of all.

    Args:
        scores: by grain, [texts, videos].
        targets: the video of each text, [texts].
        texts, videos: the pair of each row and (its first one) of each column.
        metrics: by grain.
        broken: of each video that could not be read, its name and why; it and its texts are left out.
        hubness: the correction that made the scores and the metrics of what was measured; see `corrected`.
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

    def whole(self) -> Evaluation:
        """With the texts of all ranks, in their order, and the scores for "all" alone. Collective.

        It exchanges matrices: for what shows a small collection.
        """
        back = self.scores[ALL] if self.reverse is None else self.reverse
        parts = parallel.exchange((self.texts, self.targets, self.scores[ALL], back))
        texts = [row for part, *_ in parts for row in part]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        targets, scores, back = (torch.cat(found)[order] for found in list(zip(*parts, strict=True))[1:])
        reverse = None if self.reverse is None else back
        return replace(self, scores={ALL: scores}, targets=targets, texts=sorted(texts), reverse=reverse)


def evaluate(
    model: XCLIP,
    pairs: Pairs,
    indices: Sequence[int] | None = None,
    max_frames: int = 12,
    protocol: str = "diagonal",
    batch_size: int = 100,
    workers: int = 0,
    progress: Count | None = None,
) -> Evaluation:
    """Encode and score pairs: texts against the distinct videos among them, which are those of distinct ids.

    Texts stream: their features are never held together, but for a recipe with a reranker.

    Args:
        indices: which pairs; None = all.
        protocol: see multigrain.retrieval_metrics.
        workers: processes that read videos ahead; 0: none.
        progress: called with (videos and texts done, all of them).

    Raises:
        Unreadable: no video could be read.
        ValueError: pairs that the protocol is not for; a reranker over several ranks.
    """
    scorer = model.scorer if model.recipe is None else model.recipe
    check_reranker(scorer)
    rows = list(range(len(pairs.sentences)) if indices is None else indices)
    ids: list[int] = pairs.ids[rows].tolist()
    order = first_rows(pairs, rows)
    total = len(order) + len(rows)
    _check_counts(protocol, len(rows), len(order))

    def count(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    own = [order[i] for i in parallel.share(len(order))]
    encoded = parallel.exchange(encode_videos(model, pairs, own, max_frames, batch_size, workers, count))
    video, kept, broken = joined(encoded)
    column = {int(pairs.ids[row]): i for i, row in enumerate(kept)}
    found = {int(pairs.ids[row]) for row in encoded[world()[0]][1]}
    rows = [row for row, i in zip(rows, ids, strict=True) if i in found]
    targets = torch.tensor([column[int(pairs.ids[row])] for row in rows], dtype=torch.long)
    parts = [_nothing(scorer, video)]
    step = len(rows) if _reranks(scorer) else TEXTS
    for start in range(0, len(rows), step):
        text = encode_texts(model, [pairs.sentences[row] for row in rows[start : start + step]], batch_size)
        device = model.logit_scale.device
        with evaluating(model):
            parts.append(_by_grain(scorer, text.to(device), video.to(device)))
        count(min(start + step, len(rows)) + total - len(rows), total)
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores, reverse, metrics = _judged(scores, protocol, targets)
    return Evaluation(scores, targets, rows, kept, metrics, broken, reverse=reverse, reranked=_reranks(scorer))


def evaluate_features(
    text: Features,
    video: Features,
    scorer: nn.Module,
    targets: Int[Tensor, "t"] | None = None,
    protocol: str = "diagonal",
    progress: Count | None = None,
) -> Evaluation:
    """As `evaluate`, of features that are there already.

    Args:
        scorer: such as MultiGrain; or a Recipe, for features behind its heads.
        targets: the video of each text; None: text i's is video i.
        progress: called with (grains done, grains in all).

    Raises:
        KeyError, ValueError: features that the scorer is not for, or targets and a protocol that do not fit them;
            a reranker over several ranks.
    """
    check_reranker(scorer)
    given, rows, videos = targets, torch.arange(len(text)), list(range(len(video)))
    targets = rows if given is None else given
    if world()[1] == 1:
        scores, reverse, metrics = _judged(_by_grain(scorer, text, video, progress), protocol, given)
        return Evaluation(
            scores, targets, rows.tolist(), videos, metrics, reverse=reverse, reranked=_reranks(scorer)
        )
    _check_targets(given, len(text), len(video), protocol)
    own = parallel.share(len(video))
    rows = ((targets >= own.start) & (targets < own.stop)).nonzero()[:, 0]
    scores = _by_grain(scorer, text[rows], video, progress)
    scores, reverse, metrics = _judged(scores, protocol, targets[rows])
    return Evaluation(scores, targets[rows], rows.tolist(), videos, metrics, reverse=reverse)


def scores_by_grain(
    model: XCLIP, text: Features, video: Features, progress: Count | None = None
) -> dict[str, Float[Tensor, "texts videos"]]:
    """The score matrix of each grain by its name, and of their weighted sum by the name "all".

    Of a recipe, the scores that rank the videos of a text, without its reranker.

    Args:
        progress: called with (grains done, grains in all).
    """
    device = model.logit_scale.device
    return _by_grain(model.scorer, text.to(device), video.to(device), progress)


def _by_grain(
    scorer: nn.Module, text: Features, video: Features, progress: Count | None = None
) -> dict[str, Tensor]:
    """The matrix of each grain and, as "all", of the scorer; and as _BACK what ranks texts, if it is another."""
    if isinstance(scorer, Recipe):
        scores = _by_grain(scorer.scorer, text, video, progress)
        if scorer.reranker is not None:
            scores[ALL] = scorer.reranked_of(text, video, "t2v").cpu()
        if scorer.reranker is not None or scorer.reverse is not None:
            scores[_BACK] = scorer.reranked_of(text, video, "v2t").cpu()
        return scores
    if not isinstance(scorer, MultiGrain):
        return {ALL: score_matrix(scorer, text, video, device="cpu")}
    scores = {}
    for done, grain in enumerate(grains_of(scorer), 1):
        scores[grain.name] = score_matrix(grain, text, video, device="cpu")
        if progress is not None:
            progress(done, len(scorer.grains))
    total = torch.zeros_like(next(iter(scores.values())))
    for weight, matrix in zip(scorer.weights, scores.values(), strict=True):
        total.add_(matrix, alpha=float(weight))
    return {**scores, ALL: total}


_BACK = "all, of videos"


def _nothing(scorer: nn.Module, video: Features) -> dict[str, Tensor]:
    """`_by_grain` of no text, for a rank that has none."""
    names = [ALL]
    if isinstance(scorer, Recipe):
        names += [_BACK] * (scorer.reranker is not None or scorer.reverse is not None)
        scorer = scorer.scorer
    return {name: torch.empty(0, len(video)) for name in (*(grain.name for grain in grains_of(scorer)), *names)}


def _judged(
    scores: dict[str, Tensor], protocol: str, targets: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None, dict[str, RetrievalMetrics]]:
    """(scores, what ranks texts where that is another matrix, metrics) of what `_by_grain` found. Collective."""
    metrics = _metrics(scores, protocol, targets)
    if _BACK not in scores:
        return scores, None, metrics
    metrics[ALL]["v2t"] = metrics.pop(_BACK)["v2t"]
    return {name: matrix for name, matrix in scores.items() if name != _BACK}, scores[_BACK], metrics


def _reranks(scorer: nn.Module) -> bool:
    return isinstance(scorer, Recipe) and scorer.reranker is not None


def check_reranker(scorer: nn.Module) -> None:
    """That an evaluation can serve: better said before anything is computed.

    Raises:
        ValueError: a recipe with a reranker over several ranks, of which none holds the whole matrix.
    """
    if _reranks(scorer) and (ranks := world()[1]) > 1:
        raise ValueError(
            f"recipe: expected one process, since the reranker of {scorer.name!r} needs the scores of all texts at "
            f"once, got {ranks}"
        )


def metrics_by_grain(
    scores: dict[str, Tensor], protocol: str = "diagonal", targets: Tensor | None = None
) -> dict[str, RetrievalMetrics]:
    """R@1/5/10, MdR and MnR both ways, of every matrix; `targets` has the video of each text, None: text i's is i."""
    texts, videos = next(iter(scores.values())).shape
    _check_counts(protocol, texts, videos)
    if protocol == "diagonal":
        _check_diagonal(targets)
        targets = None
    return {name: retrieval_metrics(matrix, targets, protocol) for name, matrix in scores.items()}


def _metrics(scores: dict[str, Tensor], protocol: str, targets: Tensor | None) -> dict[str, RetrievalMetrics]:
    """As `metrics_by_grain`, of the texts of all ranks. Collective."""
    if world()[1] == 1 or targets is None:
        return metrics_by_grain(scores, protocol, targets)
    return {name: merged_metrics(matrix, targets, protocol) for name, matrix in scores.items()}


def corrected(evaluation: Evaluation, hubness: str, protocol: str = "diagonal") -> Evaluation:
    """The evaluation after a transductive correction of hubness: texts rank corrected videos, videos corrected texts.

    Args:
        hubness: a name of multigrain.hubness.TRANSDUCTIVE.
        protocol: of the evaluation.

    Raises:
        ValueError: no such name, an evaluation that is corrected already or was reranked, or several ranks.
    """
    check_hubness(hubness)
    _check_comparable(evaluation.reranked)
    checks.require(evaluation.hubness is None, "evaluation", "one without a correction", evaluation.hubness)
    correct = TRANSDUCTIVE[hubness]
    scores = {name: correct(matrix) for name, matrix in evaluation.scores.items()}
    back = evaluation.scores if evaluation.reverse is None else {**evaluation.scores, ALL: evaluation.reverse}
    reverse = {name: correct(matrix.T).T for name, matrix in back.items()}
    metrics, back = (metrics_by_grain(both, protocol, evaluation.targets) for both in (scores, reverse))
    for name, values in metrics.items():
        values["v2t"] = back[name]["v2t"]
    return replace(evaluation, scores=scores, metrics=metrics, hubness=hubness, reverse=reverse[ALL])


def check_hubness(name: str, scorer: nn.Module | None = None) -> None:
    """That `corrected` can serve, for the scores of a MultiGrain or Recipe: better said before anything is computed.

    Raises:
        ValueError: no such name; a reranker; or several ranks, of which none holds the whole matrix.
    """
    checks.choice("hubness", name, TRANSDUCTIVE)
    _check_comparable(scorer is not None and _reranks(scorer))
    if (ranks := world()[1]) > 1:
        raise ValueError(
            f"hubness: expected one process, since {name} needs the scores of all texts at once, got {ranks}"
        )


def _check_comparable(reranked: bool) -> None:
    if reranked:
        raise ValueError(
            "hubness: expected scores that compare between queries, got those of a reranker, which only order "
            "the candidates of each"
        )


def _check_targets(targets: Tensor | None, texts: int, videos: int, protocol: str) -> None:
    """What the ranks have to agree in before they take their shares: the same error on each."""
    _check_counts(protocol, texts, videos)
    if targets is not None:
        checks.labels("targets", targets, texts)
        checks.indices("targets", targets, videos)
        if protocol == "diagonal":
            _check_diagonal(targets)
    elif protocol != "diagonal":
        raise ValueError(f"targets: expected the video of each text under the protocol {protocol!r}, got None")


def _check_diagonal(targets: Tensor | None) -> None:
    if targets is not None and not torch.equal(targets.cpu(), torch.arange(len(targets))):
        raise ValueError("targets: expected none under 'diagonal', where text i belongs to video i, got others")


def _check_counts(protocol: str, texts: int, videos: int) -> None:
    if texts == 0:
        raise ValueError("pairs: expected at least one to evaluate, got none")
    if protocol == "diagonal" and texts != videos:
        raise ValueError(
            f"protocol: expected one text a video under 'diagonal', got {texts} texts and {videos} videos; "
            f"'all_captions' and 'group_max' are for more"
        )


def protocol_of(config: TrainConfig) -> str:
    """That of a config's data; BabyAI's validation and test sentences are distinct."""
    return config.data.protocol if isinstance(config.data, ClipsConfig) else "diagonal"
