"""From a model and pairs to retrieval metrics, for each grain and for all together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..grains import Grain
from ..metrics import RetrievalMetrics, retrieval_metrics
from ..models import XCLIP
from ..scoring import score_matrix
from ..tokens import Features
from .data import Pairs

ALL = "all"


@torch.no_grad()
def encode(
    model: XCLIP,
    pairs: Pairs,
    indices: Sequence[int] | None = None,
    max_frames: int = 12,
    batch_size: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Features, Features]:
    """(text, video) features of pairs, on the CPU, from the model in eval mode.

    Args:
        indices: which pairs; None = all.
        progress: called with (pairs done, pairs in all).
    """
    rows = list(range(len(pairs.sentences)) if indices is None else indices)
    device, training = model.logit_scale.device, model.training
    texts: list[Features] = []
    videos: list[Features] = []
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = pairs.batch(rows[start : start + batch_size], max_frames)
        frames, index, mask = (x.to(device) for x in (batch.frames, batch.index, batch.mask))
        texts.append(model.encode_text(batch.sentences).to("cpu"))
        videos.append(model.encode_video(frames, mask, index).to("cpu"))
        if progress is not None:
            progress(min(start + batch_size, len(rows)), len(rows))
    model.train(training)
    return Features.cat(texts), Features.cat(videos)


def scores_by_grain(
    model: XCLIP, text: Features, video: Features, progress: Callable[[int, int], None] | None = None
) -> dict[str, Float[Tensor, "texts videos"]]:
    """The score matrix of each grain by its name, and of their weighted sum by the name "all".

    Args:
        progress: called with (grains done, grains in all).
    """
    device = model.logit_scale.device
    text, video = text.to(device), video.to(device)
    grains = cast("Iterable[Grain]", model.scorer.grains)
    scores: dict[str, Tensor] = {}
    for done, grain in enumerate(grains, 1):
        scores[grain.name] = score_matrix(grain, text, video, device="cpu")
        if progress is not None:
            progress(done, len(model.scorer.grains))
    weighted = [float(weight) * matrix for weight, matrix in zip(model.scorer.weights, scores.values(), strict=True)]
    return {**scores, ALL: torch.stack(weighted).sum(0)}


def metrics_by_grain(scores: dict[str, Tensor], protocol: str = "diagonal") -> dict[str, RetrievalMetrics]:
    """R@1/5/10, MdR and MnR both ways, of every matrix: text i belongs to video i."""
    return {name: retrieval_metrics(matrix, protocol=protocol) for name, matrix in scores.items()}


def evaluate(
    model: XCLIP, pairs: Pairs, indices: Sequence[int] | None = None, max_frames: int = 12
) -> dict[str, RetrievalMetrics]:
    """The metrics of pairs with distinct sentences, for each grain and for "all" together (see encode)."""
    return metrics_by_grain(scores_by_grain(model, *encode(model, pairs, indices, max_frames)))


def recall_at_1(metrics: RetrievalMetrics) -> float:
    """R@1 in per cent, the mean of both directions."""
    return (metrics["t2v"]["R@1"] + metrics["v2t"]["R@1"]) / 2
