"""Every bad input is one error that names the argument, says what was expected, and what came."""

# ruff: noqa: E501 (one bad input is one line of the table, so that what is missing can be seen)
from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

import multigrain as mg

NAN = float("nan")
ones = torch.ones


def text(**grains) -> mg.Features:
    return mg.Features(**({"sentence": ones(3, 8), "word": ones(3, 5, 8)} | grains))


def video(**grains) -> mg.Features:
    return mg.Features(**({"video": ones(2, 8), "frame": ones(2, 4, 8)} | grains))


def bad(shape: tuple[int, ...], at: tuple[int, ...], value: float = NAN) -> torch.Tensor:
    """Ones, but for one value, and another like it at the very end: the first is to be named."""
    x = ones(shape)
    x[at] = x.view(-1)[-1] = value
    return x


def holding(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows).bool()


def nested(**settings) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return torch.nested.nested_tensor([ones(2, 3), ones(1, 3)], **settings)


def quantised() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated
        return torch.quantize_per_tensor(ones(2, 3), 1.0, 0, torch.quint8)


def strict() -> mg.MultiGrain:
    return mg.MultiGrain(mg.FrameWord(), strict=True)


class Own(mg.Aggregator):
    def forward(self, sim, query_mask=None, candidate_mask=None):
        return sim.mean()


class Rows(mg.losses.Criterion):
    def rows(self, scores, positives):
        return scores.masked_fill(positives, 0.0)


SIM = ones(2, 3, 4, 5)
SCORER = mg.MultiGrain(mg.VideoSentence())
META = torch.ones(3, 5, dtype=torch.bool, device="meta")

# what is wrong: (the call, the error, words that its message must hold)
ERRORS = {
    # Tokens and Features
    "features not a tensor": (lambda: mg.Features(word=[[1.0]]), TypeError, "word", "tensor [B, D] or [B, L, D]", "list"),
    "features of rank 4": (lambda: mg.Features(word=ones(1, 2, 3, 4)), ValueError, "word", "[B, L, D]", "[1, 2, 3, 4]"),
    "features of rank 1": (lambda: mg.Tokens(ones(3)), ValueError, "features", "[B, D] or [B, L, D]", "[3]"),
    "integer features": (lambda: mg.Features(word=ones(2, 3).long()), TypeError, "word", "floating", "torch.int64"),
    "an empty batch": (lambda: mg.Features(word=ones(0, 3, 4)), ValueError, "word", "at least one item", "[0, 3, 4]"),
    "no token": (lambda: mg.Features(word=ones(2, 0, 4)), ValueError, "word", "at least one", "[2, 0, 4]"),
    "no grain": (lambda: mg.Features(), ValueError, "Features", "at least one grain", "none"),
    "batches that differ": (lambda: mg.Features(word=ones(2, 4), sentence=ones(3, 4)), ValueError, "one batch size", "'word': 2", "'sentence': 3"),
    "devices that differ": (lambda: text(word=ones(3, 5, 8, device="meta")), ValueError, "one device", "'word': 'meta'", "'sentence': 'cpu'"),
    "a mask of another shape": (lambda: text(word=(ones(3, 5, 8), ones(3, 4).bool())), ValueError, "word mask", "[3, 5]", "[3, 4]"),
    "a mask of another dtype": (lambda: text(word=(ones(3, 5, 8), ones(3, 5))), TypeError, "word mask", "torch.bool", "torch.float32"),
    "a mask on another device": (lambda: text(word=(ones(3, 5, 8), META)), ValueError, "word mask", "device cpu", "meta"),
    "a mask that is no tensor": (lambda: text(word=(ones(1, 2, 8), [[True, True]])), TypeError, "word mask", "bool tensor", "list"),
    "a triple": (lambda: mg.Features(word=(ones(1, 2), None, None)), ValueError, "word", "(features, mask)", "3"),
    "features without a name": (lambda: mg.Features({"word": ones(3, 8)}), TypeError, "Features", "by name", "dict"),
    "a grain to keep that is missing": (lambda: text().only("word", "frame"), KeyError, "'frame'", "sentence, word"),
    "a list of names": (lambda: text().only(["word"]), TypeError, "name", "a str", "list"),
    "a tensor among parts": (lambda: mg.Features.cat([text(), ones(2)]), TypeError, "parts[1]", "Features", "Tensor"),
    "a missing grain by name": (lambda: text()["frame"], KeyError, "'frame'", "sentence, word"),
    "an index of two dimensions": (lambda: text()[torch.tensor([[0, 1]])], ValueError, "index", "one dimension", "[1, 2]"),
    "an index of a fraction": (lambda: text()[1.5], TypeError, "index", "whole numbers", "got 1.5"),
    "an index of fractions": (lambda: text()[[0.5, 1.0]], TypeError, "index", "whole numbers", "[0.5, 1.0]"),
    "an index of nothing": (lambda: text()[[]], TypeError, "index", "whole numbers", "[]"),
    "an index of True": (lambda: text()[True], TypeError, "index", "whole numbers", "got True"),
    "an index of a complex number": (lambda: text()[torch.tensor([1j])], TypeError, "index", "whole numbers"),
    "a choice of too few": (lambda: text()[[True, False]], ValueError, "index", "each of 3 items", "2 of them"),
    "indices out of range": (lambda: text()[[0, 7, 9]], IndexError, "index", "-3 to 2", "got 7"),
    "bytes out of range": (lambda: text()[torch.tensor([0, 9], dtype=torch.uint8)], IndexError, "index", "got 9"),
    "an index of many digits": (lambda: text()[10**5000], IndexError, "index", "a huge int"),
    "sparse features": (lambda: mg.Features(word=ones(2, 3).to_sparse()), TypeError, "word", "dense", "torch.sparse_coo"),
    "nested features": (lambda: mg.Features(word=nested()), TypeError, "word", "dense", "nested"),
    "nested and jagged features": (lambda: mg.Features(word=nested(layout=torch.jagged)), TypeError, "word", "dense", "nested"),
    "mkldnn features": (lambda: mg.Features(word=ones(2, 3).to_mkldnn()), TypeError, "word", "dense", "torch._mkldnn"),
    "quantised features": (lambda: mg.Features(word=quantised()), TypeError, "word", "16 to 64 bits", "torch.quint8"),
    "features of 8 bits": (lambda: mg.Features(word=ones(2, 3).to(torch.float8_e4m3fn)), TypeError, "word", "16 to 64 bits", "torch.float8_e4m3fn"),
    "complex features": (lambda: mg.Features(word=ones(2, 3) * 1j), TypeError, "word", "floating", "torch.complex64"),
    "features of True": (lambda: mg.Features(word=ones(2, 3).bool()), TypeError, "word", "floating", "torch.bool"),
    "no module to follow": (lambda: mg.losses.momentum_update(ones(2), torch.nn.Linear(2, 2)), TypeError, "online", "Module", "Tensor"),
    "a copy of another shape": (lambda: mg.losses.momentum_update(torch.nn.Linear(2, 2), torch.nn.Linear(3, 2)), ValueError, "target", "weight", "[2, 3]", "[2, 2]"),
    "a copy of another module": (lambda: mg.losses.momentum_update(torch.nn.Linear(2, 2), mg.cross_encoder.CrossEncoder(8, 1, 2)), ValueError, "target", "other names", "and 15 more"),
    "ranks without values": (lambda: mg.metrics.ranks(ones(2, 2, device="meta")), ValueError, "scores", "meta"),
    "an index out of range": (lambda: text()[3], IndexError, "-3 to 2", "got 3"),
    "nothing to join": (lambda: mg.Features.cat([]), ValueError, "parts", "at least one", "none"),
    "parts of two widths": (lambda: mg.Features.cat([video(), video(frame=ones(2, 4, 5))]), ValueError, "parts[1], grain 'frame'", "width 8", "got 5"),
    "parts that differ": (lambda: mg.Features.cat([text(), video()]), ValueError, "parts[1]", "['sentence', 'word']", "['frame', 'video']"),
    # aggregators
    "an unknown aggregator": (lambda: mg.aggregators.build_aggregator("soft"), ValueError, "aggregator", "mean_mean, mean_max, max_mean, max_max, max_sim, logsumexp, aosm", "'soft'"),
    "an unknown aggregator in a grain": (lambda: mg.Grain("word", "frame", "soft"), ValueError, "aggregator", "aosm, isa", "'soft'"),
    "a registered name again": (lambda: mg.register_aggregator("aosm")(mg.MeanMax), ValueError, "'aosm'", "taken", "AOSM"),
    "registering a function": (lambda: mg.register_aggregator("new")(len), TypeError, "'new'", "subclass of Aggregator", "len"),
    "registering no aggregator": (lambda: mg.register_aggregator("new")(dict), TypeError, "'new'", "subclass of Aggregator", "dict"),
    "an unknown direction": (lambda: mg.MeanMax(direction="up"), ValueError, "direction", "both, query, candidate", "'up'"),
    "a temperature of zero": (lambda: mg.AOSM(temperature=0), ValueError, "temperature", "positive", "got 0"),
    "a negative temperature": (lambda: mg.AOSM(temperature=-0.1), ValueError, "temperature", "positive", "-0.1"),
    "a temperature of NaN": (lambda: mg.LogSumExp(temperature=NAN), ValueError, "temperature", "positive finite", "nan"),
    "an infinite temperature": (lambda: mg.AOSM(temperature=float("inf")), ValueError, "temperature", "finite", "inf"),
    "a temperature in words": (lambda: mg.AOSM(temperature="cold"), TypeError, "temperature", "number", "'cold'"),
    "zero query tokens": (lambda: mg.AOSM(query_tokens=0), ValueError, "query_tokens", "from 1", "got 0"),
    "too many tokens to mix": (lambda: mg.AOSM(query_tokens=3, candidate_tokens=5)(SIM), ValueError, "at most 3 query tokens", "got 4"),
    "a side that is not coarse": (lambda: mg.AOSM(query_tokens=4)(SIM), ValueError, "at most 1 candidate tokens", "got 5"),
    "sim of rank 3": (lambda: mg.MeanMax()(ones(2, 3, 4)), ValueError, "sim", "[query, candidate, query_token, candidate_token]", "[2, 3, 4]"),
    "a query mask that does not fit": (lambda: mg.MeanMax()(SIM, ones(3, 4).bool()), ValueError, "query_mask", "[2, 4]", "[3, 4]"),
    "a candidate mask that does not fit": (lambda: mg.AOSM()(SIM, None, ones(2, 5).bool()), ValueError, "candidate_mask", "[3, 5]", "[2, 5]"),
    "a candidate mask of floats": (lambda: mg.AOSM()(SIM, None, ones(3, 5)), TypeError, "candidate_mask", "torch.bool", "torch.float32"),
    "a sim mask elsewhere": (lambda: mg.AOSM()(SIM, None, META), ValueError, "candidate_mask", "cpu", "meta"),
    "no sim": (lambda: mg.MeanMax()(text()), TypeError, "sim", "Tensor", "Features"),
    "a sim mask in a list": (lambda: mg.AOSM()(SIM, [[True]]), TypeError, "query_mask", "Tensor", "list"),
    # grains
    "an aggregator's class": (lambda: mg.FrameWord(mg.MeanMax), TypeError, "aggregator", "Aggregator", "the class MeanMax"),
    "an aggregator's class for segments": (lambda: mg.cross_encoder.SegmentScorer(SCORER, 2, mg.MaxMax), TypeError, "aggregator", "the class MaxMax"),
    "an aggregator for a name": (lambda: mg.Grain("word", mg.AOSM()), TypeError, "candidate", "str", "AOSM"),
    "a tensor for features": (lambda: mg.FrameWord()(ones(3, 5, 8), video()), TypeError, "query", "Features", "Tensor"),
    "a pooler's class": (lambda: mg.heads.Pool("frame", "video", mg.heads.MeanPool), TypeError, "pooler", "Pooler", "the class MeanPool"),
    "a tensor to pool": (lambda: mg.heads.Pool("frame", "all", mg.heads.MeanPool())(ones(2, 4, 8)), TypeError, "features", "Features", "Tensor"),
    "a grain that a head makes": (lambda: mg.recipes.Encode("frame", "video", torch.nn.Identity())(video()), ValueError, "target", "without 'video'", "features.only"),
    "a tensor to pool by the query": (lambda: mg.grains.PooledGrain("sentence", "frame", mg.grains.SoftmaxPool())(text(), ones(2, 4, 8)), TypeError, "candidate", "Tensor"),
    "widths that differ": (lambda: mg.FrameWord()(text(), video(frame=ones(2, 4, 6))), ValueError, "'word-frame'", "same width", "8 and 6"),
    "sides on two devices": (lambda: mg.VideoSentence()(text(), video().to("meta")), ValueError, "'sentence-video'", "same device", "cpu and meta"),
    "a bilinear of another width": (lambda: mg.FrameWord(bilinear=6)(text(), video()), ValueError, "'word-frame'", "width 6", "got 8"),
    "a bilinear of no width": (lambda: mg.FrameWord(bilinear=0), ValueError, "bilinear", "from 1", "got 0"),
    "tokens without an aggregator": (lambda: mg.Grain("word", "frame")(text(), video()), ValueError, "'word-frame'", "one token on each side", "5 and 4", "aggregator"),
    "a missing grain": (lambda: mg.Grain("phrase", "frame", "aosm")(text(), video()), KeyError, "'phrase'", "sentence, word"),
    # scorer
    "a missing grain in a scorer": (lambda: mg.MultiGrain(mg.VideoSentence(), mg.FrameWord())(text(), mg.Features(video=ones(2, 8))), KeyError, "'frame'", "video"),
    "no grains": (lambda: mg.MultiGrain(), ValueError, "grains", "at least one", "none"),
    "a grain that is none": (lambda: mg.MultiGrain(mg.AOSM()), TypeError, "grains[0]", "Grain", "AOSM"),
    "a grain's class": (lambda: mg.MultiGrain(mg.Grain), TypeError, "grains[0]", "Grain", "the class Grain"),
    "a dictionary for features": (lambda: SCORER(text(), {"video": ones(2, 8)}), TypeError, "candidate", "Features", "dict"),
    "weights by name": (lambda: mg.MultiGrain(mg.FrameWord(), weights={"word-frame": 1.0}), TypeError, "weights", "1 numbers", "{'word-frame': 1.0}"),
    "tensors to read together": (lambda: mg.cross_encoder.CrossEncoder(8, 1, 2).pairs(text(), ones(3, 4, 8)), TypeError, "candidate", "Features", "Tensor"),
    "a width of half": (lambda: mg.recipes.xclip(8.5), TypeError, "width", "integer", "8.5"),
    "grains of one name": (lambda: mg.MultiGrain(mg.FrameWord(), mg.FrameWord("max_max")), ValueError, "grains", "distinct", "word-frame"),
    "too few weights": (lambda: mg.MultiGrain(mg.FrameWord(), weights=[0.5, 0.5]), ValueError, "weights", "1 finite number", "[0.5, 0.5]"),
    "a weight of NaN": (lambda: mg.MultiGrain(mg.FrameWord(), weights=[NAN]), ValueError, "weights", "finite", "nan"),
    "an unknown weighting": (lambda: mg.MultiGrain(mg.FrameWord(), weights="median"), ValueError, "weights", "mean, learned", "'median'"),
    "an unknown backend": (lambda: mg.MultiGrain(mg.FrameWord(), backend="cuda"), ValueError, "backend", "auto, triton, blocked, eager", "'cuda'"),
    "an unknown backend of a grain": (lambda: mg.VideoSentence()(text(), video(), "cuda"), ValueError, "backend", "auto, triton, blocked, eager", "'cuda'"),
    "NaN in strict mode": (lambda: strict()(text(word=bad((3, 5, 8), (1, 1, 0))), video()), ValueError, "word", "finite", "row 1", "token 1"),
    "infinity in strict mode": (lambda: strict()(text(), video(frame=bad((2, 4, 8), (0, 2, 7), float("inf")))), ValueError, "frame", "finite", "row 0", "token 2"),
    "an empty item in strict mode": (lambda: strict()(text(), video(frame=(ones(2, 4, 8), holding([1, 1, 0, 0], [0] * 4)))), ValueError, "frame", "real token", "row 1"),
    # scoring
    "a block of zero": (lambda: mg.score_matrix(SCORER, text(), video(), block=0), ValueError, "block", "from 1", "got 0"),
    "a block of half": (lambda: mg.score_matrix(SCORER, text(), video(), block=0.5), TypeError, "block", "integer", "0.5"),
    "k too large": (lambda: mg.top_k(SCORER, text(), video(), 3), ValueError, "k", "from 1 to 2", "got 3"),
    "k of zero": (lambda: mg.top_k(SCORER, text(), video(), 0), ValueError, "k", "from 1", "got 0"),
    "tensors to search": (lambda: mg.top_k(SCORER, text(), ones(2, 8), 1), TypeError, "candidate", "Features", "Tensor"),
    "a scorer's class": (lambda: mg.score_matrix(mg.MultiGrain, text(), video()), TypeError, "scorer", "the class MultiGrain"),
    "k too large to rerank": (lambda: mg.rerank(ones(3, 2), SCORER, 3, text(), video()), ValueError, "k", "from 1 to 2", "got 3"),
    "dictionaries to rerank": (lambda: mg.rerank(ones(3, 2), SCORER, 2, text(), {"video": ones(2, 8)}), TypeError, "video", "Features", "dict"),
    # losses
    "a criterion's class": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE), TypeError, "criterion", "loss of scores", "the class InfoNCE"),
    "a criterion for a scorer": (lambda: mg.RetrievalLoss(mg.InfoNCE(), SCORER), TypeError, "scorer", "MultiGrain", "got InfoNCE"),
    "an aggregator for a scorer": (lambda: mg.RetrievalLoss(mg.AOSM(), mg.InfoNCE()), TypeError, "scorer", "got AOSM"),
    "a scorer for a criterion": (lambda: mg.RetrievalLoss(SCORER, SCORER), TypeError, "criterion", "loss of scores", "got MultiGrain"),
    "a loss of words for a criterion": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE() + mg.losses.TokenNCE()), TypeError, "criterion", "got TokenNCE", "text"),
    "tensors for a loss": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE())(ones(2, 8), video()), TypeError, "text", "Features", "Tensor"),
    "tensors for words": (lambda: mg.losses.TokenNCE(weights=None)(text(), ones(3, 4, 8)), TypeError, "video", "Features", "Tensor"),
    "tensors to match": (lambda: mg.losses.Matching(mg.cross_encoder.CrossEncoder(8, 1, 2))(ones(3, 5, 8), video()), TypeError, "text", "Features", "Tensor"),
    "a matching scorer's class": (lambda: mg.losses.Matching(mg.cross_encoder.CrossEncoder), TypeError, "scorer", "CrossEncoder", "the class CrossEncoder"),
    "a teacher's class": (lambda: mg.losses.Distillation(SCORER, mg.MultiGrain), TypeError, "teacher", "the class MultiGrain"),
    "features for a queue": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE())(video(), video(), text_queue=video()), TypeError, "text_queue", "FeatureQueue", "Features"),
    "one side of keys": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE())(video(), video(), keys=video()), ValueError, "keys", "(text, video)", "Features(video"),
    "keys of tensors": (lambda: mg.RetrievalLoss(SCORER, mg.InfoNCE())(video(), video(), keys=(ones(2, 8), video())), TypeError, "keys", "Features", "Tensor"),
    "ids to match in a list": (lambda: mg.losses.Matching(mg.cross_encoder.CrossEncoder(8, 1, 2))(text(), text(), [0, 1, 2]), TypeError, "ids", "Tensor", "list"),
    "a tensor to push": (lambda: mg.losses.FeatureQueue(2).push(ones(2, 8)), TypeError, "features", "Features", "Tensor"),
    "one name of weights": (lambda: mg.losses.Decorrelation(weights="idf"), ValueError, "weights", "two names", "'idf'"),
    "a cached loss's class": (lambda: mg.CachedLoss(mg.RetrievalLoss), TypeError, "loss", "Module", "the class RetrievalLoss"),
    "one side encoded": (lambda: mg.CachedLoss(mg.RetrievalLoss(SCORER, mg.InfoNCE()))(lambda _: text(), [0]), ValueError, "encode", "(text, video)", "sentence"),
    "a margin in words": (lambda: mg.losses.MarginRanking("wide"), TypeError, "margin", "number", "'wide'"),
    "a bias of NaN": (lambda: mg.Sigmoid(init_logit_bias=NAN), ValueError, "init_logit_bias", "finite", "nan"),
    "three ids": (lambda: mg.InfoNCE()(ones(2, 2), (torch.arange(2),) * 3), ValueError, "ids", "a pair", "3"),
    "targets in a list": (lambda: mg.InfoNCE()(ones(2, 2), targets=[[1.0]]), TypeError, "targets", "Tensor", "list"),
    "positives in a list": (lambda: mg.losses.random_negatives([[True]]), TypeError, "positives", "Tensor", "list"),
    "a temperature of no loss": (lambda: mg.recipes.frozen_in_time(0.0), ValueError, "temperature", "positive", "0.0"),
    "scores of rank 3": (lambda: mg.InfoNCE()(ones(2, 2, 2)), ValueError, "scores", "[queries, candidates]", "[2, 2, 2]"),
    "scores that are no square": (lambda: mg.InfoNCE()(ones(2, 3)), ValueError, "scores", "square", "[2, 3]", "a pair of ids"),
    "integer scores": (lambda: mg.InfoNCE()(ones(2, 2).long()), TypeError, "scores", "floating", "torch.int64"),
    "ids of another length": (lambda: mg.InfoNCE()(ones(2, 2), torch.arange(3)), ValueError, "ids", "[2]", "[3]"),
    "ids of floats": (lambda: mg.InfoNCE()(ones(2, 2), ones(2)), TypeError, "ids", "integers", "torch.float32"),
    "a query without a positive": (lambda: mg.InfoNCE()(ones(2, 2), (torch.tensor([1, 2]), torch.tensor([1, 1]))), ValueError, "ids", "every query", "query 1"),
    "a candidate without a positive": (lambda: mg.InfoNCE()(ones(2, 2), (torch.tensor([1, 1]), torch.tensor([1, 2]))), ValueError, "ids", "every candidate", "candidate 1"),
    "a smoothing of one": (lambda: mg.InfoNCE(label_smoothing=1.0), ValueError, "label_smoothing", "[0, 1)", "1.0"),
    "a smoothing of NaN": (lambda: mg.InfoNCE(label_smoothing=NAN), ValueError, "label_smoothing", "[0, 1)", "nan"),
    "a scale above its limit": (lambda: mg.InfoNCE(init_logit_scale=9.0), ValueError, "init_logit_scale", "max_logit_scale", "9.0"),
    "an unknown reduction": (lambda: mg.InfoNCE(reduction="none"), ValueError, "reduction", "mean, sum", "'none'"),
    # what is the caller's own
    "an aggregator of another shape": (lambda: mg.Grain("word", "frame", Own())(text(), video()), ValueError, "scores of Own", "[3, 2]", "[]"),
    "an aggregator of another shape, in blocks": (lambda: mg.Grain("word", "frame", Own())(text(), video(), "blocked"), ValueError, "scores of Own", "[3, 2]", "[]"),
    "a criterion of another shape": (lambda: Rows()(ones(3, 3)), ValueError, "rows of Rows", "[3]", "[3, 3]"),
    "a loss for a scorer": (lambda: mg.score_matrix(mg.RetrievalLoss(SCORER, mg.InfoNCE()), text(), video()[[0, 1, 1]]), ValueError, "scores of RetrievalLoss", "[3, 3]", "[]"),
    "ids in a list": (lambda: mg.InfoNCE()(ones(2, 2), [0, 1]), TypeError, "ids of the queries", "Tensor", "list"),
    "scores in a list": (lambda: mg.retrieval_metrics([[1.0]]), TypeError, "scores", "Tensor", "list"),
    # metrics
    "positives to rank in a list": (lambda: mg.metrics.ranks(ones(2, 2), [0, 1]), TypeError, "positives", "Tensor", "list"),
    "an unknown correction": (lambda: mg.retrieval_metrics(ones(2, 2), hubness="qb"), ValueError, "hubness", "dual_softmax, inverted_softmax, sinkhorn", "'qb'"),
    "NaN among scores": (lambda: mg.retrieval_metrics(bad((3, 3), (1, 2))), ValueError, "scores", "NaN", "row 1", "column 2"),
    "NaN among ranked scores": (lambda: mg.metrics.ranks(bad((2, 3), (0, 1)), torch.tensor([0, 0])), ValueError, "scores", "NaN", "row 0", "column 1"),
    "metrics of no square": (lambda: mg.retrieval_metrics(ones(2, 3)), ValueError, "scores", "square", "[2, 3]", "pass targets"),
    "ranks of no square": (lambda: mg.metrics.ranks(ones(2, 3)), ValueError, "scores", "square", "[2, 3]", "pass positives"),
    "an unknown tie rule": (lambda: mg.metrics.ranks(ones(2, 2), ties="random"), ValueError, "ties", "optimistic, mean, pessimistic", "'random'"),
    "an unknown protocol": (lambda: mg.retrieval_metrics(ones(2, 2), protocol="best"), ValueError, "protocol", "diagonal, group_max, all_captions", "'best'"),
    "targets for the diagonal": (lambda: mg.retrieval_metrics(ones(2, 2), torch.arange(2)), ValueError, "targets", "None", "diagonal"),
    "no targets": (lambda: mg.retrieval_metrics(ones(3, 2), protocol="group_max"), ValueError, "targets", "video of each text", "None"),
    "a target out of range": (lambda: mg.retrieval_metrics(ones(3, 2), torch.tensor([0, 1, 2]), "group_max"), ValueError, "targets", "from 0 to 1", "got 2", "position 2"),
    "a video without a text": (lambda: mg.retrieval_metrics(ones(2, 2), torch.tensor([0, 0]), "all_captions"), ValueError, "targets", "every video", "video 1"),
    "positives of another shape": (lambda: mg.metrics.ranks(ones(2, 3), ones(2, 2).bool()), ValueError, "positives", "[2, 3]", "[2, 2]"),
    "a query without a positive to rank": (lambda: mg.metrics.ranks(ones(2, 2), holding([1, 0], [0, 0])), ValueError, "positives", "query 1"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", ERRORS)
def test_bad_input_is_one_error_that_says_what_was_expected_and_what_came(wrong):
    call, error, *parts = ERRORS[wrong]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    for part in parts:
        assert part in message, f"{wrong}: {part!r} is missing from {message!r}"
    assert "\n" not in message, f"{wrong}: one sentence, not {message!r}"


def test_numbers_of_numpy_are_numbers():
    assert mg.losses.FeatureQueue(np.int64(3)).size == 3
    assert mg.AOSM(np.float32(0.5)).inner.temperature == 0.5
    assert mg.losses.MarginRanking(np.float32(0.5)).margin == 0.5


def test_nan_behind_a_mask_is_no_error_in_strict_mode():
    words = bad((3, 5, 8), (1, 4, 0))
    assert strict()(text(word=(words, holding(*[[1, 1, 1, 1, 0]] * 3))), video()).isfinite().all()


@pytest.mark.parametrize("content", ["nothing", "text", "the half of it", "other tensors", "another dictionary"])
def test_a_damaged_or_foreign_file_of_features_is_named(tmp_path, content):
    path = tmp_path / "text.features"
    text().save(path)
    if content == "other tensors":
        torch.save(ones(2, 3), path)
    elif content == "another dictionary":
        torch.save({"word": ones(2, 3)}, path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"nothing": b"", "text": b"not ours", "the half of it": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: damaged, or no file of this kind"):
        mg.Features.load(path)
