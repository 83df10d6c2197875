"""Systems that read both sides together, alone or after two towers."""

from __future__ import annotations

import math

from einops import reduce
from torch import Tensor, nn

from .. import checks
from ..aggregators import LogSumExp, MaxMax, MeanMean, TokenWeighted
from ..cross_encoder import CrossEncoder, SegmentScorer
from ..grains import FrameWord, VideoSentence
from ..heads.video import number_of_heads, video_head
from ..losses import InfoNCE, MarginRanking, Matching, RetrievalLoss, TokenNCE
from ..scorer import MultiGrain
from ..tokens import Features
from .base import About, Recipe, register_recipe


class _Sum(nn.Module):
    """The sum of the scores of scorers of any kind."""

    def __init__(self, *scorers: nn.Module) -> None:
        super().__init__()
        self.scorers = nn.ModuleList(scorers)

    def forward(self, text: Features, video: Features) -> Tensor:
        return reduce([scorer(text, video) for scorer in self.scorers], "scorer t v -> t v", "sum")


@register_recipe(
    About(
        system="LXMERT, OSCAR, VideoBERT",
        paper="Tan and Bansal 2019, arXiv 1908.07490; Li et al. 2020, arXiv 2004.06165; "
        "Sun et al. 2019, arXiv 1904.01766",
        grains="word+frame",
        aggregation="a transformer over the tokens of both sides and a matching head",
        loss="cross-entropy of match or no match, random negatives",
        cost="depth (12 L D^2 + 2 L^2 D) with L = 1 + M + N",
        figure="OSCAR, COCO 5K R@1: base, text to image 54.0, image to text 70.0; large 57.5, 73.5",
        source="model zoo of microsoft/Oscar",
    )
)
def matching_head(
    dim: int,
    depth: int = 2,
    heads: int | None = None,
    negatives: str = "random",
    dropout: float = 0.0,
    direction: str = "candidate",
) -> Recipe:
    """One matching head for the three: they differ in encoders and data, not in the loss.

    Args:
        negatives, direction: of Matching. With "candidate", a wrong text for each video as in LXMERT, whose sentences
            are replaced, half of the pairs match; with "both" a third.
    """
    scorer = CrossEncoder(dim, depth, number_of_heads(dim, heads), dropout=dropout)
    return Recipe(scorer, Matching(scorer, negatives, direction=direction))


@register_recipe(
    About(
        system="ClipBERT",
        paper="Lei et al. 2021, arXiv 2102.06183",
        grains="word+segment",
        aggregation="a transformer over words and each short segment; log-sum-exp, max or mean over segments",
        loss="cross-entropy over the batch, or margin 0.2",
        cost="N / length passes of the transformer, each depth (12 L D^2 + 2 L^2 D) with L = 1 + M + length",
    )
)
def clipbert(
    dim: int, length: int = 2, depth: int = 2, heads: int | None = None, pool: str = "lse", loss: str = "ce"
) -> Recipe:
    """ClipBERT: sparse segments of a video are scored alone.

    Args:
        length: frames of a segment.
        pool: "lse", "max" or "mean" over segments.
        loss: "ce" or "margin"; as in the original, "lse" asks for "ce".
    """
    pools = {"lse": LogSumExp(1.0), "max": MaxMax(), "mean": MeanMean()}
    aggregator = pools[checks.choice("pool", pool, pools)]
    checks.choice("loss", loss, ("ce", "margin") if pool != "lse" else ("ce",))
    scorer = SegmentScorer(CrossEncoder(dim, depth, number_of_heads(dim, heads)), length, aggregator)
    criterion = InfoNCE(0.0, learn_logit_scale=False) if loss == "ce" else MarginRanking(0.2)
    return Recipe(scorer, RetrievalLoss(scorer, criterion))


@register_recipe(
    About(
        system="TACo",
        paper="Yang et al. 2021, arXiv 2108.09980",
        grains="sentence-video, word-frame, word+frame",
        aggregation="cosine; best frame of each noun and verb, weighted by IDF; a transformer over both",
        loss="InfoNCE + 0.5 token InfoNCE + contrast of the transformer's scores, 8 cascaded negatives",
        cost="(1 + M N) D; reranked: depth (12 L D^2 + 2 L^2 D) with L = 1 + M + N",
        extras="word weights: the grain word_weight",
        figure="MSR-VTT R@1, text to video: split 1 28.4, split 2 24.8",
        source="its paper",
    )
)
def taco(
    dim: int, depth: int = 2, heads: int | None = None, weights: str = "word_weight", k: int = 8, rerank_k: int = 128
) -> Recipe:
    """TACo: three contrasts, each of which finds the negatives of the next.

    Args:
        weights: the grain of width 1 that weighs words: IDF of nouns and verbs, 0 for other words.
        k: cascaded negatives.
        rerank_k: how many candidates the sum of all three scores orders at search; the paper: all.
    """
    coarse = VideoSentence()
    token = FrameWord(TokenWeighted(query_weights=weights, direction="query"))
    both = MultiGrain(coarse, token, weights=[1.0, 1.0])
    fusion = CrossEncoder(dim, depth, number_of_heads(dim, heads))
    loss = (
        RetrievalLoss(MultiGrain(coarse), InfoNCE()).named("global")
        + 0.5 * TokenNCE("word", "frame", weights).named("token")
        + Matching(fusion, "cascade", both, k, contrastive=True).named("fusion")
    )
    return Recipe(both, loss, video_head=video_head(), reranker=_Sum(both, fusion), rerank_k=rerank_k)


@register_recipe(
    About(
        system="ALBEF",
        paper="Li et al. 2021, arXiv 2107.07651",
        grains="sentence-video, word+frame",
        aggregation="cosine of one vector each; a transformer over both sides for the best",
        loss="InfoNCE with targets distilled from momentum encoders, and matching with hard negatives",
        cost="D; reranked: depth (12 L D^2 + 2 L^2 D) with L = 1 + M + N",
        extras="momentum encoders (0.995), two queues of 65536",
    )
)
def albef(
    dim: int,
    depth: int = 6,
    heads: int | None = None,
    alpha: float = 0.4,
    queue_size: int = 65536,
    momentum: float = 0.995,
    rerank_k: int = 128,
) -> Recipe:
    """ALBEF: align, then fuse. Give `keys` and both queues in training.

    Args:
        alpha: the share of the targets that the momentum encoders' scores make.
        rerank_k: 256 for COCO and 128 for Flickr30K in the original.
    """
    scorer = MultiGrain(VideoSentence())
    fusion = CrossEncoder(dim, depth, number_of_heads(dim, heads))
    criterion = InfoNCE(min_logit_scale=math.log(2), max_logit_scale=math.log(1000))
    loss = RetrievalLoss(scorer, criterion, distillation=alpha).named("contrast")
    loss = loss + Matching(fusion, "hard", scorer).named("matching")
    return Recipe(
        scorer,
        loss,
        video_head=video_head(),
        reranker=fusion,
        rerank_k=rerank_k,
        momentum=momentum,
        queue_size=queue_size,
    )
