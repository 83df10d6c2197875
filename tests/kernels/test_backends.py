"""Every row of the backend table, judged by the eager definition in fp64: scores and all gradients.

The property iterates over the table and over the aggregator registry: a row that is not tested cannot exist.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multigrain.kernels import fusion
from multigrain.kernels.dispatch import BACKENDS
from multigrain.kernels.spec import Unsupported
from tests.kernels.problems import ALL_CASES, DTYPES, TWO_LEVEL, agree, problems

CUDA_ONLY = {"triton"}  # under its interpreter it runs in a process of its own: test_triton.py
EVERYWHERE = {"eager", "blocked"}  # serve whatever the definition serves
every_row = pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param(name, device, id=f"{name}-{device}", marks=[pytest.mark.cuda] if device == "cuda" else [])
        for name in BACKENDS
        for device in ("cpu", "cuda")
        if device == "cuda" or name not in CUDA_ONLY
    ],
)
dtypes = st.sampled_from(DTYPES).map(lambda dtype: (dtype, dtype)) | st.tuples(*[st.sampled_from(DTYPES)] * 2)


@every_row
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
@settings(max_examples=40)
@given(st.data(), dtypes)
def test_property_backend_equals_eager_in_scores_and_all_gradients(backend, device, case, data, dtypes):
    judge(backend, device, data, case, dtypes)


def judge(backend, device, data, case, dtypes):
    problem = data.draw(problems(case)).to(device, *dtypes)
    try:
        actual = problem.outcome(backend)
    except Unsupported:
        assert backend not in EVERYWHERE
        assert torch.float64 in dtypes or not fusion.fuses(problem.aggregator, backend)
        return
    assert actual["scores"].dtype == problem.dtype
    agree(actual, problem)


@every_row
@settings(max_examples=300)
@given(st.data(), st.sampled_from(TWO_LEVEL), dtypes)
def test_property_backend_equals_eager_for_any_reduction_of_any_other(backend, device, data, case, dtypes):
    judge(backend, device, data, case, dtypes)
