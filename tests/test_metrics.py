"""Ranks and retrieval metrics against brute force, ties and many captions included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from multigrain import metrics
from tests import oracle
from tests.strategies import close, numbers

TIES = ("mean", "optimistic", "pessimistic")
every_rule = pytest.mark.parametrize("ties", TIES)


@st.composite
def tables(draw: st.DrawFn, square: bool = False) -> Tensor:
    """Scores up to 12 x 12, half of them on a grid so coarse that ties are everywhere."""
    q = draw(st.integers(1, 12))
    x = numbers(draw, q, q if square else draw(st.integers(1, 12)))
    return x.round() if draw(st.booleans()) else x


@st.composite
def captioned(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores [texts, videos] and each text's video; every video has a text, some have many."""
    videos = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, videos - 1), max_size=8))
    targets = torch.tensor(draw(st.permutations([*range(videos), *extra])))
    x = numbers(draw, len(targets), videos)
    return x.round() if draw(st.booleans()) else x, targets


def judged(scores: Tensor, positives: Tensor, ties: str) -> Tensor:
    ranks = [oracle.rank(s, p, ties) for s, p in zip(scores.tolist(), positives.tolist(), strict=True)]
    return torch.tensor(ranks, dtype=torch.float64)


@every_rule
@given(tables(), st.data(), st.integers(1, 5))
def test_property_ranks_equal_brute_force(ties, device, scores, data, chunk):
    """One positive per query by index, several by a bool matrix; however many rows are compared at a time."""
    q, c = scores.shape
    own = torch.tensor(data.draw(st.lists(st.integers(0, c - 1), min_size=q, max_size=q)))
    many = torch.nn.functional.one_hot(own, c).bool()
    expected = judged(scores, many, ties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ELEMENTS", chunk * c)
        close(mg.metrics.ranks(scores.to(device), own.to(device), ties), expected, 0.0)
        close(mg.metrics.ranks(scores.to(device), many.to(device), ties), expected, 0.0)
        many |= torch.tensor(data.draw(st.lists(st.booleans(), min_size=q * c, max_size=q * c))).view(q, c)
        close(mg.metrics.ranks(scores.to(device), many.to(device), ties), judged(scores, many, ties), 0.0)


@every_rule
@given(tables(square=True))
def test_property_diagonal_metrics_equal_brute_force(ties, device, scores):
    result = mg.retrieval_metrics(scores.to(device), ties=ties)
    expected = oracle.retrieval_metrics(scores.tolist(), range(len(scores)), "diagonal", ties)
    assert result["t2v"] == pytest.approx(expected["t2v"])
    assert result["v2t"] == pytest.approx(expected["v2t"])
    assert (result["protocol"], result["ties"]) == ("diagonal", ties)


@every_rule
@pytest.mark.parametrize("protocol", ["group_max", "all_captions"])
@given(captioned(), st.integers(1, 40))
def test_property_multi_caption_metrics_equal_brute_force(protocol, ties, device, problem, elements):
    scores, targets = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ELEMENTS", elements)
        result = mg.retrieval_metrics(scores.to(device), targets.to(device), protocol, ties)
    expected = oracle.retrieval_metrics(scores.tolist(), targets.tolist(), protocol, ties)
    assert result["t2v"] == pytest.approx(expected["t2v"])
    assert result["v2t"] == pytest.approx(expected["v2t"])
    assert (result["protocol"], result["ties"]) == (protocol, ties)


@every_rule
@given(captioned())
def test_property_group_max_agrees_at_one_and_is_easier_beyond(ties, device, problem):
    scores, targets = (x.to(device) for x in problem)
    grouped, every = (mg.retrieval_metrics(scores, targets, p, ties) for p in ("group_max", "all_captions"))
    assert grouped["t2v"] == every["t2v"]
    assert grouped["v2t"]["R@1"] == every["v2t"]["R@1"]
    assert all(grouped["v2t"][k] >= every["v2t"][k] for k in ("R@5", "R@10"))
    assert all(grouped["v2t"][k] <= every["v2t"][k] for k in ("MdR", "MnR"))


@every_rule
@given(tables(square=True))
def test_property_protocols_agree_on_one_caption_a_video(ties, device, scores):
    scores, targets = scores.to(device), torch.arange(len(scores), device=device)
    plain = mg.retrieval_metrics(scores, ties=ties)
    for protocol in ("group_max", "all_captions"):
        assert mg.retrieval_metrics(scores, targets, protocol, ties) == plain | {"protocol": protocol}


@every_rule
@given(tables(square=True), st.randoms(use_true_random=False), st.floats(0.1, 9.0))
def test_property_ranks_follow_items_and_depend_on_order_alone(ties, device, scores, random, factor):
    scores = scores.to(device)
    order = torch.tensor(random.sample(range(len(scores)), len(scores)), device=device)
    ranks = mg.metrics.ranks(scores, ties=ties)
    close(mg.metrics.ranks(scores[order][:, order], ties=ties), ranks[order], 0.0)
    close(mg.metrics.ranks((factor * scores).exp(), ties=ties), ranks, 0.0)


@given(tables(square=True))
def test_property_tie_rules_bracket_the_mean_and_leave_the_scores_alone(device, scores):
    scores = scores.to(device)
    before = scores.clone()
    best, middle, worst = (mg.metrics.ranks(scores, ties=ties) for ties in ("optimistic", "mean", "pessimistic"))
    close((best + worst) / 2, middle, 0.0)
    assert (best >= 1).all()
    assert (worst <= len(scores)).all()
    assert (best <= worst).all()
    mg.retrieval_metrics(scores, torch.arange(len(scores), device=device), "group_max")
    assert torch.equal(scores, before)


@pytest.mark.parametrize("size", [1, 4, 11])
def test_property_perfect_and_indifferent_scores_have_the_metrics_of_definition(size, device):
    """The original's count lists ties twice: its constant matrix has more ranks than queries. Ours has one each."""
    perfect = mg.retrieval_metrics(torch.eye(size, device=device))
    assert perfect["t2v"] == perfect["v2t"] == {"R@1": 100, "R@5": 100, "R@10": 100, "MdR": 1, "MnR": 1}
    constant = torch.zeros(size, size, device=device)
    for ties, rank in (("optimistic", 1), ("mean", (size + 1) / 2), ("pessimistic", size)):
        direction = mg.retrieval_metrics(constant, ties=ties)["t2v"]
        assert (direction["MdR"], direction["MnR"]) == (rank, rank)
        assert [direction[f"R@{k}"] for k in (1, 5, 10)] == [100 * (rank <= k) for k in (1, 5, 10)]
