"""AOSM with X-CLIP's learned mixing matrices: the oracle, its two coarse forms, shorter inputs, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multigrain as mg
from tests.strategies import DIRECTIONS, MASKS, POISONS, Case, Sims, close, randomise, sims

SIZES = {"query_tokens": 6, "candidate_tokens": 5}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def mixing(aggregator: mg.AOSM) -> dict[str, list[list[float]]]:
    return {name: matrix.tolist() for name, matrix in aggregator.named_parameters()}


@st.composite
def coarse(draw: st.DrawFn, masks: tuple[str, ...] = MASKS) -> tuple[str, Sims]:
    """A side that keeps its tokens, and similarities whose other side has one."""
    side, problem = draw(st.sampled_from(["query", "candidate"])), draw(sims(masks))
    if side == "query":
        return side, Sims(problem.sim[..., :1], problem.query_mask, None)
    return side, Sims(problem.sim[:, :, :1], None, problem.candidate_mask)


@every_direction
@given(sims())
def test_property_mixed_aosm_equals_oracle(direction, device, problem):
    """Inputs shorter than the matrices included: they take the top left corner."""
    case = Case("aosm", {"direction": direction})
    aggregator = randomise(case.build(temperature=0.1, **SIZES))
    expected = case.judge(*problem, temperature=0.1, **mixing(aggregator))
    assert set(mixing(aggregator)) == {"inner_query", "outer_query", "inner_candidate", "outer_candidate"}
    close(aggregator.to(device)(*problem.to(device)), expected)


@every_direction
@given(coarse())
def test_property_aosm_mixed_on_one_side_equals_oracle(direction, device, drawn):
    side, problem = drawn
    case = Case("aosm", {"direction": direction})
    aggregator = randomise(case.build(temperature=0.1, **{f"{side}_tokens": 5}))
    assert set(mixing(aggregator)) == {f"inner_{side}"}
    expected = case.judge(*problem, temperature=0.1, **mixing(aggregator))
    close(aggregator.to(device)(*problem.to(device)), expected)


@every_direction
@given(sims())
def test_property_identity_mixing_is_no_mixing(direction, device, problem):
    problem = problem.to(device)
    mixed = mg.AOSM(direction=direction, **SIZES).to(device)
    close(mixed(*problem), mg.AOSM(direction=direction)(*problem), 1e-13)


@given(sims(masks=("prefix", "holes", "empty")), st.sampled_from(POISONS))
def test_property_mixed_aosm_reads_nothing_behind_a_mask(device, problem, poison):
    problem = problem.to(device)
    aggregator = randomise(Case("aosm").build(temperature=0.1, **SIZES)).to(device)
    results = []
    for filling in (0.0, poison):
        leaf = problem.sim.masked_fill(~problem.real, filling).requires_grad_()
        scores = aggregator(leaf, problem.query_mask, problem.candidate_mask)
        results.append([scores, *torch.autograd.grad(scores.sum(), [leaf, *aggregator.parameters()])])
    for clean, dirty in zip(*results, strict=True):
        close(dirty, clean, 0.0)


@settings(max_examples=3)
@given(sims(masks=("none", "holes"), ties=False, tokens=3))
def test_property_mixed_aosm_passes_gradcheck(device, problem):
    problem = problem.to(device)
    aggregator = randomise(Case("aosm").build(query_tokens=3, candidate_tokens=3)).to(device)

    def score(sim, *_):
        return aggregator(sim, problem.query_mask, problem.candidate_mask)

    assert torch.autograd.gradcheck(score, (problem.sim.requires_grad_(), *aggregator.parameters()))
