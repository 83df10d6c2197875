"""One masked axis: every reduction against the oracle, and what a mask, a tie and an empty axis do to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multigrain.reduce import Reduction
from tests import oracle
from tests.strategies import POISONS, close, mask, numbers

TEMPERATURE = 0.2
JUDGES = {
    "mean": oracle.mean,
    "sum": sum,
    "max": max,
    "logsumexp": lambda x: oracle.logsumexp(x, TEMPERATURE),
    "softmax": lambda x: oracle.attend(x, TEMPERATURE),
}
every_reduction = pytest.mark.parametrize("kind", JUDGES)


@st.composite
def rows(draw: st.DrawFn, kinds: tuple[str, ...] = ("full", "prefix", "holes", "empty")) -> tuple[Tensor, Tensor]:
    """x [items, length] and a mask of the same shape."""
    items, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return numbers(draw, items, length), mask(draw, items, length, kinds)


@every_reduction
@given(rows())
def test_property_reduction_equals_oracle_over_real_entries(kind, device, problem):
    x, real = problem
    expected = [
        JUDGES[kind]([v for v, r in zip(values, row, strict=True) if r]) if any(row) else 0.0
        for values, row in zip(x.tolist(), real.tolist(), strict=True)
    ]
    reduction = Reduction(kind, TEMPERATURE)
    close(reduction(x.to(device), real.to(device), 1), torch.tensor(expected, dtype=torch.float64))
    close(reduction(x.to(device), None, 1), torch.tensor([JUDGES[kind](v) for v in x.tolist()], dtype=torch.float64))
    close(reduction(x.T.to(device), real.T.to(device), 0), torch.tensor(expected, dtype=torch.float64))


@every_reduction
@given(rows(), st.sampled_from(POISONS))
def test_property_masked_entries_reach_neither_result_nor_gradient(kind, device, problem, poison):
    x, real = (value.to(device) for value in problem)
    results = []
    for filling in (0.0, poison):
        leaf = x.masked_fill(~real, filling).requires_grad_()
        out = Reduction(kind, TEMPERATURE)(leaf, real, 1)
        out.sum().backward()
        results.append((out.detach(), leaf.grad))
    close(results[1][0], results[0][0], 0.0)
    close(results[1][1], results[0][1], 0.0)
    assert not results[1][1][~real].any()


@given(st.integers(1, 4), st.integers(0, 4))
def test_property_tied_maxima_share_the_gradient_evenly(device, ties, others):
    x = torch.tensor([[0.5] * ties + [-0.5] * others + [9.0]], device=device, requires_grad=True)
    real = torch.tensor([[True] * (ties + others) + [False]], device=device)
    Reduction("max")(x, real, 1).backward()
    close(x.grad, torch.tensor([[1 / ties] * ties + [0.0] * (others + 1)]), 1e-7)


@given(rows(kinds=("prefix", "holes")), st.floats(1e-3, 1e3))
def test_property_one_level_of_attention_lies_between_mean_and_maximum(device, problem, temperature):
    x, real = (value.to(device) for value in problem)
    attended = Reduction("softmax", temperature)(x, real, 1)
    assert (Reduction("mean")(x, real, 1) <= attended + 1e-12).all()
    assert (attended <= Reduction("max")(x, real, 1) + 1e-12).all()


@given(rows(kinds=("prefix", "holes")), st.floats(1e-3, 1e3), st.floats(1.0, 100.0))
def test_property_one_level_of_attention_does_not_rise_with_temperature(device, problem, temperature, factor):
    x, real = (value.to(device) for value in problem)
    cold, warm = (Reduction("softmax", t)(x, real, 1) for t in (temperature, temperature * factor))
    assert (warm <= cold + 1e-12).all()


@given(rows(kinds=("prefix", "holes")), st.floats(1e-3, 10.0))
def test_property_logsumexp_exceeds_maximum_by_at_most_its_entropy(device, problem, temperature):
    x, real = (value.to(device) for value in problem)
    excess = Reduction("logsumexp", temperature)(x, real, 1) - Reduction("max")(x, real, 1)
    assert (excess >= -1e-12).all()
    assert (excess <= temperature * real.sum(1).log() + 1e-12).all()


@every_reduction
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_property_reduction_widens_half_precision(kind, half, device):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(device, half)
    out = Reduction(kind, TEMPERATURE)(x, None, 1)
    assert out.dtype == torch.float32
    close(out, Reduction(kind, TEMPERATURE)(x.float(), None, 1), 0.0)
