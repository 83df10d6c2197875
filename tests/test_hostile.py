"""Every public name meets hostile values: what comes back is finite, or one line in our words says what is wrong.

Each entry calls a name with good arguments, of which one is replaced. NaN in features stays NaN in what only computes
(scores, poolings: see `strict`), and is refused by what ranks, learns or corrects.
"""

# ruff: noqa: E501 (one call is one line of the table)
from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import multigrain as mg

PACKAGE = Path(mg.__file__).parent
REFUSALS = (TypeError, ValueError, KeyError, IndexError)
NAN, INF = float("nan"), float("inf")

_generator = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


S, W, V, F = numbers(3, 8), numbers(3, 4, 8), numbers(3, 8), numbers(3, 5, 8)
MASK = torch.arange(4) < torch.tensor([[4], [2], [1]])
TEXT = mg.Features(sentence=S, word=(W, MASK), word_weight=torch.ones(3, 4, 1))
VIDEO = mg.Features(video=V, frame=F)
SIM, SCORES, IDS = numbers(3, 2, 4, 5).tanh(), numbers(3, 3).tanh(), torch.arange(3)
COARSE = mg.MultiGrain(mg.VideoSentence())


def with_word(x: Tensor, mask: Tensor | None = MASK) -> mg.Features:
    return mg.Features(sentence=S, word=(x, mask), video=V, frame=F, word_weight=torch.ones(3, 4, 1))


def at_the_first(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[0] = value
    return x


def nested() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([numbers(2, 8), numbers(1, 8)])


HOSTILE: dict[str, Callable[[], object]] = {
    "nan": lambda: NAN,
    "inf": lambda: INF,
    "-inf": lambda: -INF,
    "0": lambda: 0,
    "-1": lambda: -1,
    "-0.5": lambda: -0.5,
    "1e-45": lambda: 1e-45,
    "1e300": lambda: 1e300,
    "2**70": lambda: 2**70,
    "10**5000": lambda: 10**5000,
    "True": lambda: True,
    "1j": lambda: 1j,
    "None": lambda: None,
    "a string": lambda: "x" * 5000,
    "an empty string": lambda: "",
    "bytes": lambda: b"word",
    "an empty list": list,
    "a list": lambda: [1.0, NAN],
    "a triple": lambda: (1, 2, 3),
    "a dict": lambda: {"word": W},
    "an object": object,
    "a class": lambda: mg.AOSM,
    "a module": lambda: nn.Linear(2, 2),
    "a function": lambda: len,
    "an empty tensor": lambda: torch.empty(0),
    "a scalar": lambda: torch.tensor(NAN),
    "a vector": lambda: numbers(3),
    "of rank 5": lambda: numbers(1, 2, 1, 2, 1),
    "a matrix": lambda: numbers(3, 3),
    "a matrix with NaN": lambda: at_the_first(numbers(3, 3), NAN),
    "a matrix with inf": lambda: at_the_first(numbers(3, 3), INF),
    "a matrix with -inf": lambda: at_the_first(numbers(3, 3), -INF),
    "a matrix with 1e38": lambda: at_the_first(numbers(3, 3), 1e38),
    "a half matrix": lambda: numbers(3, 3).half(),
    "a matrix of 1e-45": lambda: torch.full((3, 3), 1e-45),
    "no matrix": lambda: torch.empty(0, 3),
    "integers": lambda: torch.tensor([0, 1, 2]),
    "integers beyond": lambda: torch.tensor([0, 2**62, -5]),
    "bools": lambda: torch.eye(3).bool(),
    "no bool": lambda: torch.zeros(3, 3).bool(),
    "complex numbers": lambda: numbers(3, 3) * 1j,
    "8 bits": lambda: numbers(3, 3).to(torch.float8_e4m3fn),
    "of meta": lambda: torch.empty(3, 3, device="meta"),
    "sparse": lambda: numbers(3, 3).to_sparse(),
    "nested": nested,
    "features with NaN": lambda: with_word(at_the_first(W, NAN)),
    "features with inf": lambda: with_word(at_the_first(W, INF)),
    "features of 1e38": lambda: with_word(W.sign() * 1e38),
    "features of 1e-45": lambda: with_word(W * 1e-45),
    "features of zeros": lambda: with_word(W * 0),
    "features without a token": lambda: with_word(W, MASK & False),
    "features with NaN in padding": lambda: with_word(W.masked_fill(~MASK[..., None], NAN)),
    "features of bf16": lambda: with_word(W).to(dtype=torch.bfloat16),
    "features of another width": lambda: mg.Features(sentence=numbers(3, 5), word=numbers(3, 4, 5), frame=F),
    "fewer features": lambda: TEXT[:1],
    "features of other grains": lambda: mg.Features(other=V),
    "features of meta": lambda: TEXT.to("meta"),
}


class Entry(NamedTuple):
    call: Callable[..., object]
    arguments: Mapping[str, object]
    computes: bool  # alone: NaN and infinity go through it


def entry(call: Callable[..., object], computes: bool = False, **arguments: object) -> Entry:
    return Entry(call, arguments, computes)


def scored(make: Callable[..., mg.Grain | mg.MultiGrain]) -> Callable[..., Tensor]:
    return lambda **settings: make(**settings)(TEXT, VIDEO)


def aggregated(make: Callable[..., mg.Aggregator]) -> Callable[..., Tensor]:
    return scored(lambda **settings: mg.Grain("word", "frame", make(**settings)))


def aggregator(make: Callable[..., mg.Aggregator], **arguments: object) -> list[Entry]:
    masks = {"query_mask": torch.ones(3, 4).bool(), "candidate_mask": torch.ones(2, 5).bool()}
    return [entry(aggregated(make), **arguments), entry(make(), computes=True, sim=SIM, **masks)]


def grain(make: Callable[..., mg.Grain], **arguments: object) -> list[Entry]:
    return [entry(scored(make), **arguments), entry(make(), computes=True, query=TEXT, candidate=VIDEO, backend=None)]


def criterion(make: Callable[..., nn.Module], **arguments: object) -> list[Entry]:
    return [entry(lambda **s: make(**s)(SCORES), **arguments), entry(make(), scores=SCORES, ids=IDS)]


def loss(make: Callable[..., nn.Module], **arguments: object) -> list[Entry]:
    return [
        entry(lambda **s: make(**s)(TEXT, VIDEO), **arguments),
        entry(make(**arguments), text=TEXT, video=VIDEO, ids=IDS),
    ]


class OwnAggregator(mg.Aggregator):
    def forward(self, sim: Tensor, query_mask: Tensor | None = None, candidate_mask: Tensor | None = None) -> Tensor:
        return sim.mean((2, 3))


class OwnCriterion(mg.losses.Criterion):
    def rows(self, scores: Tensor, positives: Tensor) -> Tensor:
        return scores.masked_fill(~positives, 0.0).sum(1)


class OwnPartialCriterion(mg.losses.PartialCriterion):
    def partial(self, scores: Tensor, positives: Tensor) -> Tensor:
        return scores.masked_fill(~positives, 0.0).sum(1, keepdim=True)

    def join(self, parts: Tensor) -> Tensor:
        return parts.sum((0, 2))


class OwnWholeBatchLoss(mg.losses.WholeBatchLoss):
    def compute(self, text: mg.Features, video: mg.Features, ids: object) -> Tensor:
        return COARSE(text, video).mean()


def pushed(size: Any = 4, features: Any = TEXT, ids: Any = None) -> object:
    queue = mg.losses.FeatureQueue(size)
    queue.push(features, ids)
    return queue.features


def registered(name: Any) -> object:
    from multigrain.aggregators import base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
        return mg.register_aggregator(name)(OwnAggregator)


PAIR = {"text": TEXT, "video": VIDEO}
SIDES = {"query": TEXT, "candidate": VIDEO}
BOTH = {"direction": "both", "reduction": "mean"}
POSITIVES = torch.eye(3).bool()
MASKS = {"features": W, "mask": MASK}
TABLE: dict[str, list[Entry]] = {
    "AOSM": aggregator(mg.AOSM, temperature=0.1, direction="both", query_tokens=4, candidate_tokens=5),
    "Aggregator": [entry(aggregated(lambda value: value), value=OwnAggregator())],
    "AttentionPool": [
        entry(lambda dim: mg.heads.Pool("frame", "pooled", mg.heads.AttentionPool(dim))(VIDEO), dim=8),
        entry(mg.heads.Pool("word", "pooled", mg.heads.AttentionPool(8)), computes=True, features=TEXT),
    ],
    "CachedLoss": [entry(lambda loss: mg.CachedLoss(loss)(lambda chunk: chunk, [(TEXT, VIDEO)]), loss=OwnWholeBatchLoss())],
    "Criterion": criterion(OwnCriterion, **BOTH),
    "CrossAttentionPool": [
        entry(lambda **s: mg.grains.PooledGrain("sentence", "frame", mg.grains.CrossAttentionPool(**s))(TEXT, VIDEO), dim=8, heads=1, dropout=0.0)
    ],
    "CrossEncoder": [
        entry(lambda **s: mg.cross_encoder.CrossEncoder(**s)(TEXT, VIDEO), dim=8, depth=1, heads=2, query="word", candidate="frame", dropout=0.0),
        entry(mg.cross_encoder.CrossEncoder(8, 1, 2), computes=True, **SIDES),
    ],
    "Decorrelation": loss(mg.losses.Decorrelation, query="word", candidate="frame", weights=None, on_diagonal=1.0, off_diagonal=0.1, gather="none"),
    "Distillation": loss(mg.losses.Distillation, student=COARSE, teacher=COARSE, kind="kl", scale=3.0, teacher_scale=4.0, reduction="sum", direction="both", gather="none"),
    "FeatureQueue": [entry(pushed, size=4, features=TEXT, ids=IDS)],
    "Features": [
        entry(lambda word: mg.Features(word=word)["word"].normalized().features, computes=True, word=W),
        entry(lambda index: TEXT[index], index=1),
        entry(lambda name: TEXT.only(name), name="word"),
        entry(lambda parts: mg.Features.cat(parts), computes=True, parts=[TEXT, TEXT]),
        entry(lambda path: mg.Features.load(path), path="no.features"),
    ],
    "FrameWord": grain(mg.FrameWord, aggregator="aosm", bilinear=8),
    "Grain": [
        entry(scored(mg.Grain), query="word", candidate="frame", aggregator="max_sim", bilinear=8, name="mine"),
        entry(mg.Grain("word", "frame", "aosm"), computes=True, backend="blocked", **SIDES),
    ],
    "ISA": aggregator(mg.aggregators.ISA, temperature=0.1, direction="both", query_tokens=4, candidate_tokens=5),
    "InfoNCE": [
        *criterion(mg.InfoNCE, init_logit_scale=1.0, max_logit_scale=4.0, min_logit_scale=-4.0, label_smoothing=0.1, **BOTH),
        entry(mg.InfoNCE(), scores=SCORES, targets=torch.eye(3)),
    ],
    "LogSumExp": aggregator(mg.LogSumExp, temperature=0.1, direction="both"),
    "Loss": [entry(lambda weight: (mg.InfoNCE() * weight)(SCORES), weight=0.5), entry(mg.InfoNCE().named, name="mine")],
    "MarginRanking": criterion(mg.losses.MarginRanking, margin=0.1, hard_pool=2, hard_weight=2.0, easy_weight=1.0, form="lse", over="mean", **BOTH),
    "Matching": loss(mg.losses.Matching, scorer=mg.cross_encoder.CrossEncoder(8, 1, 2), negatives="hard", ranker=COARSE, k=1, temperature=0.1, direction="both"),
    "MaxMax": aggregator(mg.MaxMax, direction="both"),
    "MaxMean": aggregator(mg.MaxMean, direction="both"),
    "MaxSim": aggregator(mg.MaxSim, direction="query"),
    "MeanMax": aggregator(mg.MeanMax, direction="both"),
    "MeanMean": aggregator(mg.MeanMean, direction="both"),
    "MeanPool": [entry(mg.heads.Pool("word", "pooled", mg.heads.MeanPool(normalize=True)), computes=True, features=TEXT)],
    "MultiGrain": [
        entry(lambda grain, **s: mg.MultiGrain(grain, **s)(TEXT, VIDEO), grain=mg.FrameWord(), weights=[1.0], backend="eager"),
        entry(mg.MultiGrain(mg.FrameWord(), strict=True), **SIDES),
        entry(mg.MultiGrain(mg.VideoWord(), mg.FrameWord()), computes=True, **SIDES),
    ],
    "NormalizedSoftmax": aggregator(mg.aggregators.NormalizedSoftmax, temperature=0.1, direction="both"),
    "PartialCriterion": criterion(OwnPartialCriterion, **BOTH),
    "Pool": [
        entry(lambda **s: mg.heads.Pool(**s)(VIDEO), source="frame", target="pooled", pooler=mg.heads.MeanPool()),
        entry(mg.heads.Pool("word", "pooled", mg.heads.MeanPool()), computes=True, features=TEXT),
    ],
    "PooledGrain": [
        entry(scored(mg.grains.PooledGrain), query="sentence", candidate="frame", pooler=mg.grains.SoftmaxPool(), name="mine"),
        entry(mg.grains.PooledGrain("sentence", "word", mg.grains.SoftmaxPool()), computes=True, query=TEXT, candidate=TEXT),
    ],
    "Pooler": [entry(lambda pooler: mg.heads.Pool("frame", "pooled", pooler)(VIDEO), pooler=mg.heads.MeanPool())],
    "QueryPooler": [entry(lambda pooler: mg.grains.PooledGrain("sentence", "frame", pooler)(TEXT, VIDEO), pooler=mg.grains.SoftmaxPool())],
    "RetrievalLoss": [
        *loss(mg.RetrievalLoss, scorer=COARSE, criterion=mg.InfoNCE(), gather="none", distillation=0.0),
        entry(mg.RetrievalLoss(mg.MultiGrain(mg.FrameWord()), mg.InfoNCE()), keys=(TEXT, VIDEO), **PAIR),
        entry(mg.RetrievalLoss(COARSE, mg.Sigmoid()), text_queue=None, video_queue=None, **PAIR),
    ],
    "SegmentScorer": [
        entry(lambda **s: mg.cross_encoder.SegmentScorer(**s)(TEXT, VIDEO), scorer=mg.SentenceFrame(), length=2, aggregator="max_max", grain="frame"),
        entry(mg.cross_encoder.SegmentScorer(mg.SentenceFrame(), 2), computes=True, **SIDES),
    ],
    "SentenceFrame": grain(mg.SentenceFrame, aggregator="aosm", bilinear=8),
    "Sigmoid": criterion(mg.Sigmoid, init_logit_scale=1.0, init_logit_bias=-1.0, **BOTH),
    "SoftmaxPool": [entry(lambda temperature: mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool(temperature))(TEXT, VIDEO), temperature=0.1)],
    "TokenNCE": loss(mg.losses.TokenNCE, query="word", candidate="frame", weights="word_weight", criterion=mg.InfoNCE(), gather="none"),
    "TokenWeighted": [
        entry(aggregated(mg.TokenWeighted), dim=8, direction="both"),
        entry(aggregated(mg.TokenWeighted), query_weights="word_weight", direction="query"),
        entry(mg.Grain("word", "frame", mg.TokenWeighted(8)), computes=True, **SIDES),
    ],
    "Tokens": [
        entry(lambda **s: mg.Tokens(**s).normalized().features, computes=True, **MASKS),
        entry(lambda index: mg.Tokens(W, MASK)[index], index=[0, 2]),
    ],
    "TopK": [*aggregator(mg.aggregators.TopK, k=2, direction="both"), entry(aggregated(mg.aggregators.TopK), share=0.5)],
    "VideoSentence": grain(mg.VideoSentence, aggregator=None, bilinear=8),
    "VideoWord": grain(mg.VideoWord, aggregator="mean_max", bilinear=8),
    "WholeBatchLoss": loss(OwnWholeBatchLoss, gather="none"),
    "build_aggregator": [entry(aggregated(mg.aggregators.build_aggregator), name="aosm", temperature=0.1)],
    "cascade_negatives": [entry(mg.losses.cascade_negatives, scores=SCORES, positives=POSITIVES, k=1)],
    "dual_softmax": [entry(mg.hubness.dual_softmax, scores=SCORES, beta=3.0)],
    "dynamic_inverted_softmax": [entry(mg.hubness.dynamic_inverted_softmax, scores=SCORES, bank=SCORES, k=1, beta=3.0)],
    "hard_negatives": [entry(mg.losses.hard_negatives, scores=SCORES, positives=POSITIVES, k=1)],
    "inverted_softmax": [entry(mg.hubness.inverted_softmax, scores=SCORES, bank=SCORES, beta=3.0)],
    "momentum_update": [entry(mg.losses.momentum_update, online=nn.Linear(3, 2), target=nn.Linear(3, 2), decay=0.5)],
    "random_negatives": [entry(mg.losses.random_negatives, positives=POSITIVES, k=1)],
    "ranks": [entry(mg.metrics.ranks, scores=SCORES, positives=IDS, ties="mean")],
    "recipes": [entry(lambda **s: mg.recipes.build(**s).scores(TEXT, VIDEO), name="colbert", dim=8)],
    "register_aggregator": [entry(registered, name="hostile")],
    "rerank": [entry(mg.rerank, scores=SCORES, scorer=COARSE, k=2, **PAIR)],
    "retrieval_metrics": [
        entry(mg.retrieval_metrics, scores=SCORES, targets=IDS, protocol="group_max", ties="mean", hubness="sinkhorn")
    ],
    "score_matrix": [entry(mg.score_matrix, computes=True, scorer=mg.MultiGrain(mg.FrameWord()), block=2, **SIDES)],
    "sinkhorn": [entry(mg.hubness.sinkhorn, scores=SCORES, beta=3.0, iterations=3)],
    "top_k": [entry(mg.top_k, scorer=mg.MultiGrain(mg.FrameWord()), k=2, block=2, **SIDES)],
}


# Types and lists; and what the names of the table are made of, or call with arguments of their own.
UNMET = "Axis LevelAggregator TwoLevel aggregator_classes aggregator_names PROTOCOLS RetrievalMetrics TRANSDUCTIVE"
UNMET += " Encode TemporalLSTM TemporalTransformer Transformer number_of_heads temporal_encoder video_head"
UNMET += " ranks_of_videos summarize"


def test_every_public_name_is_met():
    modules = (mg.aggregators, mg.grains, mg.heads, mg.hubness, mg.losses, mg.metrics)
    names = {name for module in (mg, *modules) for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    assert set(TABLE) == (names - set(UNMET.split())) | {"CrossEncoder", "SegmentScorer", "recipes"}


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=100)
@given(st.data())
def test_property_hostile_values_give_finite_results_or_one_line(name: str, data: st.DataObject):
    which = data.draw(st.integers(0, len(TABLE[name]) - 1), label="entry")
    call, arguments, computes = TABLE[name][which]
    argument = data.draw(st.sampled_from(sorted(arguments)), label="argument")
    value = data.draw(st.sampled_from(sorted(HOSTILE)), label="value")
    meet(call, {**arguments, argument: HOSTILE[value]()}, computes)


def meet(call: Callable[..., object], arguments: Mapping[str, object], computes: bool) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            result = call(**arguments)
    except (*REFUSALS, OSError) as error:
        refused(error)
    else:
        check(result, computes)


def refused(error: Exception) -> None:
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    assert "\n" not in said, said
    assert 0 < len(said) < 500, said
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    assert Path(where).is_relative_to(PACKAGE), f"{where}: {said}"
    assert "expected" in said or "no grain" in said, f"not in our words: {type(error).__name__}: {said}"


def check(result: object, computes: bool) -> None:
    if isinstance(result, Tensor) and result.is_floating_point() and not result.is_meta and not computes:
        assert result.isfinite().all(), result
    elif isinstance(result, mg.Features):
        for name in result.names:
            check(result[name].features, True)
    elif isinstance(result, tuple | list):
        for each in result:
            check(each, computes)
