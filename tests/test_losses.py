"""InfoNCE and RetrievalLoss against the oracle, torch's cross-entropy and two other libraries; soft targets, too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
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


def test_logit_scale_is_held_between_its_limits_and_starts_there(device):
    criterion = mg.InfoNCE(1.0, min_logit_scale=0.5, max_logit_scale=2.0).to(device)
    scores = torch.randn(3, 3, device=device)
    for value, held in ((-3.0, 0.5), (1.5, 1.5), (7.0, 2.0)):
        with torch.no_grad():
            criterion.logit_scale.fill_(value)
        criterion(scores)
        assert criterion.logit_scale.item() == held
    with pytest.raises(ValueError, match=r"init_logit_scale: .* from min_logit_scale = 0.5 up to .* = 2.0, got 0.0"):
        mg.InfoNCE(0.0, min_logit_scale=0.5, max_logit_scale=2.0)


@pytest.mark.parametrize("criterion", [mg.InfoNCE, mg.Sigmoid])
def test_an_excluded_pair_of_the_lowest_score_weighs_nothing(device, criterion):
    lowest = torch.finfo(torch.float32).min
    scores = torch.tensor([[0.3, lowest, 0.1], [0.2, 0.4, 0.0], [0.1, 0.3, 0.2]], device=device)
    results = []
    for x in (scores.clone(), scores.clamp_min(-1e4)):
        made = criterion().to(device)
        loss = made(x.requires_grad_())
        loss.backward()
        results.append([loss, x.grad, made.logit_scale.grad])
    for found, expected in zip(*results, strict=True):
        close(found, expected, 1e-6)


def test_defaults_are_those_of_clip(device):
    criterion = mg.InfoNCE().to(device)
    assert criterion.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert criterion.max_logit_scale == pytest.approx(math.log(100))
    assert criterion.logit_scale.requires_grad
    assert not mg.InfoNCE(learn_logit_scale=False).logit_scale.requires_grad


@given(pairs(), st.data())
def test_property_retrieval_loss_is_the_criterion_of_the_scores(device, pair, data):
    size = min(len(pair.text), len(pair.video))
    text, video = pair.to(device).text[:size], pair.to(device).video[:size]
    scorer, criterion = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord()), info_nce(device)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), device=device)
    loss = mg.RetrievalLoss(scorer, criterion)
    close(loss(text, video), criterion(scorer(text, video)), 0.0)
    close(loss(text, video, ids), criterion(scorer(text, video), ids), 0.0)


def test_ids_go_where_the_scores_are():
    """As a data loader leaves them on the CPU; the meta device stands for any other."""
    loss = mg.RetrievalLoss(mg.Grain("sentence", "video"), mg.InfoNCE().to("meta"))
    x = torch.ones(3, 4, device="meta")
    assert loss(mg.Features(sentence=x), mg.Features(video=x), torch.tensor([0, 1, 1])).device.type == "meta"


@given(labelled(), smoothings)
def test_property_targets_are_normalised_in_rows_and_in_columns(device, problem, smoothing):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion, equal = info_nce(device, label_smoothing=smoothing), queries[:, None] == candidates
    expected = criterion(scores, (queries, candidates))
    close(criterion(scores, targets=3 * equal.double()), expected, 1e-12)
    soft = scores.exp() * torch.linspace(1, 2, scores.numel(), device=device).view_as(scores)
    rows, columns = soft / soft.sum(1, keepdim=True), soft / soft.sum(0)
    logits = criterion.logit_scale.exp() * scores
    both = F.cross_entropy(logits, rows, label_smoothing=smoothing)
    both = (both + F.cross_entropy(logits.T, columns.T, label_smoothing=smoothing)) / 2
    for targets in (soft, (rows, columns), (soft.requires_grad_(), 2 * soft)):
        close(criterion(scores, targets=targets), both, 1e-12)
    assert not torch.autograd.grad(criterion(scores, targets=soft), soft, allow_unused=True)[0]


@given(squares(), scales)
def test_property_info_nce_is_that_of_open_clip_and_pytorch_metric_learning(device, scores, scale):
    clip_loss = pytest.importorskip("open_clip.loss").ClipLoss()
    nt_xent = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss
    texts, videos = (F.normalize(numbers_like(scores, i), dim=1).to(device) for i in (1, 2))
    logit_scale = info_nce(device, scale).logit_scale.exp()
    close(info_nce(device, scale)(texts @ videos.T), clip_loss(videos, texts, logit_scale), 1e-6)
    ids = torch.arange(len(scores), device=device)
    for direction, sides in {"query": (texts, videos), "candidate": (videos, texts)}.items():
        found = info_nce(device, scale, direction=direction)(texts @ videos.T)
        if len(ids) > 1:  # it leaves pairs out that have no negative
            theirs = nt_xent(1 / logit_scale.item())
            close(found, theirs(sides[0], ids, ref_emb=sides[1], ref_labels=ids.clone()), 1e-6)


def numbers_like(scores: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scores.new_empty(len(scores), 8).normal_(generator=generator)


@given(squares())
def test_property_align_is_two_smoothed_cross_entropies_summed(device, scores):
    criterion, scores = info_nce(device, 0.0, label_smoothing=0.1, reduction="sum"), scores.to(device)
    diagonal = torch.arange(len(scores), device=device)
    both = (F.cross_entropy(x, diagonal, label_smoothing=0.1) for x in (scores, scores.T))
    close(criterion(scores), sum(both), 1e-12)


def test_frozen_in_time_is_twice_clip_at_scale_twenty(device):
    scores = torch.randn(5, 5, dtype=torch.float64, device=device).tanh()
    fixed = mg.InfoNCE(math.log(20), learn_logit_scale=False, reduction="sum").double().to(device)
    logs = (F.log_softmax(x / 0.05, 1).diagonal().mean() for x in (scores, scores.T))
    close(fixed(scores), -sum(logs), 1e-5)
    close(fixed(scores), 2 * info_nce(device, math.log(20))(scores), 1e-12)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_momentum_distillation_by_hand(alpha):
    """ALBEF: targets alpha softmax(momentum scores) + (1 - alpha) positives, over keys and queue, both ways."""
    torch.manual_seed(0)
    s, v, s_keys, v_keys = (unit(3, 4).requires_grad_() for _ in range(4))
    s_old, v_old, ids, old = unit(5, 4), unit(5, 4), torch.tensor([7, 8, 7]), torch.tensor([8, 1, 2, 3, 4])
    queues = {"text_queue": mg.losses.FeatureQueue(5), "video_queue": mg.losses.FeatureQueue(5)}
    queues["text_queue"].push(mg.Features(sentence=s_old), old)
    queues["video_queue"].push(mg.Features(video=v_old), old)
    sides, keys = [(mg.Features(sentence=a), mg.Features(video=b)) for a, b in ((s, v), (s_keys, v_keys))]
    criterion = mg.InfoNCE().double()
    loss = mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), criterion, distillation=alpha)
    got = loss(*sides, ids, keys=keys, **queues)

    scale, expected = criterion.logit_scale.exp(), 0
    same = (ids[:, None] == torch.cat([ids, old])).double()
    for mine, key, others in ((s, s_keys, [v_keys, v_old]), (v, v_keys, [s_keys, s_old])):
        everything = torch.cat(others).detach()
        soft = (scale * key.detach() @ everything.T).softmax(1).detach()
        targets = alpha * soft + (1 - alpha) * same / same.sum(1, keepdim=True)
        close(targets.sum(1), torch.ones(3, dtype=torch.float64), 1e-12)
        close(criterion.distilled(key @ everything.T, same > 0, alpha), targets, 1e-12)
        expected = expected + F.cross_entropy(scale * mine @ everything.T, targets) / 2
    close(got, expected, 1e-12)
    if alpha == 0:
        plain = mg.RetrievalLoss(mg.MultiGrain(mg.VideoSentence()), criterion)
        close(got, plain(*sides, ids, keys=keys, **queues), 0.0)
    got.backward()
    assert [x.grad is None for x in (s, v, s_keys, v_keys)] == [False, False, True, True]


def test_what_distillation_cannot_use_is_named():
    sides = mg.Features(sentence=unit(2, 3)), mg.Features(video=unit(2, 3))
    scorer = mg.MultiGrain(mg.VideoSentence())
    with pytest.raises(ValueError, match=r"keys: expected .* make 0.4 of the targets .*, got None; .*detach"):
        mg.RetrievalLoss(scorer, mg.InfoNCE(), distillation=0.4)(*sides)
    with pytest.raises(TypeError, match="criterion: for distillation, expected InfoNCE, got Sigmoid"):
        mg.RetrievalLoss(scorer, mg.Sigmoid(), distillation=0.4)(*sides, keys=sides)
