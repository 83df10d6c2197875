"""Find videos by a sentence in a folder of features that `multigrain.gallery.extract` wrote.

for result in search(model, "a dog catches a frisbee", "features/"):
    print(result.score, result.path, result.by_grain)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from torch import Tensor

from .. import checks
from ..files import Location
from ..models.protocol import Encoder, check_encoded, check_encoder, evaluating, fingerprint
from ..scorer import MultiGrain
from ..scoring import top_k
from ..tokens import Features
from .collection import Collection, Shard


@dataclass(frozen=True)
class Result:
    """A video that was found."""

    path: str
    score: float
    """Score of all grains together."""
    by_grain: dict[str, float] = field(default_factory=dict[str, float])
    """Score of each grain, unweighted."""


@overload
def search(
    model: Encoder, sentences: str, folder: Location, k: int = 10, by_grain: bool = True, block: int = 256
) -> list[Result]: ...
@overload
def search(
    model: Encoder, sentences: list[str], folder: Location, k: int = 10, by_grain: bool = True, block: int = 256
) -> list[list[Result]]: ...
def search(
    model: Encoder, sentences: str | list[str], folder: Location, k: int = 10, by_grain: bool = True, block: int = 256
) -> list[Result] | list[list[Result]]:
    """Find the k best videos of a collection for a sentence, or for each of several, best first.

    Exact: every video is scored by the model's scorer, shard by shard, and of equal scores the earlier video comes
    first (see multigrain.top_k). One shard of features and k results a sentence are held at a time. The reranker of a
    recipe has no part in it.

    Args:
        k: how many; a smaller collection gives what it has.
        by_grain: fill in the scores by grain, which reads the shards of the results again; a recipe that scores
            pairs otherwise has none.
        block: sentences and videos scored at a time.

    Raises:
        FileNotFoundError: no features in the folder, or a shard is missing.
        ValueError: features of another model; no video in the collection; a damaged file; an argument out of range; a
            score that is NaN, of which the video is named.

    Warns:
        UserWarning: the extraction has not come to its end.
    """
    check_encoder(model)
    checks.count("k", k)
    collection = Collection.open(folder)
    collection.check({"model": fingerprint(model)}, "search with the model that made them, or extract them again")
    shards = [shard for shard in collection.shards if shard.file is not None]
    if not shards:
        raise ValueError(f"{collection.folder}: expected features of at least one video, found none")
    if not collection.complete:
        warnings.warn(f"{collection.folder}: the extraction is not finished: some videos are missing", stacklevel=2)
    queries = [sentences] if isinstance(sentences, str) else sentences
    with evaluating(model):
        text = check_encoded("encode_text", model.encode_text(queries), len(queries))
        scores, indices = _best(model, text, collection, shards, k, block)
        names = collection.videos
        scorer = model.scorer if by_grain and isinstance(model.scorer, MultiGrain) else None
        grains = None if scorer is None else _grains(scorer, text, collection, shards, indices)
    found = [
        [
            Result(names[index], score, {} if grains is None else grains[query, slot])
            for slot, (score, index) in enumerate(zip(row_scores, row, strict=True))
        ]
        for query, (row_scores, row) in enumerate(zip(scores.tolist(), indices.tolist(), strict=True))
    ]
    return found[0] if isinstance(sentences, str) else found


def _best(
    model: Encoder, text: Features, collection: Collection, shards: Sequence[Shard], k: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return scores [queries, k] and places in the collection [queries, k], best first."""
    features = (collection.load(shard, text.device) for shard in shards)
    try:
        return top_k(model.scorer, text, features, min(k, len(collection.videos)), block)
    except checks.BadEntry as error:
        raise ValueError(
            f"scores: expected numbers, got NaN for sentence {error.row} and the video "
            f"{collection.videos[error.column]}: the model, or its features, hold NaN or infinity"
        ) from error


def _grains(
    scorer: MultiGrain, text: Features, collection: Collection, shards: Sequence[Shard], indices: Tensor
) -> dict[tuple[int, int], dict[str, float]]:
    """Return (query, slot) -> scores by grain, for places in the collection [queries, k]."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    first = 0
    for shard in shards:
        inside = (indices >= first) & (indices < first + len(shard.videos))
        if inside.any():
            features = collection.load(shard, text.device)
            for query in inside.any(1).nonzero()[:, 0].tolist():
                slots = inside[query].nonzero()[:, 0]
                scores = scorer.scores_by_grain(text[query], features[indices[query, slots] - first])
                for column, slot in enumerate(slots.tolist()):
                    found[query, slot] = {name: float(value[0, column]) for name, value in scores.items()}
        first += len(shard.videos)
    return found
