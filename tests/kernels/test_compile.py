"""torch.compile(fullgraph=True) of whole scorers: the same scores and the same gradients."""

from __future__ import annotations

import warnings

import pytest
import torch

from multigrain.kernels import dispatch as table
from tests.kernels.scorers import features, five_grains, four_grains, outcome, same, scoring


@pytest.fixture
def compiles():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings about its own future are not ours to fail on
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", [None, "blocked"])
def test_a_scorer_compiles_to_one_graph(backend, masked, compiles, monkeypatch):
    """Four grains and a user's own; "auto" must not take the definition only because the problem is small."""
    monkeypatch.setattr(table, "SMALL", 0)
    given, module, definition = features(masked), five_grains(backend), five_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True, backend="aot_eager")
    same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))


def test_a_compiled_scorer_takes_batches_of_other_sizes(compiles, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    module, definition = five_grains(None), five_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True, backend="aot_eager")
    for items in ((9, 8), (6, 7), (1, 5)):
        given = features(items=items)
        same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))


def test_the_default_compiler_keeps_scores_and_gradients(compiles):
    given, module, definition = features(), four_grains("blocked"), four_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True)
    same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))
