"""What every test shares: one thread, one fixed set of examples, and the devices that are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

torch.set_num_threads(1)  # the problems are tiny, and test runners bring their own parallelism

# The default draws the same examples everywhere; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("search", deadline=None, max_examples=300)
# tests/mutations.py wants to know whether a property fails, not the smallest example.
settings.register_profile(
    "mutation", settings.get_profile("fixed"), phases=(Phase.generate,), report_multiple_bugs=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

GOLDEN = Path(__file__).parent / "golden"

_cuda = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
)


@pytest.fixture(scope="session", params=["cpu", _cuda])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
