"""The operators under torch.library, autocast, threads, copies and the transforms of torch.func."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import multigrain as mg
from multigrain.kernels import dispatch as table
from multigrain.kernels import ops, reference
from multigrain.kernels.spec import Operand, Spec
from tests.kernels.scorers import features, five_grains, four_grains, outcome, pair, same, scoring
from tests.strategies import CASES, randomise

SOFT, HARD = Spec("softmax", 0.1, "softmax", 0.1, True), Spec("max", 1.0, "linear", 1.0, True)
ONE_WAY = Spec("logsumexp", 0.5, "logsumexp", 0.5, False)


def operand(items: int, length: int, seed: int, masked: bool = False, weighted: bool = False, **change) -> Operand:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, length, 4, generator=generator)
    real = torch.rand(items, length, generator=generator) < 0.7 if masked else None
    weights = torch.rand(items, length, generator=generator) if weighted else None
    return Operand(x, real, weights, True)._replace(**change)


def wanting(given: Operand) -> Operand:
    weights = None if given.weights is None else given.weights.requires_grad_()
    return given._replace(x=given.x.requires_grad_(), weights=weights)


CALLS = {
    "soft": (operand(3, 5, 0), operand(4, 2, 1), SOFT),
    "soft masked": (wanting(operand(3, 5, 0, masked=True)), wanting(operand(4, 2, 1, masked=True)), SOFT),
    "weights": (
        wanting(operand(3, 5, 0, masked=True, weighted=True)),
        wanting(operand(4, 2, 1, weighted=True)),
        HARD,
    ),
    "one way, one gradient": (wanting(operand(3, 5, 0)), operand(4, 2, 1, masked=True), ONE_WAY),
    "half": (
        wanting(operand(3, 5, 0, x=torch.randn(3, 5, 4).half())),
        wanting(operand(4, 2, 1, x=torch.randn(4, 2, 4).bfloat16())),
        SOFT,
    ),
    "not contiguous": (
        wanting(operand(3, 5, 0, x=torch.randn(5, 3, 4).transpose(0, 1))),
        wanting(operand(4, 2, 1, x=torch.randn(4, 4, 2).mT, normalize=False)),
        SOFT,
    ),
    "expanded": (
        wanting(operand(3, 5, 0, x=torch.randn(1, 5, 4).expand(3, 5, 4))),
        wanting(operand(4, 2, 1)),
        SOFT,
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_operators_keep_the_rules_of_torch_library(call, backward):
    query, candidate, spec = CALLS[call]
    arguments = (*ops._flat(query, candidate), *spec, "blocked")
    if not backward:
        torch.library.opcheck(torch.ops.multigrain.pair_scores.default, arguments)
        return
    grad = torch.randn(len(query.x), len(candidate.x))
    arguments = (grad, *(x.detach() if isinstance(x, Tensor) else x for x in arguments))
    torch.library.opcheck(torch.ops.multigrain.pair_scores_backward.default, arguments)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("inner", ["max", "softmax", "logsumexp"])
def test_weights_of_a_linear_outer_reduction_have_their_gradient(inner, both, masked):
    """The reference judges; padding, whose weight is 0, gets none."""
    spec = Spec(inner, 0.3, "linear", 1.0, both)
    outcomes = []
    for score in (lambda *given: ops.fused_scores(*given, "blocked"), reference.reference_scores):
        query, candidate = (operand(items, 4, items, masked, weighted=True) for items in (5, 6))
        sides = [x._replace(x=x.x.double(), weights=x.weights.double()) for x in (query, candidate)]
        if masked:
            sides = [x._replace(weights=x.weights * x.mask) for x in sides]
        if not both:
            sides[1] = sides[1]._replace(weights=None)
        leaves = [t for x in map(wanting, sides) for t in (x.x, x.weights) if t is not None]
        scores = score(*sides, spec)
        outcomes.append(
            [scores.detach(), *torch.autograd.grad(scores, leaves, torch.linspace(-1, 1, 30).view(5, 6).double())]
        )
    same(*outcomes, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_changes_nothing_at_all(case):
    grain = mg.Grain("word", "frame", case.build().float())
    expected = grain(*pair(), "blocked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = grain(*pair(), "blocked")
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "blocked", "eager"])
def test_meta_tensors_score_to_a_shape(backend, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    text, video = (side.to("meta") for side in pair())
    scores = four_grains(backend).to("meta")(text, video)
    assert (scores.device.type, scores.shape, scores.dtype) == ("meta", (9, 8), torch.float32)


def test_no_grad_and_inference_mode_score_alike_and_keep_no_graph():
    module = five_grains("blocked")
    expected = module(*pair())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            scores = module(*pair())
        assert not scores.requires_grad
        same([scores], [expected.detach()], 0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copied_scorer_scores_alike(copied):
    module = five_grains("blocked")
    module(*pair())  # nothing of a pass may stick to it
    twin = copied(module)
    same(outcome(twin, scoring(twin), features()), outcome(module, scoring(module), features()), 0.0)


def test_functional_call_replaces_parameters():
    module, other = five_grains("blocked"), randomise(five_grains("blocked"), seed=1)
    replaced = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    scores = torch.func.functional_call(module, replaced, pair())
    same([scores.detach()], [other(*pair()).detach()], 0.0)
    scores.sum().backward()
    assert all(p.grad is not None for p in replaced.values())
    assert all(p.grad is None for p in module.parameters())


def test_threads_score_at_once():
    module = five_grains("blocked")
    inputs = [features(items=(8 + i % 3, 9)) for i in range(12)]

    def run(given):
        leaves = [x.clone().requires_grad_() for x in given[:4]]
        scores = scoring(module)(*leaves, *given[4:])
        return [scores.detach(), *torch.autograd.grad(scores.sum(), leaves)]

    expected = [run(given) for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, alone in zip(pool.map(run, inputs), expected, strict=True):
            same(actual, alone, 0.0)


def by_frames(transform, backend: str | None) -> Tensor:
    text, video = pair()
    video = video["frame"]

    def score(frame):
        return mg.FrameWord("mean_max")(text, mg.Features(frame=(frame, video.mask)), backend)

    return transform(score, video.features)


TRANSFORMS = {
    "grad": lambda score, x: torch.func.grad(lambda x: score(x).sum())(x),
    "jacrev": lambda score, x: torch.func.jacrev(lambda x: score(x).sum(0))(x),
    "jvp": lambda score, x: torch.func.jvp(score, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda score, x: torch.func.vmap(score)(torch.stack([x, 2 * x, -x])),
    "forward": lambda score, x: forward_tangent(score, x),
}


def forward_tangent(score, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(score(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # forward mode, inside torch
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_auto_serves_whatever_transform_the_definition_serves(transform, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    expected = by_frames(TRANSFORMS[transform], "eager")
    actual = by_frames(TRANSFORMS[transform], None)
    assert actual is not None
    same([actual], [expected])
