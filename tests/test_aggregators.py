"""Every registered aggregator in every direction, judged by the oracle and by what a score must not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multigrain as mg
from multigrain.aggregators import aggregator_names
from tests import oracle
from tests.strategies import CASES, DIRECTIONS, POISONS, Case, Sims, close, sims

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
TEMPERED = {"aosm": (0.01, 0.1, 1.0), "logsumexp": (0.1, 1.0)}


def test_every_registered_aggregator_is_judged():
    assert set(aggregator_names()) == set(oracle.AGGREGATORS) == {case.name for case in CASES}


@every_case
@given(sims(), st.data())
def test_property_aggregator_equals_oracle(case, device, problem, data):
    settings = {"temperature": data.draw(st.sampled_from(TEMPERED[case.name]))} if case.name in TEMPERED else {}
    close(case.build(**settings)(*problem.to(device)), case.judge(*problem, **settings))


@every_case
@given(sims(), st.sampled_from(POISONS))
def test_property_masked_similarities_reach_neither_score_nor_gradient(case, device, problem, poison):
    problem = problem.to(device)
    results = []
    for filling in (0.0, poison):
        leaf = problem.sim.masked_fill(~problem.real, filling).requires_grad_()
        scores = case.build()(leaf, problem.query_mask, problem.candidate_mask)
        scores.sum().backward()
        results.append((scores.detach(), leaf.grad))
    close(results[1][0], results[0][0], 0.0)
    close(results[1][1], results[0][1], 0.0)
    assert not results[1][1][~problem.real].any()


@every_case
@given(sims(masks=("prefix", "holes", "empty")), st.integers(1, 3), st.integers(0, 3))
def test_property_appended_padding_changes_nothing(case, device, problem, more_query, more_candidate):
    problem = problem.to(device)
    widths = (0, more_candidate, 0, more_query)
    padded = Sims(
        torch.nn.functional.pad(problem.sim, widths, value=0.9),  # higher than most: it must not win a max
        torch.nn.functional.pad(problem.query_mask, (0, more_query)),
        torch.nn.functional.pad(problem.candidate_mask, (0, more_candidate)),
    )
    close(case.build()(*padded), case.build()(*problem), 1e-14)


@every_case
@given(sims(), st.randoms(use_true_random=False))
def test_property_token_order_changes_nothing(case, device, problem, random):
    problem = problem.to(device)
    m, n = (torch.tensor(random.sample(range(k), k), device=device) for k in problem.sim.shape[2:])
    shuffled = Sims(
        problem.sim[:, :, m][..., n],
        None if problem.query_mask is None else problem.query_mask[:, m],
        None if problem.candidate_mask is None else problem.candidate_mask[:, n],
    )
    close(case.build()(*shuffled), case.build()(*problem), 1e-13)


@every_case
@given(sims(), st.data())
def test_property_scores_of_any_sub_batch_are_the_batch_s_own(case, device, problem, data):
    """Reordering, dropping and repeating items reorders, drops and repeats scores, and changes none."""
    problem = problem.to(device)
    q, c = (
        torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=4)), device=device)
        for k in problem.sim.shape[:2]
    )
    part = Sims(
        problem.sim[q][:, c],
        None if problem.query_mask is None else problem.query_mask[q],
        None if problem.candidate_mask is None else problem.candidate_mask[c],
    )
    close(case.build()(*part), case.build()(*problem)[q][:, c], 1e-14)


@every_case
@given(sims(masks=("none",)))
def test_property_no_mask_means_all_real(case, device, problem):
    q, c, m, n = problem.sim.shape
    full = Sims(problem.sim, torch.ones(q, m, dtype=torch.bool), torch.ones(c, n, dtype=torch.bool))
    close(case.build()(*full.to(device)), case.build()(*problem.to(device)), 1e-14)


@every_case
@given(sims(masks=("empty",)))
def test_property_an_item_without_a_real_token_scores_zero_with_zero_gradient(case, device, problem):
    problem = problem.to(device)
    leaf = problem.sim.requires_grad_()
    scores = case.build()(leaf, problem.query_mask, problem.candidate_mask)
    scores.sum().backward()
    empty = ~problem.real.flatten(2).any(2)
    assert empty.any()
    assert not scores[empty].any()
    assert not leaf.grad[empty].any()
    assert leaf.grad.isfinite().all()


@every_case
@given(sims(tokens=1, masks=("none",)))
def test_property_a_single_token_pair_is_its_own_score(case, device, problem):
    close(case.build()(*problem.to(device)), problem.sim[:, :, 0, 0], 1e-14)


@every_case
@given(sims(masks=("prefix", "holes")), st.floats(-1.0, 1.0))
def test_property_constant_similarities_return_themselves(case, device, problem, value):
    """MaxSim adds one per outer token, LogSumExp t log of the number of pairs; the rest return the constant."""
    m, n = problem.query_mask.sum(1).double()[:, None], problem.candidate_mask.sum(1).double()[None]
    expected = torch.full((len(m), n.shape[1]), value, dtype=torch.float64)
    if case.name == "max_sim":
        expected = expected * {"query": m, "candidate": n, "both": (m + n) / 2}[case.options["direction"]]
    if case.name == "logsumexp":
        expected = expected + 0.1 * (m * n).log()
    constant = Sims(torch.full_like(problem.sim, value), problem.query_mask, problem.candidate_mask)
    close(case.build()(*constant.to(device)), expected, 1e-13)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
@given(sims())
def test_property_the_candidate_direction_is_the_query_direction_seen_from_the_other_side(name, device, problem):
    problem = problem.to(device)
    mirrored = Sims(problem.sim.permute(1, 0, 3, 2), problem.candidate_mask, problem.query_mask)
    query, candidate, both = (Case(name, {"direction": d}).build() for d in DIRECTIONS)
    close(candidate(*problem), query(*mirrored).T, 1e-13)
    close(both(*problem), (query(*problem) + candidate(*problem)) / 2, 1e-13)


@every_case
@settings(max_examples=3)
@given(sims(masks=("none", "holes", "empty"), ties=False, tokens=3))
def test_property_aggregator_passes_gradcheck(case, device, problem):
    problem = problem.to(device)
    aggregator = case.build()
    assert torch.autograd.gradcheck(
        lambda sim: aggregator(sim, problem.query_mask, problem.candidate_mask), problem.sim.requires_grad_()
    )


@every_case
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@given(sims())
def test_property_half_similarities_score_in_fp32(case, half, device, problem):
    problem = problem.to(device)
    rounded = problem.sim.to(half)
    scores = case.build()(rounded, problem.query_mask, problem.candidate_mask)
    assert scores.dtype == torch.float32
    close(scores, case.build()(rounded.float(), problem.query_mask, problem.candidate_mask), 0.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        close(case.build()(rounded, problem.query_mask, problem.candidate_mask), scores, 0.0)


@every_direction
@given(sims())
def test_property_aosm_tends_to_mean_mean_and_to_max_max(direction, device, problem):
    problem = problem.to(device)
    hot, cold = (mg.AOSM(temperature=t, direction=direction) for t in (1e9, 1e-9))
    close(hot(*problem), mg.MeanMean()(*problem), 1e-7)
    close(cold(*problem), mg.MaxMax()(*problem), 1e-7)


@pytest.mark.parametrize("name", ["mean_mean", "max_max", "logsumexp"])
@given(sims())
def test_property_order_free_aggregators_have_one_value_in_every_direction(name, device, problem):
    query, candidate, both = (mg.build_aggregator(name, direction=d)(*problem.to(device)) for d in DIRECTIONS)
    close(query, candidate, 1e-13)
    close(query, both, 1e-13)
