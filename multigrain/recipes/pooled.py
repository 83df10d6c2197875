"""Systems that pool one side for the comparison: frames for each sentence, or words into a query."""

from __future__ import annotations

from .. import checks
from ..aggregators import AOSM, MaxMax
from ..grains import Grain, SentenceFrame
from ..grains.pooled import CrossAttentionPool, PooledGrain, SoftmaxPool
from ..heads.pool import AttentionPool, Pool
from ..losses import InfoNCE, MarginRanking, RetrievalLoss
from ..scorer import MultiGrain
from .base import About, Recipe, register_recipe


@register_recipe(
    About(
        system="HERO",
        paper="Li et al. 2020, arXiv 2005.00200",
        grains="query-frame",
        aggregation="words pooled to one query by attention; its best frame",
        loss="margin 0.1 against the negatives of the batch, the 20 hardest weighted 10, the rest 0.1",
        cost="N D",
        extras="the span loss is left out: it needs moments, not pairs",
    )
)
def hero(
    dim: int, margin: float = 0.1, hard_pool: int = 20, hard_weight: float = 10.0, easy_weight: float = 0.1
) -> Recipe:
    """HERO's video-subtitle matching, its global part."""
    scorer = MultiGrain(Grain("query", "frame", MaxMax()))
    criterion = MarginRanking(margin, hard_pool, hard_weight, easy_weight, reduction="sum")
    return Recipe(scorer, RetrievalLoss(scorer, criterion), text_head=Pool("word", "query", AttentionPool(dim)))


@register_recipe(
    About(
        system="X-Pool",
        paper="Gorti et al. 2022, arXiv 2203.15086",
        grains="sentence-frame",
        aggregation="frames pooled for each sentence by cross-attention, then cosine",
        loss="InfoNCE, learned scale",
        cost="2 N D + 2 D^2",
        figure="MSR-VTT 1k-A R@1, text to video, ViT-B/32: 46.9",
        source="AVIGATE, arXiv 2504.02397",
    )
)
def x_pool(dim: int) -> Recipe:
    """X-Pool: a video vector of its own for every sentence."""
    scorer = MultiGrain(PooledGrain("sentence", "frame", CrossAttentionPool(dim)))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()))


@register_recipe(
    About(
        system="CLIP-Hitchhiker",
        paper="Bain et al. 2022, arXiv 2205.08508",
        grains="sentence-frame",
        aggregation="frames weighted by softmax(cosine / 0.1): their features, or their scores",
        loss="InfoNCE, learned scale",
        cost="2 N D",
        figure="MSR-VTT zero-shot R@1, text to video, ViT-B/16, 16 frames: 34.4 (mean of frames 33.3)",
        source="README of m-bain/clip-hitchhiker",
    )
)
def query_scoring(temperature: float = 0.1, pool: str = "features") -> Recipe:
    """Query-scoring, without parameters.

    Args:
        temperature: of the softmax over frames.
        pool: "features", as they come, then the cosine; or "scores", which is AOSM of a sentence and frames. Of the
            latter, the original multiplies the weights with norms in place of scores.
    """
    checks.choice("pool", pool, ("features", "scores"))
    pooled = PooledGrain("sentence", "frame", SoftmaxPool(temperature))
    scorer = MultiGrain(pooled if pool == "features" else SentenceFrame(AOSM(temperature)))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()))
