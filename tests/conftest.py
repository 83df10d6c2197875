"""What every test shares: the number of threads, one fixed set of examples, and the devices that are here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# One thread unless the environment says otherwise, for the processes that tests start too: the problems are tiny, and
# test runners bring their own parallelism.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

# A shell ignores Ctrl-C for what it starts in the background, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The default draws the same examples everywhere; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("search", deadline=None, max_examples=300)
# tests/mutations.py wants to know whether a property fails, not the smallest example.
settings.register_profile(
    "mutation", settings.get_profile("fixed"), phases=(Phase.generate,), report_multiple_bugs=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a CUDA device are there where one is, or where they are asked for: skips then say something."""
    if torch.cuda.is_available():
        return
    twins = [item for item in items if item.get_closest_marker("cuda")]
    if "cuda" in config.getoption("markexpr"):
        for item in twins:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
    elif twins:
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=twins)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
