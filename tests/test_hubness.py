"""Corrections of hubness against loops in Python, their limits, and what they must not do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from multigrain.hubness import (
    TRANSDUCTIVE,
    dual_softmax,
    dynamic_inverted_softmax,
    inverted_softmax,
    sinkhorn,
)
from tests.strategies import close, numbers

betas = st.floats(0.5, 60.0)
Correction = Callable[..., Tensor]
EVERY: dict[str, Correction] = {
    "dual_softmax": lambda scores, bank, beta: dual_softmax(scores, beta),
    "inverted_softmax": inverted_softmax,
    "dynamic_inverted_softmax": lambda scores, bank, beta: dynamic_inverted_softmax(scores, bank, 1, beta),
    "sinkhorn": lambda scores, bank, beta: sinkhorn(scores, beta),
}
every = pytest.mark.parametrize("correction", EVERY.values(), ids=EVERY)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores [q, c] and a bank [b, c] in (-1, 1)."""
    q, b, c = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return numbers(draw, q, c).tanh(), numbers(draw, b, c).tanh()


def order(x: Tensor) -> list[list[int]]:
    return x.sort(dim=1, descending=True, stable=True).indices.tolist()


@given(scored(), betas)
def test_property_dual_and_inverted_softmax_equal_loops(device, problem, beta):
    scores, bank = problem
    queries, candidates = range(len(scores)), range(scores.shape[1])
    s, others = scores.tolist(), bank.tolist()
    dual = [
        [s[i][j] * math.exp(beta * s[i][j]) / math.fsum(math.exp(beta * s[k][j]) for k in queries) for j in candidates]
        for i in queries
    ]
    close(dual_softmax(scores.to(device), beta), torch.tensor(dual, dtype=torch.float64), 1e-12)
    inverted = [
        [math.exp(beta * s[i][j]) / math.fsum(math.exp(beta * row[j]) for row in others) for j in candidates]
        for i in queries
    ]
    ours = inverted_softmax(scores.to(device), bank.to(device), beta)
    close((beta * ours).exp() / len(bank), torch.tensor(inverted, dtype=torch.float64), 1e-10)


@given(scored(), betas, st.integers(1, 5))
def test_property_the_dynamic_one_changes_rows_led_by_a_hub_and_no_others(device, problem, beta, k):
    scores, bank = (x.to(device) for x in problem)
    k = min(k, scores.shape[1])
    hubs = {j for row in order(bank) for j in row[:k]}
    expected = torch.stack(
        [
            new if int(old.argmax()) in hubs else old
            for old, new in zip(scores, inverted_softmax(scores, bank, beta), strict=True)
        ]
    )
    close(dynamic_inverted_softmax(scores, bank, k, beta), expected, 0.0)


@given(scored(), betas, st.floats(0.01, 2.0))
def test_property_sinkhorn_s_rows_and_columns_are_equally_in_demand(device, problem, beta, mild):
    scores = problem[0].to(device)
    rows = (beta * sinkhorn(scores, beta, 3)).exp().mean(1)
    close(rows, torch.ones_like(rows), 1e-11)
    shares = (mild * sinkhorn(scores, mild, 200)).exp()  # the larger beta, the slower
    close(shares.mean(1), torch.ones_like(shares[:, 0]), 1e-11)
    close(shares.mean(0), torch.ones_like(shares[0]), 1e-6)


@given(scored(), betas)
def test_property_one_iteration_of_sinkhorn_ranks_as_inverted_softmax(device, problem, beta):
    scores = problem[0].to(device)
    difference = sinkhorn(scores, beta, 1) - inverted_softmax(scores, scores, beta)
    close(difference, difference[:, :1].expand_as(difference), 1e-12)


@given(scored())
def test_property_one_query_or_a_tiny_beta_leave_the_ranks_to_dual_softmax(device, problem):
    scores = problem[0].to(device)
    close(dual_softmax(scores[:1], 50.0), scores[:1], 0.0)
    assert order(dual_softmax(scores, 1e-9)) == order(scores)
    close(len(scores) * dual_softmax(scores, 1e-9), scores, 1e-8)


@given(scored())
def test_property_inverted_softmax_lies_between_mean_and_maximum_of_the_bank(device, problem):
    scores, bank = (x.to(device) for x in problem)
    close(inverted_softmax(scores, bank, 1e-12), scores - bank.mean(0), 1e-11)
    close(inverted_softmax(scores, bank, 1e12), scores - bank.amax(0), 1e-11)


@given(scored(), betas)
def test_property_a_shift_of_a_candidate_is_what_inverted_softmax_and_sinkhorn_take_away(device, problem, beta):
    scores, bank = (x.to(device) for x in problem)
    hubness = torch.linspace(0, 0.7, scores.shape[1], dtype=scores.dtype, device=device)
    close(inverted_softmax(scores + hubness, bank + hubness, beta), inverted_softmax(scores, bank, beta), 1e-12)
    close(sinkhorn(scores + hubness, beta, 5), sinkhorn(scores, beta, 5), 1e-12)


@given(scored(), st.floats(0.1, 0.9))
def test_property_along_the_wrong_axis_nothing_changes(device, problem, beta):
    """The published v2t: normalised over candidates, a row is multiplied by one number and keeps its order."""
    scores = problem[0].to(device)  # above -1 > -1/beta, where x exp(beta x) rises
    wrong = dual_softmax(scores.T, beta).T
    assert order(wrong) == order(scores)


def test_along_the_right_axis_hubs_fall(device):
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.9, 0.2, 0.2]], device=device)
    for name, correct in TRANSDUCTIVE.items():
        assert correct(scores).argmax(1).tolist() == [1, 2, 0], name
        assert correct(scores.T).T.argmax(0).tolist() != [0, 0, 0]
    bank = torch.tensor([[0.9, 0.1, 0.1]], device=device).expand(4, 3)
    assert inverted_softmax(scores, bank).argmax(1).tolist() == [1, 2, 1]
    assert dynamic_inverted_softmax(scores, bank).argmax(1).tolist() == [1, 2, 1]


@every
@given(problem=scored(), beta=betas, random=st.randoms(use_true_random=False))
def test_property_the_order_of_queries_candidates_and_bank_changes_nothing(device, correction, problem, beta, random):
    scores, bank = (x.to(device) for x in problem)
    q, c, b = (torch.tensor(random.sample(range(n), n), device=device) for n in (*scores.shape, len(bank)))
    shuffled = correction(scores[q][:, c], bank[b][:, c], beta)
    close(shuffled, correction(scores, bank, beta)[q][:, c], 1e-11)


@every
@given(problem=scored(), beta=betas)
def test_property_a_correction_returns_a_new_matrix(device, correction, problem, beta):
    scores, bank = (x.to(device) for x in problem)
    before = scores.clone(), bank.clone()
    out = correction(scores, bank, beta)
    assert torch.equal(scores, before[0])
    assert torch.equal(bank, before[1])
    out.fill_(7.0)
    assert torch.equal(scores, before[0])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(problem=scored(), beta=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30, 3e38]), spread=st.sampled_from([1.0, 1e3]))
def test_property_any_beta_is_finite_in_fp32(device, correction, dtype, problem, beta, spread):
    scores, bank = ((spread * x).to(device, dtype) for x in problem)
    out = correction(scores, bank, beta)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.abs().max() <= 60 * spread  # of the size of the scores: nothing is the rounding of something huge


def test_sinkhorn_survives_where_exponentials_underflow(device):
    """exp(1000 (x - max)) is 0 for a whole column here: in the space of exponentials, 0 / 0."""
    scores = torch.tensor([[1.0, -1.0], [0.9, -1.0]], device=device)
    assert (1000 * (scores - scores.amax())).exp()[:, 1].eq(0).all()
    assert sinkhorn(scores, 1000.0).argmax(1).tolist() == [0, 1]


def test_metrics_of_a_correction_carry_its_name_and_each_direction_its_own():
    scores = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    plain, found = mg.retrieval_metrics(scores), mg.retrieval_metrics(scores, hubness="sinkhorn")
    assert found["t2v"] == mg.retrieval_metrics(sinkhorn(scores))["t2v"]
    assert found["v2t"] == mg.retrieval_metrics(sinkhorn(scores.T))["t2v"]
    assert (found["hubness"], "hubness" in plain) == ("sinkhorn", False)
    assert found.keys() - plain.keys() == {"hubness"} and found["protocol"] == "diagonal"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: dual_softmax(s[0]), ValueError, "scores: expected a non-empty matrix"),
        (lambda s: dual_softmax(s.long()), TypeError, "scores: expected floating-point scores of 16 to 64 bits"),
        (lambda s: dual_softmax(s, 0.0), ValueError, "beta: expected a positive finite number, got 0.0"),
        (lambda s: sinkhorn(s, iterations=0), ValueError, "iterations: expected an integer from 1, got 0"),
        (lambda s: inverted_softmax(s, s[:, :2]), ValueError, "bank: expected scores against the same 3 candidates"),
        (lambda s: inverted_softmax(s, s[0]), ValueError, "bank: expected a non-empty matrix"),
        (lambda s: dynamic_inverted_softmax(s, s, 4), ValueError, "k: expected an integer from 1 to 3, got 4"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make(torch.rand(2, 3))


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e35])
def test_what_is_no_finite_number_is_refused_by_row_and_column(correction, value):
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    wrong = scores.clone()
    wrong[2, 1] = value
    got = "NaN" if math.isnan(value) else f"{value:g}".replace("+", r"\+")
    with pytest.raises(
        ValueError, match=rf"scores: expected finite numbers up to 1e\+30, got {got} at row 2"
    ):
        correction(wrong, scores, 20.0)


def test_a_bank_holds_finite_numbers():
    bank = torch.ones(2, 3)
    bank[1, 0] = torch.nan
    for correction in (inverted_softmax, dynamic_inverted_softmax):
        with pytest.raises(ValueError, match=r"bank: expected finite numbers .* got NaN at row 1, column 0"):
            correction(torch.ones(4, 3), bank)
