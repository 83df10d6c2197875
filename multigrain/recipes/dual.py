"""Systems of two towers with one vector each, which differ in the loss and in the way from frames to a video."""

from __future__ import annotations

import math

from .. import checks
from ..cross_encoder import CrossEncoder
from ..grains import VideoSentence
from ..heads.video import TEMPORAL, number_of_heads, temporal_encoder, video_head
from ..losses import InfoNCE, RetrievalLoss
from ..scorer import MultiGrain
from .base import About, Recipe, register_recipe

_MOCO_SCALE = math.log(1 / 0.07)


@register_recipe(
    About(
        system="CLIP",
        paper="Radford et al. 2021, arXiv 2103.00020",
        grains="sentence-video",
        aggregation="cosine of one vector each; mean of frames",
        loss="InfoNCE, learned scale up to 100",
        cost="D",
        figure="Flickr30K zero-shot R@1: image to text 88.0, text to image 68.7",
        source="ALIGN, arXiv 2102.05918",
    )
)
def clip() -> Recipe:
    """CLIP over the mean of unit frames, the usual way to apply CLIP to videos without training."""
    scorer = MultiGrain(VideoSentence())
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()), video_head=video_head())


@register_recipe(
    About(
        system="ALIGN",
        paper="Jia et al. 2021, arXiv 2102.05918",
        grains="sentence-video",
        aggregation="cosine of one vector each; mean of frames",
        loss="InfoNCE, sum of the directions, label smoothing 0.1, scale learned from 1",
        cost="D",
        figure="Flickr30K zero-shot R@1: image to text 88.6, text to image 75.7",
        source="its paper",
    )
)
def align(label_smoothing: float = 0.1) -> Recipe:
    """ALIGN: CLIP with label smoothing, the sum of both directions, and a scale that starts at 1."""
    scorer = MultiGrain(VideoSentence())
    criterion = InfoNCE(0.0, label_smoothing=label_smoothing, reduction="sum")
    return Recipe(scorer, RetrievalLoss(scorer, criterion), video_head=video_head())


@register_recipe(
    About(
        system="Frozen in Time",
        paper="Bain et al. 2021, arXiv 2104.00650",
        grains="sentence-video",
        aggregation="cosine of one vector each; mean of frames",
        loss="InfoNCE, sum of the directions, fixed temperature 0.05",
        cost="D",
        extras="more frames as training goes on (in the data, not here)",
    )
)
def frozen_in_time(temperature: float = 0.05) -> Recipe:
    """Frozen in Time: twice CLIP's loss at the fixed scale 20."""
    scorer = MultiGrain(VideoSentence())
    scale = math.log(1 / checks.positive("temperature", temperature))
    criterion = InfoNCE(scale, learn_logit_scale=False, reduction="sum")
    return Recipe(scorer, RetrievalLoss(scorer, criterion), video_head=video_head())


@register_recipe(
    About(
        system="WenLan (BriVL)",
        paper="Huo et al. 2021, arXiv 2103.06561",
        grains="sentence-video",
        aggregation="cosine of one vector each; mean of frames",
        loss="InfoNCE against keys of momentum encoders and queues, sum of the directions, temperature 0.07",
        cost="D; in training a batch of B also meets 2 B K queued keys",
        extras="momentum encoders (0.99), two queues of K = 9600",
    )
)
def wenlan(queue_size: int = 9600, momentum: float = 0.99) -> Recipe:
    """WenLan: MoCo across modalities. Give `keys` and both queues in training; without keys, the batch's own.

    The other keys of the batch are negatives too; in the original only those in the queue are.
    """
    scorer = MultiGrain(VideoSentence())
    criterion = InfoNCE(_MOCO_SCALE, learn_logit_scale=False, reduction="sum")
    loss = RetrievalLoss(scorer, criterion)
    return Recipe(scorer, loss, video_head=video_head(), momentum=momentum, queue_size=queue_size)


@register_recipe(
    About(
        system="CLIP4Clip",
        paper="Luo et al. 2021, arXiv 2104.08860",
        grains="sentence-video",
        aggregation="cosine of one vector each; mean of frames, plain or behind an LSTM or a transformer; or tight",
        loss="InfoNCE, learned scale",
        cost="D; tight: depth (12 L D^2 + 2 L^2 D) with L = 2 + N",
        figure="MSR-VTT 1k-A R@1, ViT-B/32: mean 43.1, LSTM 42.5, transformer 44.5, tight 40.2",
        source="X-CLIP, arXiv 2207.07285",
    )
)
def clip4clip(
    dim: int, temporal: str = "mean", max_frames: int = 12, depth: int = 4, heads: int | None = None
) -> Recipe:
    """CLIP4Clip: CLIP over frames, with or without a temporal encoder.

    Args:
        temporal: "mean", "lstm", "transformer", or "tight": a transformer over the sentence and the frames scores
            each pair, in its own unit, so that there is no scale.
        max_frames, depth, heads: of the transformers.
    """
    checks.choice("temporal", temporal, (*TEMPORAL, "tight"))
    if temporal == "tight":
        tight = CrossEncoder(dim, depth, number_of_heads(dim, heads), query="sentence")
        return Recipe(tight, RetrievalLoss(tight, InfoNCE(0.0, learn_logit_scale=False)))
    scorer = MultiGrain(VideoSentence())
    head = video_head(temporal_encoder(temporal, dim, max_frames, depth, heads))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()), video_head=head)
