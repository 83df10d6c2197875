"""Systems of two towers with many vectors each, which differ in the compared tokens and in the aggregation."""

from __future__ import annotations

from collections.abc import Sequence

from .. import checks
from ..aggregators import AOSM, ISA, MaxSim, MeanMax, NormalizedSoftmax, TokenWeighted, TopK
from ..grains import FrameWord, Grain, SentenceFrame, VideoSentence, VideoWord
from ..heads.temporal import TemporalTransformer
from ..heads.video import Encode, number_of_heads, temporal_encoder, video_head
from ..losses import Decorrelation, InfoNCE, RetrievalLoss, Sigmoid
from ..scorer import MultiGrain
from .base import About, Recipe, register_recipe

XCLIP_GRAINS = ("sentence-video", "word-video", "sentence-frame", "word-frame")


@register_recipe(
    About(
        system="X-CLIP",
        paper="Ma et al. 2022, arXiv 2207.07285",
        grains="sentence-video, word-video, sentence-frame, word-frame",
        aggregation="attention over the similarity matrix (AOSM), temperature 0.01; mean of the grains",
        loss="InfoNCE, learned scale",
        cost="(M N + M + N + 1) D",
        extras="temporal transformer in front of the video vector",
        figure="MSR-VTT 1k-A R@1, text to video: ViT-B/32 46.1, ViT-B/16 49.3",
        source="its paper",
    )
)
def xclip(
    dim: int,
    temporal: str = "transformer",
    max_frames: int = 12,
    depth: int = 4,
    heads: int | None = None,
    temperature: float = 0.01,
    grains: Sequence[str] = XCLIP_GRAINS,
    max_words: int | None = None,
) -> Recipe:
    """X-CLIP: every granularity of text against every granularity of video.

    Args:
        temporal: "mean", "lstm" or "transformer", of which max_frames, depth (3 in the paper, 4 in its code), heads.
        grains: which of the four.
        max_words: M, switches on the eight learned matrices of its code (not of its paper), which fix the most words
            and frames.
    """
    for name in grains:
        checks.choice("grains", name, XCLIP_GRAINS)
    learned = max_words is not None
    matrix, frames = (dim, max_frames) if learned else (None, None)
    four = (
        VideoSentence(bilinear=matrix),
        VideoWord(AOSM(temperature, query_tokens=max_words)),
        SentenceFrame(AOSM(temperature, candidate_tokens=frames)),
        FrameWord(AOSM(temperature, query_tokens=max_words, candidate_tokens=frames), bilinear=matrix),
    )
    scorer = MultiGrain(*(grain for grain in four if grain.name in grains))
    head = video_head(temporal_encoder(temporal, dim, max_frames, depth, heads))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()), video_head=head)


@register_recipe(
    About(
        system="ColBERT",
        paper="Khattab and Zaharia 2020, arXiv 2004.12832",
        grains="word-frame",
        aggregation="sum over words of the best frame",
        loss="cross-entropy over the videos of a batch, scale 1",
        cost="M N D",
    )
)
def colbert() -> Recipe:
    """ColBERT's late interaction, words in place of query tokens and frames in place of passage tokens."""
    scorer = MultiGrain(FrameWord(MaxSim("query")))
    criterion = InfoNCE(0.0, learn_logit_scale=False, direction="query")
    return Recipe(scorer, RetrievalLoss(scorer, criterion))


@register_recipe(
    About(
        system="FILIP",
        paper="Yao et al. 2021, arXiv 2111.07783",
        grains="word-frame",
        aggregation="mean over a side's tokens of the best of the other side; one matrix for each direction",
        loss="InfoNCE of each matrix in its own direction, averaged; one learned scale",
        cost="M N D",
        extras="on request the share of tokens that match best",
        figure="COCO R@1, fine-tuned: image to text 78.9, text to image 61.2",
        source="BLIP-2, arXiv 2301.12597",
    )
)
def filip(share: float | None = None) -> Recipe:
    """FILIP: words rank videos by their best frames, frames rank texts by their best words.

    Args:
        share: of each side's tokens that counts, such as the paper's 0.25; None: all. FILIP chooses once in a batch,
            by the other items there; here each pair chooses.
    """
    scorers, criteria = [], [InfoNCE(direction=direction) for direction in ("query", "candidate")]
    for direction in ("query", "candidate"):
        aggregator = MeanMax(direction) if share is None else TopK(share=share, direction=direction)
        scorers.append(MultiGrain(FrameWord(aggregator)))
    criteria[1].logit_scale = criteria[0].logit_scale
    t2v, v2t = (RetrievalLoss(*each) for each in zip(scorers, criteria, strict=True))
    return Recipe(scorers[0], 0.5 * t2v.named("t2v") + 0.5 * v2t.named("v2t"), reverse=scorers[1])


@register_recipe(
    About(
        system="Video-ColBERT",
        paper="Reddy et al. 2025, arXiv 2503.19009",
        grains="word-frame, word-context",
        aggregation="mean over words of the best frame, before and behind the temporal encoder; sum",
        loss="sigmoid of each grain, with scales and biases of their own",
        cost="2 M N D",
        extras="temporal transformer",
        figure="MSR-VTT 1k-A R@1, text to video, ViT-B/16: CLIP 51.0, SigLIP 51.5",
        source="its paper",
    )
)
def video_colbert(
    dim: int,
    max_frames: int = 12,
    depth: int = 4,
    heads: int | None = None,
    frame_weight: float = 1.0,
    context_weight: float = 1.0,
) -> Recipe:
    """Video-ColBERT: MeanMaxSim with the frames of the tower and with those of a temporal encoder.

    The two lambdas of the loss are frame_weight and context_weight. In the paper, the text tower's outputs in padded
    slots are query expansion: mask them as real to have it. Its learned visual expansion tokens are left out.
    """
    frame = Grain("word", "frame", MeanMax("query"))
    context = Grain("word", "context", MeanMax("query"))
    loss = frame_weight * RetrievalLoss(MultiGrain(frame), Sigmoid()).named("frame")
    loss = loss + context_weight * RetrievalLoss(MultiGrain(context), Sigmoid()).named("context")
    head = Encode("frame", "context", TemporalTransformer(dim, depth, number_of_heads(dim, heads), max_frames))
    return Recipe(MultiGrain(frame, context, weights=[1.0, 1.0]), loss, video_head=head)


@register_recipe(
    About(
        system="DRL",
        paper="Wang et al. 2022, arXiv 2203.07111",
        grains="word-frame",
        aggregation="weighted token interaction: learned weights of tokens, each with its best match, both ways",
        loss="InfoNCE + 0.001 channel decorrelation of matched tokens",
        cost="M N D, and D^2 for each token's weight",
        figure="MSR-VTT 1k-A R@1, text to video, ViT-B/32: 46.6, with decorrelation 47.6",
        source="README of foolwood/DRL",
    )
)
def drl(dim: int, decorrelation: float = 0.001, weighted: bool = False) -> Recipe:
    """DRL: WTI with CDCR. Padding is left out before the maximum; the original's padding scores 0 there.

    Args:
        decorrelation: how much CDCR counts.
        weighted: count its tokens by the weights of WTI, the original's type 3, in place of alike.
    """
    tokens = TokenWeighted(dim)
    scorer = MultiGrain(FrameWord(tokens))
    channels = Decorrelation("word", "frame", tokens if weighted else None).named("decorrelation")
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()).named("contrast") + decorrelation * channels)


@register_recipe(
    About(
        system="UCoFiA",
        paper="Wang et al. 2023, arXiv 2309.10091",
        grains="sentence-video, sentence-frame, word-patch",
        aggregation="interactive similarity aggregation (ISA), a softmax of a softmax; mean of the grains",
        loss="InfoNCE, learned scale",
        cost="(M P + N + 1) D with P patches",
        extras="Sinkhorn normalisation at test time, on request (mg.hubness)",
    )
)
def ucofia(
    dim: int,
    temporal: str = "transformer",
    max_frames: int = 12,
    depth: int = 4,
    heads: int | None = None,
    temperature: float = 0.01,
    patch: str = "frame",
    max_words: int | None = None,
    max_patches: int | None = None,
) -> Recipe:
    """UCoFiA: from coarse to fine. All grains are cosines; the original does not normalise patches, and selects them.

    Args:
        temporal: "mean", "lstm" or "transformer", of which max_frames, depth, heads.
        patch: the finest grain: frames again for encoders without patches.
        max_words: M, switches on the learned matrices: of ISA, which fix the most words, frames and patches, and one
            between sentence and video, for the original's product of two.
        max_patches: default max_frames.
    """
    frames = None if max_words is None else max_frames
    patches = None if max_words is None else max_patches or max_frames
    isa = ISA(temperature, query_tokens=max_words, candidate_tokens=patches)
    scorer = MultiGrain(
        VideoSentence(bilinear=None if max_words is None else dim),
        SentenceFrame(ISA(temperature, candidate_tokens=frames)),
        Grain("word", patch, isa, name="word-patch"),
    )
    head = video_head(temporal_encoder(temporal, dim, max_frames, depth, heads))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()), video_head=head)


@register_recipe(
    About(
        system="TS2-Net",
        paper="Liu et al. 2022, arXiv 2207.07852",
        grains="sentence-frame, sentence-video",
        aggregation="frames weighted by softmax(4 x / |x|), blended with the global score",
        loss="InfoNCE, learned scale",
        cost="(N + 1) D",
        extras="its token shift and selection belong to the video tower",
        figure="MSR-VTT 1k-A R@1, text to video: ViT-B/32 47.0, ViT-B/16 49.4",
        source="AVIGATE, arXiv 2504.02397",
    )
)
def ts2net(
    dim: int,
    blend: float = 0.5,
    temporal: str = "transformer",
    max_frames: int = 12,
    depth: int = 4,
    heads: int | None = None,
) -> Recipe:
    """TS2-Net's aggregation: blend times the weighted frames, and the rest of one for the global score."""
    scorer = MultiGrain(SentenceFrame(NormalizedSoftmax(0.25)), VideoSentence(), weights=[blend, 1 - blend])
    head = video_head(temporal_encoder(temporal, dim, max_frames, depth, heads))
    return Recipe(scorer, RetrievalLoss(scorer, InfoNCE()), video_head=head)
