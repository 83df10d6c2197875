"""The blocked backend: neither the size of its blocks nor the path through the exponentials shows in a result."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multigrain as mg
from multigrain.kernels import ops
from multigrain.kernels.blocked import scores as blocked
from multigrain.kernels.blocked.side import Side
from multigrain.kernels.spec import Operand
from tests.kernels.problems import ALL_CASES, CASES, DTYPES, FUSED, OWN, agree, constants, problems
from tests.strategies import mask, numbers

every_case = pytest.mark.parametrize("case", ALL_CASES, ids=str)
every_fused_case = pytest.mark.parametrize("case", FUSED, ids=str)
BLOCKS = st.fixed_dictionaries(
    {
        "blocked__scores__ELEMENTS": st.sampled_from([1, 7, 64, 500]),
        "blocked__scores__QUERY_SLOTS": st.sampled_from([1, 3, 8, 64]),
        "blocked__scores__LANES": st.sampled_from([1, 2, 5, 32]),
        "recompute__ELEMENTS": st.sampled_from([1, 7, 64, 500]),
        "blocked__side___CHUNK": st.sampled_from([1, 5, 50]),
    }
)


@every_case
@settings(max_examples=20)
@given(st.data(), BLOCKS, st.sampled_from(DTYPES))
def test_property_blocks_of_any_size_give_the_same(device, case, data, blocks, dtype):
    problem = data.draw(problems(case, items=7)).to(device, dtype)
    with constants(**blocks):
        agree(problem.outcome("blocked"), problem)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("aosm", "logsumexp")], ids=str)
@settings(max_examples=20)
@given(st.data(), st.sampled_from(DTYPES))
def test_property_shared_and_separate_exponentials_agree(device, case, data, dtype):
    """With TINY infinite, no sum of the shared exponential is ever trusted."""
    problem = data.draw(problems(case)).to(device, dtype)
    agree(problem.outcome("blocked"), problem)
    with constants(blocked__scores__TINY=math.inf):
        agree(problem.outcome("blocked"), problem)


@pytest.mark.parametrize("name", ["aosm", "logsumexp"])
def test_a_low_temperature_costs_no_denormal_numbers(name):
    """With them a gradient took up to 20 times as long; now two to three times: exponentials for each axis."""
    features = [torch.randn(64, length, 256, requires_grad=True) for length in (32, 12)]

    def seconds(temperature):
        grain = mg.FrameWord(mg.aggregators.build_aggregator(name, temperature=temperature))
        started = time.process_time()
        grain(mg.Features(word=features[0]), mg.Features(frame=features[1]), backend="blocked").sum().backward()
        return time.process_time() - started

    assert min(seconds(1e-3) for _ in range(5)) < 5 * min(seconds(0.01) for _ in range(5))


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 0.01, 0.1])
@pytest.mark.parametrize("name", ["aosm", "logsumexp"])
@pytest.mark.parametrize("scale", [50.0, -50.0, 1e-20])
def test_similarities_far_from_one_overflow_nothing(device, name, temperature, scale):
    """A large bilinear matrix makes them +-50, where exp(x / t) overflows and underflows within one block."""
    generator = torch.Generator().manual_seed(0)
    query, candidate = (torch.randn(6, 5, 16, generator=generator).to(device) for _ in range(2))
    masks = [(torch.rand(6, 5, generator=generator) < 0.6).to(device) for _ in range(2)]
    outcomes = []
    for backend, dtype in (("blocked", torch.float32), ("eager", torch.float64)):
        grain = mg.Grain(
            "query", "candidate", mg.aggregators.build_aggregator(name, temperature=temperature), bilinear=16
        )
        grain.to(device, dtype).bilinear.data.mul_(scale)
        leaves = [x.detach().to(dtype).requires_grad_() for x in (query, candidate)]
        sides = [mg.Features(**{n: (x, m)}) for n, x, m in zip(("query", "candidate"), leaves, masks, strict=True)]
        scores = grain(*sides, backend)
        scores.sum().backward()
        outcomes.append([scores.detach(), *(x.grad for x in leaves), grain.bilinear.grad])
    # A similarity of 50 is known to 4e-6, its weight to 4e-6 / t.
    allowed = 3e-5 * max(1.0, abs(scale)) / 50 / min(temperature, 0.1)
    for actual, expected in zip(*outcomes, strict=True):
        assert actual.isfinite().all()
        close = allowed * float(expected.abs().max().clamp_min(1e-6))
        torch.testing.assert_close(actual.double(), expected, atol=close, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("aosm", "logsumexp")], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_similarities_in_the_millions_keep_their_gradient(device, case, masked):
    """Whole numbers, so that every similarity is exact and only the kernel's own rounding shows."""
    generator = torch.Generator().manual_seed(0)
    x = [128 * torch.randint(-3, 4, (6, 4, 8), generator=generator).to(device, torch.float64) for _ in range(2)]
    masks = [(torch.rand(6, 4, generator=generator) < 0.7).to(device) if masked else None for _ in range(2)]
    incoming, outcomes = torch.randn(6, 6, generator=generator), []
    for backend, dtype in (("blocked", torch.float32), ("eager", torch.float64)):
        grain = mg.Grain("query", "candidate", case.build(temperature=2.0**-7))
        leaves = [t.to(dtype).requires_grad_() for t in x]
        text, video = (mg.Tokens(t, mask, unit=True) for t, mask in zip(leaves, masks, strict=True))
        scores = grain(mg.Features(query=text), mg.Features(candidate=video), backend)
        outcomes.append([scores.detach(), *torch.autograd.grad(scores, leaves, incoming.to(scores))])
    for actual, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual.double(), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@given(st.data())
def test_property_a_side_reads_every_real_token_once_and_few_others(device, data):
    items, length, tokens = (data.draw(st.integers(1, size)) for size in (40, 12, 60))
    real = mask(data.draw, items, length)
    x = numbers(data.draw, items, length, 3).to(device)
    side = Side(Operand(x, None if real is None else real.to(device), None, False))
    blocks = list(side.blocks(tokens, multiple=data.draw(st.sampled_from([1, 4]))))
    assert sum(block.size for block in blocks) == items
    read = torch.zeros_like(x)
    for block in blocks:
        side.add(read, block, side.read(block), torch.ones((), dtype=x.dtype, device=device))
    if real is None:
        real = torch.ones(items, length, dtype=torch.bool)
    torch.testing.assert_close(read, torch.where(real[..., None].to(device), x, 0.0), rtol=0, atol=0)
    slots = sum(block.size * block.length for block in blocks)
    needed = int(real.sum(1).clamp_min(1).sum())
    assert slots >= needed
    # Blocks are cut from sorted items, so the padding of all of them together is less than one full block's.
    assert slots - needed <= max(block.size for block in blocks) * (length - 1)


def test_captions_cost_about_their_real_tokens():
    """Lengths drawn as in MSR-VTT: about 10 of 32."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(256).log_normal_(2.2, 0.45, generator=generator).long().clamp(1, 32)
    real = torch.arange(32) < lengths[:, None]
    side = Side(Operand(torch.zeros(256, 32, 1), real[:, torch.randperm(32, generator=generator)], None, False))
    slots = sum(block.size * block.length for block in side.blocks(blocked.QUERY_SLOTS))
    assert slots < 1.15 * lengths.sum() < 0.4 * real.numel()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator returned, by its storage."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.fixture
def largest(monkeypatch):
    """Sees what fused operators do inside, too."""
    seen = Largest()

    def watched(function):
        def call(*arguments):
            with seen:
                return function(*arguments)

        return call

    spy = SimpleNamespace(forward=watched(blocked.forward), backward=watched(blocked.backward))
    monkeypatch.setitem(ops._MODULES, "blocked", spy)
    return seen


def lone(case, side: str) -> bool:
    """Whether an AOSM mixes the tokens of the other side alone and so wants one token on this one."""
    other = "candidate_tokens" if side == "query" else "query_tokens"
    return other in case.options and f"{side}_tokens" not in case.options


@pytest.mark.parametrize(
    ("case", "inputs"),
    [(case, inputs) for case in ALL_CASES for inputs in ("frames", "ragged frames")]
    + [(case, "ragged patches") for case in (*CASES, OWN)],
    ids=str,
)
def test_no_tensor_is_larger_than_a_few_blocks(case, inputs, largest):
    """Nor than what is given; a single step over the whole [q, c, m, n] would be."""
    lengths = {"query": 5, "candidate": 60 if "patches" in inputs else 5}
    limits = {f"{name}_tokens": n for name, n in lengths.items() if f"{name}_tokens" in case.options}
    if "dim" in case.options:
        limits["dim"] = 2
    grain = mg.Grain("query", "candidate", case.build(**limits).float())
    features, given = [], [p.numel() for p in grain.parameters()]
    for name, items in (("query", 80), ("candidate", 40)):
        length = 1 if lone(case, name) else lengths[name]
        x = torch.randn(items, length, 2, requires_grad=True)
        mask = torch.rand(items, length) < 0.7 if "ragged" in inputs else None
        features.append(mg.Features(**{name: (x, mask), "weight": torch.rand(items, length, 1)}))
        given.append(x.numel())
    block = 2048
    sizes = {"ELEMENTS": block, "QUERY_SLOTS": 32, "LANES": 8}
    small = constants(recompute__ELEMENTS=block, **{f"blocked__scores__{name}": x for name, x in sizes.items()})
    with small, largest:
        grain(*features, "blocked").sum().backward()
    q, c = (x[name] for x, name in zip(features, ("query", "candidate"), strict=True))
    whole = len(q) * q.length * len(c) * c.length
    assert 0 < largest.elements <= max(3 * block, *given) < whole / 2


@every_fused_case
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)], ids=str)
def test_scores_can_be_differentiated_twice(device, case, wants):
    generator = torch.Generator().manual_seed(1)
    query, candidate = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(device).requires_grad_(wanted)
        for shape, wanted in zip([(2, 3, 4), (3, 2, 4)], wants, strict=True)
    )
    masks = (
        torch.tensor([[1, 1, 0], [1, 0, 1]]).bool().to(device),
        torch.tensor([[1, 1], [0, 1], [0, 0]]).bool().to(device),
    )
    grain = mg.Grain(
        "query", "candidate", case.build(temperature=0.5) if case.name in ("aosm", "logsumexp") else case.build()
    )

    def score(query, candidate):
        return grain(mg.Features(query=(query, masks[0])), mg.Features(candidate=(candidate, masks[1])), "blocked")

    assert torch.autograd.gradgradcheck(score, (query, candidate))


@every_fused_case
@pytest.mark.parametrize("backend", ["eager", "blocked"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_token_spoils_its_own_scores_and_no_other(device, case, backend, bad):
    generator = torch.Generator().manual_seed(2)
    query, candidate = (torch.randn(5, 3, 4, generator=generator).to(device) for _ in range(2))
    grain = mg.Grain("query", "candidate", case.build().float())
    clean = grain(mg.Features(query=query), mg.Features(candidate=candidate), backend)
    query[1, 2], candidate[3, 0] = bad, bad
    scores = grain(mg.Features(query=query), mg.Features(candidate=candidate), backend)
    spoiled = torch.zeros(5, 5, dtype=torch.bool, device=device)
    spoiled[1], spoiled[:, 3] = True, True
    torch.testing.assert_close(scores[~spoiled], clean[~spoiled], atol=1e-5, rtol=0)
    assert scores[spoiled].isnan().all()


@every_fused_case
@pytest.mark.parametrize("backend", ["eager", "blocked"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_spoils_its_own_pair_and_no_other(device, case, backend, bad):
    generator = torch.Generator().manual_seed(4)
    query, candidate = (torch.randn(5, 3, 4, generator=generator).to(device).requires_grad_() for _ in range(2))
    grain = mg.Grain("query", "candidate", case.build().float())
    scores = grain(mg.Features(query=query), mg.Features(candidate=candidate), backend)
    incoming = torch.ones_like(scores)
    incoming[1, 3] = bad
    scores.backward(incoming)
    for leaf, item in ((query, 1), (candidate, 3)):
        finite = leaf.grad.isfinite().flatten(1).all(1)
        assert finite.tolist() == [i != item for i in range(5)]


@every_fused_case
def test_a_zero_token_has_no_direction_and_no_gradient(device, case):
    generator = torch.Generator().manual_seed(3)
    query, candidate = (torch.randn(4, 3, 4, generator=generator).to(device) for _ in range(2))
    query[0, 1], query[2], candidate[1, 0], candidate[3, 1] = 0.0, 0.0, 0.0, 1e-20
    outcomes = []
    for backend in ("blocked", "eager"):
        leaves = [x.clone().requires_grad_() for x in (query, candidate)]
        grain = mg.Grain("query", "candidate", case.build().float())
        scores = grain(mg.Features(query=leaves[0]), mg.Features(candidate=leaves[1]), backend)
        scores.sum().backward()
        outcomes.append([scores.detach(), *(x.grad for x in leaves)])
        assert not any(x.grad[place].any() for x, place in ((leaves[0], 2), (leaves[1], (3, 1))))
    for actual, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
