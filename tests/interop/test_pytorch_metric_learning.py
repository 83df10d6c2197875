"""pytorch-metric-learning's losses, miners, memory and metrics over our scores, and our criterion as its loss."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import pytest
import pytorch_metric_learning as partner
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor, nn

import multigrain as mg
from multigrain.interop.pytorch_metric_learning import CriterionLoss, FeatureDistance, MetricCriterion, ScoreDistance

NAME = "multigrain.interop.pytorch_metric_learning"
IDS = torch.tensor([0, 1, 2, 0, 3, 2])


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text, video = (torch.randn(6, 8, generator=generator, requires_grad=True) for _ in range(2))
    return text, video


def cosines(text: Tensor, video: Tensor) -> Tensor:
    return mg.Grain("a", "b")(mg.Features(a=text), mg.Features(b=video))


LOSSES = {
    "NTXent": lambda **k: losses.NTXentLoss(temperature=0.1, **k),
    "SupCon": lambda **k: losses.SupConLoss(temperature=0.1, **k),
    "MultiSimilarity": lambda **k: losses.MultiSimilarityLoss(**k),
    "Contrastive": lambda **k: losses.ContrastiveLoss(pos_margin=1, neg_margin=0, **k),
    "Triplet": lambda **k: losses.TripletMarginLoss(margin=0.2, **k),
    "Circle": lambda **k: losses.CircleLoss(**k),
    "TupletMargin": lambda **k: losses.TupletMarginLoss(**k),
}
MINERS = {
    "all pairs": lambda **k: None,
    "MultiSimilarityMiner": lambda **k: miners.MultiSimilarityMiner(epsilon=0.3, **k),
    "TripletMarginMiner": lambda **k: miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", **k),
}


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_its_own_cosines(loss: str, miner: str):
    text, video = vectors()
    theirs, mined = LOSSES[loss](distance=CosineSimilarity()), MINERS[miner](distance=CosineSimilarity())
    parts = []
    for anchors, references in ((text, video), (video, text)):
        labels, ref_labels = IDS, IDS.clone()
        pairs = None if mined is None else mined(anchors, labels, references, ref_labels)
        parts.append(theirs(anchors, labels, pairs, references, ref_labels))
    expected = sum(parts) / 2
    ours = MetricCriterion(LOSSES[loss](distance=ScoreDistance()), MINERS[miner](distance=ScoreDistance()))
    got = ours(cosines(text, video), IDS)
    assert got > 0
    close(got, expected)
    close(torch.autograd.grad(got, [text, video]), torch.autograd.grad(expected, [text, video]))


def test_ntxent_of_single_positives_and_supcon_are_infonce():
    scores, infonce = cosines(*vectors()).detach(), mg.InfoNCE(init_logit_scale=math.log(10))
    close(MetricCriterion(LOSSES["NTXent"](distance=ScoreDistance()))(scores), infonce(scores))
    close(MetricCriterion(LOSSES["SupCon"](distance=ScoreDistance()))(scores, IDS), infonce(scores, IDS))
    ids = (IDS[:4], torch.tensor([2, 1, 0, 0, 1]))
    scores = scores[:4, :5]
    close(MetricCriterion(LOSSES["SupCon"](distance=ScoreDistance()))(scores, ids), infonce(scores, ids))
    by_query = MetricCriterion(LOSSES["NTXent"](distance=ScoreDistance()), direction="query")
    close(by_query(scores[:, :4]), F.cross_entropy(10 * scores[:, :4], torch.arange(4)))


def test_it_trains_a_scorer_of_tokens():
    generator = torch.Generator().manual_seed(0)
    scorer = mg.MultiGrain(mg.FrameWord(), mg.VideoWord("mean_max"), weights="learned")
    criterion = MetricCriterion(
        losses.MultiSimilarityLoss(distance=ScoreDistance()), miners.MultiSimilarityMiner(distance=ScoreDistance())
    )
    text = mg.Features(word=torch.randn(6, 5, 8, generator=generator))
    video = mg.Features(video=torch.randn(6, 8, generator=generator), frame=torch.randn(6, 4, 8, generator=generator))
    mg.RetrievalLoss(scorer, criterion)(text, video, IDS).backward()
    assert scorer.weight_logits is not None
    assert scorer.weight_logits.grad is not None and scorer.weight_logits.grad.abs().sum() > 0


def test_its_criterion_adds_up_with_ours():
    scores = cosines(*vectors())
    theirs, ours = MetricCriterion(LOSSES["MultiSimilarity"](distance=ScoreDistance())), mg.InfoNCE()
    both = theirs.named("pairs") + 0.5 * ours
    close(both(scores, IDS), theirs(scores, IDS) + 0.5 * ours(scores, IDS))
    text, video = (mg.Features(**{name: x}) for name, x in zip("ab", vectors(), strict=True))
    loss = mg.RetrievalLoss(mg.Grain("a", "b"), both)
    close(loss(text, video, IDS), both(scores, IDS))
    assert set(loss.terms) == {"pairs", "InfoNCE"}


def test_our_criterion_as_its_loss():
    text, video = vectors()
    infonce = mg.InfoNCE()
    expected = infonce(cosines(text, video), IDS)
    close(CriterionLoss()(text, IDS, ref_emb=video, ref_labels=IDS.clone()), expected)
    by_distance = CriterionLoss(infonce, LpDistance())
    minus = -torch.cdist(F.normalize(text), F.normalize(video))
    close(by_distance(text, IDS, ref_emb=video, ref_labels=IDS.clone()), infonce(minus, IDS))
    with pytest.raises(ValueError, match="expected labels, ref_emb and ref_labels"):
        CriterionLoss()(text, IDS)
    with pytest.raises(ValueError, match="indices_tuple: expected None"):
        CriterionLoss()(text, IDS, (IDS,) * 4, video, IDS.clone())
    # Its docstring says why not: should the package take it one day, say so there.
    with pytest.raises(ValueError, match="expected labels, ref_emb and ref_labels"):
        losses.MultipleLosses([CriterionLoss()])(text, IDS)
    for wrapper in (lambda loss: losses.CrossBatchMemory(loss, 8), losses.SelfSupervisedLoss):
        with pytest.raises(Exception, match="not supported for CriterionLoss"):
            wrapper(CriterionLoss())


def problem() -> tuple[nn.Module, mg.Features, mg.Features, FeatureDistance]:
    generator = torch.Generator().manual_seed(0)
    words, frames, videos = (torch.randn(*shape, 8, generator=generator) for shape in ((6, 5), (6, 4), (6,)))
    real = torch.arange(5) < torch.tensor([[5], [1], [3], [2], [4], [5]])
    words = words.masked_fill(~real[..., None], torch.nan).requires_grad_()
    text, video = mg.Features(word=(words, real)), mg.Features(video=videos, frame=frames)
    scorer = mg.MultiGrain(mg.FrameWord(), mg.VideoWord("mean_max"))
    return scorer, text, video, FeatureDistance(scorer, {"word": (7, 8)}, {"video": (1, 8), "frame": (4, 8)})


def test_packed_features_score_as_they_are():
    scorer, text, video, distance = problem()
    queries, candidates = distance.pack_queries(text), distance.pack_candidates(video)
    assert queries.shape == candidates.shape == (6, distance.embedding_size)
    scores = scorer(text, video)
    close(distance(queries, candidates), scores)
    close(distance.pairwise_distance(queries, candidates), scores.diagonal())
    back = FeatureDistance(scorer, distance.query, distance.candidate, reverse=True)
    close(back(candidates, queries), scores.T)
    close(back.pairwise_distance(candidates, queries), scores.diagonal())
    loss = losses.NTXentLoss(0.1, distance=distance)(queries, IDS, ref_emb=candidates, ref_labels=IDS.clone())
    words = text["word"].features
    expected = MetricCriterion(losses.NTXentLoss(0.1, distance=ScoreDistance()), direction="query")(scores, IDS)
    close(torch.autograd.grad(loss, words), torch.autograd.grad(expected, words))
    with pytest.raises(ValueError, match="word: expected at most 4 tokens of width 8"):
        FeatureDistance(scorer, {"word": (4, 8)}, distance.candidate).pack_queries(text)


def test_cross_batch_memory_holds_videos():
    scorer, text, video, distance = problem()
    memory = losses.CrossBatchMemory(
        losses.SupConLoss(temperature=0.1, distance=distance), distance.embedding_size, memory_size=6
    )
    of_memory = torch.tensor([False] * 3 + [True] * 3)
    for rows in (slice(0, 3), slice(3, 6)):
        embeddings = torch.cat([distance.pack_queries(text[rows]), distance.pack_candidates(video[rows])])
        loss = memory(embeddings, torch.cat([torch.arange(6)[rows]] * 2), enqueue_mask=of_memory)
    # The second batch's texts, among the videos of both.
    logits = 10 * scorer(text[3:6], video)
    close(loss, F.cross_entropy(logits, torch.tensor([3, 4, 5])))
    loss.backward()
    words = text["word"].features
    assert words.grad is not None and words.grad.isfinite().all() and words.grad[3:].abs().sum() > 0


def test_accuracy_calculator_agrees_with_ours():
    scores, ids = cosines(*vectors()).detach(), torch.arange(6)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_reciprocal_rank", "mean_average_precision"),
        knn_func=CustomKNN(ScoreDistance(), batch_size=4),
        device=torch.device("cpu"),
    )
    found = calculator.get_accuracy(scores, ids, scores.T, ids, ref_includes_query=False)
    ranks = mg.metrics.ranks(scores)
    assert found["precision_at_1"] == pytest.approx(mg.retrieval_metrics(scores)["t2v"]["R@1"] / 100)
    assert found["mean_reciprocal_rank"] == pytest.approx((1 / ranks).mean().item())
    assert found["mean_average_precision"] == pytest.approx((1 / ranks).mean().item())


def test_the_traps_are_closed():
    scores = cosines(*vectors()).detach()
    distance, before = ScoreDistance(), scores.clone()
    distance(scores, scores.T).fill_(torch.inf)
    assert torch.equal(scores, before)
    with pytest.raises(ValueError, match=r"ref_emb: expected the transpose of the scores .*, got nothing"):
        losses.NTXentLoss(distance=distance)(scores, IDS)
    with pytest.raises(ValueError, match=r"the transpose of the scores \[6, 4\], got \[6, 4\]"):
        distance(scores[:, :4], scores[:, :4].clone())
    _, text, _, packed = problem()
    with pytest.raises(ValueError, match="ref_emb: expected packed features of the other side, got nothing"):
        losses.NTXentLoss(distance=packed)(packed.pack_queries(text), torch.arange(6) // 2)
    with pytest.raises(NotImplementedError, match="scores of all pairs"):
        distance.pairwise_distance(scores, scores)
    with pytest.raises(ValueError, match=r"loss: expected distance=ScoreDistance\(\), got CosineSimilarity"):
        MetricCriterion(losses.NTXentLoss())
    with pytest.raises(ValueError, match=r"miner: expected distance=ScoreDistance\(\)"):
        MetricCriterion(losses.NTXentLoss(distance=distance), miners.MultiSimilarityMiner())
    with pytest.raises(TypeError, match=r"criterion: .* got NTXentLoss, which reads embeddings; .*MetricCriterion"):
        mg.RetrievalLoss(mg.Grain("a", "b"), losses.NTXentLoss())
    with pytest.raises(ValueError, match=r"loss: expected a pos_margin above neg_margin, .* got 0 and 1"):
        MetricCriterion(losses.ContrastiveLoss(distance=distance))
    with pytest.raises(TypeError, match="loss: expected a Module, got the class NTXentLoss"):
        MetricCriterion(losses.NTXentLoss)
    criterion = MetricCriterion(losses.NTXentLoss(distance=distance))
    with pytest.raises(ValueError, match="expected a square matrix"):
        criterion(scores[:4])
    with pytest.raises(ValueError, match=r"ids of the candidates: expected shape \[6\]"):
        criterion(scores, (IDS, IDS[:4]))


@pytest.mark.parametrize("version", [None, "1.7.3", "2.7.0"])
def test_a_missing_or_old_package_is_named(version: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, NAME)
    if version is None:
        monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    else:
        monkeypatch.setattr(partner, "__version__", version)
    expected = "expected version 2.8 or newer" + ("" if version is None else f", got {version}")
    with pytest.raises(ImportError, match=expected) as caught:
        importlib.import_module(NAME)
    assert 'multigrain[metric]"' in str(caught.value)
