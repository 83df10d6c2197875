"""InfoNCE and RetrievalLoss against the oracle, torch's cross-entropy, and what a loss must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from tests import oracle
from tests.strategies import close, numbers, pairs

smoothings = st.sampled_from([0.0, 0.1, 0.7])
scales = st.floats(-1.0, 4.0)


@st.composite
def squares(draw: st.DrawFn) -> Tensor:
    size = draw(st.integers(1, 6))
    return numbers(draw, size, size).tanh()


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [q, c] with ids such that every row and column has a positive, and often several."""
    ids = draw(st.lists(st.integers(-2, 2), min_size=1, max_size=5, unique=True))
    sides = [draw(st.permutations(ids + draw(st.lists(st.sampled_from(ids), max_size=4)))) for _ in range(2)]
    return numbers(draw, *map(len, sides)).tanh(), *map(torch.tensor, sides)


def info_nce(device: torch.device, scale: float = 1.0, **settings) -> mg.InfoNCE:
    return mg.InfoNCE(init_logit_scale=scale, **settings).double().to(device)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@given(squares(), scales, smoothings)
def test_property_info_nce_on_the_diagonal_equals_oracle(reduction, device, scores, scale, smoothing):
    criterion = info_nce(device, scale, label_smoothing=smoothing, reduction=reduction)
    diagonal = range(len(scores))
    expected = oracle.info_nce(scores.tolist(), criterion.logit_scale.item(), diagonal, diagonal, smoothing, reduction)
    close(criterion(scores.to(device)), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@given(labelled(), scales, smoothings)
def test_property_info_nce_with_ids_equals_oracle(reduction, device, problem, scale, smoothing):
    scores, queries, candidates = problem
    criterion = info_nce(device, scale, label_smoothing=smoothing, reduction=reduction)
    expected = oracle.info_nce(
        scores.tolist(), criterion.logit_scale.item(), queries.tolist(), candidates.tolist(), smoothing, reduction
    )
    loss = criterion(scores.to(device), (queries.to(device), candidates.to(device)))
    close(loss, torch.tensor(expected, dtype=torch.float64))


@given(squares(), scales, smoothings)
def test_property_info_nce_is_torch_s_cross_entropy_both_ways(device, scores, scale, smoothing):
    criterion, scores = info_nce(device, scale, label_smoothing=smoothing), scores.to(device)
    logits, diagonal = criterion.logit_scale.exp() * scores, torch.arange(len(scores), device=device)
    both = (F.cross_entropy(x, diagonal, label_smoothing=smoothing) for x in (logits, logits.T))
    close(criterion(scores), sum(both) / 2, 1e-13)


@given(squares(), smoothings, st.data())
def test_property_ids_are_names_and_nothing_else(device, scores, smoothing, data):
    """Distinct ids are the diagonal; equal ones are positives, whatever they are called."""
    criterion, scores = info_nce(device, label_smoothing=smoothing), scores.to(device)
    shifted = 7 * torch.arange(len(scores), device=device) - 100
    close(criterion(scores, shifted), criterion(scores), 1e-13)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores))))
    ids = ids.to(device)
    close(criterion(scores, 5 - 3 * ids), criterion(scores, ids), 1e-13)
    close(criterion(scores, (ids, ids)), criterion(scores, ids), 1e-13)


@given(squares(), st.randoms(use_true_random=False), st.data())
def test_property_the_order_of_pairs_changes_no_loss_and_permutes_gradients(device, scores, random, data):
    order = torch.tensor(random.sample(range(len(scores)), len(scores)), device=device)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))))
    ids, scores = ids.to(device), scores.to(device).requires_grad_()
    criterion = info_nce(device, label_smoothing=0.1)
    loss, shuffled = criterion(scores, ids), criterion(scores[order][:, order], ids[order])
    close(shuffled, loss, 1e-13)
    close(torch.autograd.grad(shuffled, scores)[0], torch.autograd.grad(loss, scores)[0], 1e-13)


@given(labelled(), st.floats(-3.0, 3.0))
def test_property_loss_is_blind_to_sides_and_to_a_common_shift(device, problem, shift):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion = info_nce(device, label_smoothing=0.1)
    loss = criterion(scores, (queries, candidates))
    close(criterion(scores.T, (candidates, queries)), loss, 1e-13)
    close(criterion(scores + shift, (queries, candidates)), loss, 1e-11)


@given(squares(), st.floats(0.5, 20.0))
def test_property_logit_scale_is_clamped_in_training_and_keeps_its_gradient(device, scores, overshoot):
    criterion, scores = info_nce(device, max_logit_scale=2.0), scores.to(device)
    with torch.no_grad():
        criterion.logit_scale.fill_(2.0 + overshoot)
    evaluated = criterion.eval()(scores)
    assert criterion.logit_scale.item() == 2.0 + overshoot  # evaluation changes no parameter
    loss = criterion.train()(scores)
    assert criterion.logit_scale.item() == 2.0
    at_limit = info_nce(device, 2.0, max_logit_scale=2.0)
    close(loss, at_limit(scores), 1e-13)
    gradients = [torch.autograd.grad(c(scores), c.logit_scale)[0] for c in (criterion, at_limit)]
    close(*gradients, 1e-13)
    assert len(scores) == 1 or gradients[0] != 0
    assert evaluated.isfinite()


def test_defaults_are_those_of_clip(device):
    criterion = mg.InfoNCE().to(device)
    assert criterion.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert criterion.max_logit_scale == pytest.approx(math.log(100))
    assert criterion.logit_scale.requires_grad
    assert not mg.InfoNCE(learn_logit_scale=False).logit_scale.requires_grad


@settings(max_examples=5)
@given(labelled(), smoothings)
def test_property_info_nce_passes_gradcheck_on_scores_and_scale(device, problem, smoothing):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion = info_nce(device, label_smoothing=smoothing)

    def loss(scores, _):
        return criterion(scores, (queries, candidates))

    assert torch.autograd.gradcheck(loss, (scores.requires_grad_(), criterion.logit_scale))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(labelled())
def test_property_half_scores_lose_in_fp32_and_autocast_changes_nothing(half, device, problem):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion, rounded = mg.InfoNCE(label_smoothing=0.1).to(device), scores.to(half)
    loss = criterion(rounded, (queries, candidates))
    assert loss.dtype == torch.float32
    close(loss, criterion(rounded.float(), (queries, candidates)), 0.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(criterion(rounded, (queries, candidates)), loss, 0.0)


@given(pairs(), st.data())
def test_property_retrieval_loss_is_the_criterion_of_the_scores(device, pair, data):
    size = min(len(pair.text), len(pair.video))
    text, video = pair.to(device).text[:size], pair.to(device).video[:size]
    scorer, criterion = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord()), info_nce(device)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), device=device)
    loss = mg.RetrievalLoss(scorer, criterion)
    close(loss(text, video), criterion(scorer(text, video)), 0.0)
    close(loss(text, video, ids), criterion(scorer(text, video), ids), 0.0)
