"""What holds of every criterion, Sigmoid and MarginRanking against loops, and sums of losses with their terms."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import multigrain as mg
from tests import oracle
from tests.strategies import close, pairs
from tests.test_losses import labelled, squares

CRITERIA: dict[str, Callable[..., mg.losses.Criterion]] = {
    "info_nce": lambda **s: mg.InfoNCE(1.0, label_smoothing=0.1, **s),
    "sigmoid": lambda **s: mg.Sigmoid(1.0, -0.5, **s),
    "hinge": lambda **s: mg.losses.MarginRanking(0.4, **s),
    "hard hinge": lambda **s: mg.losses.MarginRanking(0.4, hard_pool=2, over="sum", **s),
    "lse": lambda **s: mg.losses.MarginRanking(0.4, form="lse", **s),
}
every_criterion = pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)


@every_criterion
@given(squares(), st.randoms(use_true_random=False), st.data())
def test_property_the_order_of_pairs_changes_no_criterion_and_permutes_gradients(make, device, scores, random, data):
    order = torch.tensor(random.sample(range(len(scores)), len(scores)), device=device)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))))
    ids, scores = ids.to(device), scores.to(device).requires_grad_()
    criterion = make().double().to(device)
    loss, shuffled = criterion(scores, ids), criterion(scores[order][:, order], ids[order])
    close(shuffled, loss, 1e-12)
    close(torch.autograd.grad(shuffled, scores)[0], torch.autograd.grad(loss, scores)[0], 1e-12)


@every_criterion
@given(labelled())
def test_property_directions_are_each_other_s_transpose_and_add_up(make, device, problem):
    scores, queries, candidates = (x.to(device) for x in problem)
    ids = queries, candidates

    def loss(**settings) -> Tensor:
        return make(**settings).double().to(device)(scores, ids)

    by_query, by_candidate = loss(direction="query"), loss(direction="candidate")
    close(by_candidate, make(direction="query").double().to(device)(scores.T, ids[::-1]), 1e-12)
    close(loss(reduction="sum"), by_query + by_candidate, 1e-12)
    close(loss(), (by_query + by_candidate) / 2, 1e-12)
    close(loss(direction="query", reduction="sum"), by_query, 0.0)


@every_criterion
@given(labelled(), st.randoms(use_true_random=False))
def test_property_minus_infinity_leaves_out_a_pair_of_loss_and_gradients(make, device, problem, random):
    scores, queries, candidates = (x.to(device) for x in problem)
    positives = queries[:, None] == candidates
    out = torch.tensor([[random.random() < 0.4 for _ in row] for row in scores.tolist()], device=device) & ~positives
    criterion = make(direction="query").double().to(device)
    masked = scores.masked_fill(out, -torch.inf).requires_grad_()
    rows = criterion.rows(masked, positives)
    for i, kept in enumerate(~out):
        close(rows[i], criterion.rows(scores[i : i + 1, kept], positives[i : i + 1, kept])[0], 1e-12)
    for one in (criterion, make().double().to(device), make().to(device)):
        x = masked.detach().to(next(iter([*one.parameters(), scores])).dtype).requires_grad_()
        one(x, (queries, candidates)).backward()
        assert x.grad is not None and x.grad.isfinite().all() and not x.grad[out].any()
        assert all(p.grad is not None and p.grad.isfinite() for p in one.parameters())


def test_rows_in_parts_may_be_left_out_whole(device):
    scores = torch.tensor([[0.3, 0.1, -torch.inf, -torch.inf]], device=device).requires_grad_()
    positives = torch.tensor([[True, False, False, False]], device=device)
    for criterion in (mg.InfoNCE(), mg.InfoNCE(label_smoothing=0.1), mg.Sigmoid()):
        criterion = criterion.to(device)
        parts = [criterion.partial(scores[:, cut], positives[:, cut]) for cut in (slice(2), slice(2, 4))]
        found, expected = criterion.join(torch.stack(parts)), criterion.rows(scores[:, :2], positives[:, :2])
        close(found, expected, 1e-6)
        found.sum().backward()
        assert criterion.logit_scale.grad.isfinite() and scores.grad.isfinite().all()


@every_criterion
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e35])
@pytest.mark.parametrize(("row", "column"), [(1, 1), (2, 0)])
def test_scores_without_a_finite_loss_are_refused(make, value, row, column):
    scores = torch.zeros(3, 3)
    scores[row, column] = value
    if value == -math.inf and row != column:
        assert make()(scores).isfinite()
    else:
        got = "NaN" if math.isnan(value) else f"{value:g}".replace("+", r"\+")
        with pytest.raises(ValueError, match=rf"scores: .* got {got} at row {row}, column {column}"):
            make()(scores)


@every_criterion
@settings(max_examples=5)
@given(labelled())
def test_property_every_criterion_passes_gradcheck_on_scores_and_parameters(make, device, problem):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion = make().double().to(device)
    inputs = (scores.requires_grad_(), *criterion.parameters())
    assert torch.autograd.gradcheck(lambda scores, *_: criterion(scores, (queries, candidates)), inputs)


@every_criterion
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@given(labelled(), st.sampled_from([0.0, 1e-4, 1.0, 3e4]), st.sampled_from([-20.0, 0.0, math.log(100)]))
def test_property_gradients_stay_finite_at_extreme_scores_and_scales(make, dtype, device, problem, size, scale):
    scores, queries, candidates = (x.to(device) for x in problem)
    scores, criterion = (size * scores).to(dtype).requires_grad_(), make().to(device)
    if hasattr(criterion, "logit_scale"):
        nn.init.constant_(criterion.logit_scale, scale)
    loss = criterion(scores, (queries, candidates))
    gradients = torch.autograd.grad(loss, [scores, *criterion.parameters()])
    assert loss.isfinite() and all(x.isfinite().all() for x in gradients)


@every_criterion
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(labelled())
def test_property_every_criterion_widens_half_scores_and_ignores_autocast(make, half, device, problem):
    scores, queries, candidates = (x.to(device) for x in problem)
    criterion, rounded = make().to(device), scores.to(half)
    loss = criterion(rounded, (queries, candidates))
    close(loss, criterion(rounded.float(), (queries, candidates)), 0.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(criterion(rounded, (queries, candidates)), loss, 0.0)


@given(labelled(), st.floats(-1.0, 3.0), st.floats(-10.0, 2.0))
def test_property_sigmoid_equals_oracle(device, problem, scale, bias):
    scores, queries, candidates = problem
    criterion = mg.Sigmoid(scale, bias).double().to(device)
    values = criterion.logit_scale.exp().item(), criterion.logit_bias.item()
    total = oracle.sigmoid(scores.tolist(), *values, queries.tolist(), candidates.tolist())
    expected = total * (1 / len(queries) + 1 / len(candidates)) / 2
    loss = criterion(scores.to(device), (queries.to(device), candidates.to(device)))
    close(loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("direction", ["both", "query", "candidate"])
@given(squares())
def test_property_sigmoid_is_that_of_open_clip(direction, device, scores):
    theirs = pytest.importorskip("open_clip.loss").SigLipLoss()
    texts, videos = scores.to(device), scores.to(device).flip(0).exp()
    criterion = mg.Sigmoid(direction=direction).double().to(device)
    expected = theirs(videos, texts, criterion.logit_scale.exp(), criterion.logit_bias)
    close(criterion(texts @ videos.T), expected, 1e-6)


def test_sigmoid_starts_as_published():
    criterion = mg.Sigmoid()
    assert criterion.logit_scale.item() == pytest.approx(math.log(10)) and criterion.logit_bias.item() == -10
    assert all(p.requires_grad and p.ndim == 0 for p in criterion.parameters())
    assert not any(p.requires_grad for p in mg.Sigmoid(learn=False).parameters())


@pytest.mark.parametrize("form", ["hinge", "lse"])
@pytest.mark.parametrize("over", ["mean", "sum"])
@pytest.mark.parametrize("hard_pool", [None, 1, 2])
@given(labelled())
def test_property_margin_ranking_equals_oracle(form, over, hard_pool, device, problem):
    scores, queries, candidates = problem
    positives = queries[:, None] == candidates
    criterion = mg.losses.MarginRanking(0.3, hard_pool, 3.3, 0.1, form, over)
    found = criterion.rows(scores.to(device), positives.to(device))
    rows = zip(scores.tolist(), positives.tolist(), strict=True)
    expected = [oracle.ranking_row(*row, 0.3, hard_pool, 3.3, 0.1, form, over) for row in rows]
    close(found, torch.tensor(expected, dtype=torch.float64))


def test_hero_s_hinge_by_hand(device):
    scores, pairs = torch.tensor([[0.9, 0.5], [0.85, 0.9]], dtype=torch.float64, device=device), torch.eye(2) > 0
    criterion = mg.losses.MarginRanking(margin=0.1)
    expected = torch.tensor([[0.0, 0.05], [0.05, 0.0]], dtype=torch.float64)
    close(criterion.rows(scores, pairs.to(device)), expected[0], 1e-12)
    close(criterion.rows(scores.T, pairs.to(device)), expected[1], 1e-12)
    close(criterion(scores), expected.mean(), 1e-12)
    close(mg.losses.MarginRanking(margin=0.1, reduction="sum")(scores), expected.mean(1).sum(), 1e-12)


@given(squares())
def test_property_a_pool_of_one_is_the_hardest_negative(device, scores):
    scores, size = scores.to(device), len(scores)
    found = mg.losses.MarginRanking(0.2, 1, 1.0, 0.0, over="sum", direction="query")(scores)
    others = scores.masked_fill(torch.eye(size, dtype=torch.bool, device=device), -torch.inf).amax(1)
    close(found, (0.2 + others - scores.diagonal()).clamp_min(0).mean(), 1e-12)
    everything = mg.losses.MarginRanking(0.2, size, 1.0, 7.0)  # a pool of all
    close(everything(scores), mg.losses.MarginRanking(0.2)(scores), 1e-12)


def test_negatives_that_tie_are_hard_alike(device):
    scores = torch.tensor([[0.0, 1.0, 1.0, 0.5]], device=device)
    losses = mg.losses.MarginRanking(0.0, 1, 10.0, 1.0, over="sum")
    assert losses.rows(scores, torch.tensor([[True, False, False, False]], device=device)).tolist() == [20.5]


@given(labelled(), st.floats(-2.0, 2.0))
def test_property_a_sum_is_the_sum_of_its_named_terms(device, problem, weight):
    scores, queries, candidates = (x.to(device) for x in problem)
    ids, parts = (queries, candidates), [make().double().to(device) for make in CRITERIA.values()]
    losses = [part(scores.requires_grad_(), ids) for part in parts]
    first, second, *rest = parts
    total = (first + weight * second).named("pair") + sum(rest) * 2
    loss = total(scores, ids)
    weights = [1.0, weight, 2.0, 2.0, 2.0]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True))
    close(loss, expected, 1e-12)
    close(*(torch.autograd.grad(x, scores)[0] for x in (loss, expected)), 1e-12)
    names = ["pair.InfoNCE", "pair.Sigmoid", "MarginRanking", "MarginRanking_2", "MarginRanking_3"]
    assert list(total.terms) == [term.name for term in total.summands()] == names
    assert [term.weight for term in total.summands()] == pytest.approx(weights)
    for value, w, x in zip(total.terms.values(), weights, losses, strict=True):
        assert not value.requires_grad
        close(value, w * x, 1e-12)


@given(pairs(), st.data())
def test_property_a_sum_of_criteria_is_a_sum_of_losses_of_the_same_scorer(device, pair, data):
    size = min(len(pair.text), len(pair.video))
    text, video = pair.to(device).text[:size], pair.to(device).video[:size]
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), device=device)
    scorer, (a, b, *_) = mg.MultiGrain(mg.VideoSentence()), (make().double().to(device) for make in CRITERIA.values())
    together = mg.RetrievalLoss(scorer, a + 0.5 * b)
    apart = mg.RetrievalLoss(scorer, a).named("a") + 0.5 * mg.RetrievalLoss(scorer, b).named("b")
    close(together(text, video, ids), apart(text, video, ids), 1e-12)
    assert (list(together.terms), list(apart.terms)) == (["InfoNCE", "Sigmoid"], ["a", "b"])
    close(torch.stack([*together.terms.values()]), torch.stack([*apart.terms.values()]), 1e-12)
    keys = text.detach(), video.detach()
    close(together(text, video, ids, keys=keys), apart(text, video, ids, keys=keys), 1e-12)
    close(torch.stack([*together.terms.values()]), torch.stack([*apart.terms.values()]), 1e-12)


def test_sums_carry_parameters_settings_and_copies():
    text = mg.Features(sentence=torch.randn(3, 4))
    video = mg.Features(video=torch.randn(3, 4), frame=torch.randn(3, 2, 4))
    scorer = mg.MultiGrain(mg.VideoSentence())
    loss = mg.RetrievalLoss(scorer, mg.InfoNCE()) + 0.5 * mg.losses.TokenNCE("sentence", "frame", None)
    assert len(list(loss.parameters())) == 2
    queue = mg.losses.FeatureQueue(4)
    queue.push(mg.Features(video=torch.randn(4, 4)))
    plain, more = loss(text, video), loss(text, video, video_queue=queue)  # TokenNCE takes no queue
    assert more > plain and list(loss.terms) == ["RetrievalLoss", "TokenNCE"]
    with pytest.raises(TypeError, match="speed: expected by no term of RetrievalLoss, TokenNCE"):
        loss(text, video, speed=3)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        close(other(text, video), plain, 0.0)
    cached = mg.CachedLoss(loss)
    close(cached(lambda chunk: (text[chunk], video[chunk]), [[0, 1], [2]]), plain, 1e-6)
    assert cached.terms.keys() == loss.terms.keys()
    assert list((2 * mg.InfoNCE()).named("x").summands()[0])[:2] == ["x", 2.0]


def test_what_cannot_be_added_is_named():
    with pytest.raises(TypeError, match="unsupported operand"):
        mg.InfoNCE() + nn.Identity()
    with pytest.raises(TypeError, match=r"weight of InfoNCE: expected a number, got tensor\(1\.\)"):
        mg.InfoNCE() * torch.ones(())
    with pytest.raises(ValueError, match="weight of InfoNCE: expected a finite number, got nan"):
        math.nan * mg.InfoNCE()
    with pytest.raises(ValueError, match="name: expected a word, got ''"):
        mg.InfoNCE().named("")
