"""The triton backend against the eager definition: what test_triton.py runs, under the interpreter and on CUDA.

pytest does not collect this file by itself. Triton decides between its interpreter and the device when the kernels
are first imported, so the former needs a process of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from multigrain.aggregators import TwoLevel
from multigrain.kernels import dispatch as table
from multigrain.kernels import fusion
from multigrain.kernels.spec import Operand, Spec, Unsupported
from multigrain.kernels.triton import scores as fused
from multigrain.kernels.triton.launch import Tiling, streamed_slots
from multigrain.reduce import Reduction
from tests.kernels.problems import DTYPES, FUSED, MIXED, WEIGHTED, Problem, agree, constants, problems

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SPECS = [
    Spec(inner, 0.1, outer, 0.05, both)
    for inner in ("max", "softmax", "logsumexp")
    for outer in ("linear", "max", "softmax", "logsumexp")
    for both in (False, True)
]
LENGTHS = ((1, 1), (7, 5), (33, 12), (1, 130), (4, 1), (32, 17), (128, 3), (130, 6), (16, 16), (2, 64), (9, 300))
TEMPERATURES = ((0.01, 0.01), (0.1, 0.05), (0.001, 0.01), (10.0, 0.1), (0.01, 10.0), (0.001, 0.001))
MASKS = ("none", "prefix", "holes")
# Tiles of 16 x 16, and a new block of the backward pass every few items, so that there are many of each.
SMALL = {
    "triton__launch__TILINGS": {
        (kernel, size): Tiling(16, 16, 16, 4, 2) for kernel in ("scores", "slopes") for size in (2, 4)
    },
    "triton__launch__ROWS": 40,
    "triton__launch__COLUMNS": {2: 24, 4: 24},
}


class Draw:
    """One problem of a grid: everything but the reductions comes from a seed."""

    def __init__(self, spec: Spec, seed: int) -> None:
        draw = random.Random(f"{spec} {seed}")
        temperature = draw.choice(TEMPERATURES)
        self.spec = spec._replace(inner_temperature=temperature[0], outer_temperature=temperature[1])
        self.dtype = (torch.float32, torch.float16, torch.bfloat16)[seed % 3]
        self.sharp = max(1.0, 1 / min(temperature))
        generator = torch.Generator().manual_seed(draw.randrange(2**20))
        # Of sums, which tokens tie is a matter of rounding.
        normalize, ties = draw.random() < 0.7, spec.inner == "max" and draw.random() < 0.4
        dim = draw.choice((8, 20, 64, 80))
        lengths, sizes = draw.choice(LENGTHS), draw.choice(((3, 5), (1, 9), (6, 2)))
        self.small = max(lengths) <= 17 or draw.random() < 0.1
        self.sides = [
            self._operand(generator, size, length, dim, draw.choice(MASKS), normalize, ties)
            for size, length in zip(sizes, lengths, strict=True)
        ]
        self.grad = torch.randn(sizes, generator=generator).to(DEVICE)

    def _operand(
        self, generator: torch.Generator, size: int, length: int, dim: int, kind: str, normalize: bool, ties: bool
    ) -> Operand:
        x = torch.randn(size, length, dim, generator=generator)
        if ties:  # one axis each: whatever order sums are done in, equal similarities are equal
            x = x.sign() * (x.abs() == x.abs().amax(-1, keepdim=True)) * 2.0
        if not normalize:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        real = torch.ones(size, length, dtype=torch.bool)
        if kind == "prefix":
            real = torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)
        if kind == "holes":
            real = torch.rand(size, length, generator=generator) < 0.5
            real[:, length // 2] = True
        x = torch.where(real[..., None], x, torch.nan).to(DEVICE, self.dtype)
        weights = torch.randn(size, length, generator=generator) * real if self.spec.outer == "linear" else None
        return Operand(
            x, None if kind == "none" else real.to(DEVICE), None if weights is None else weights.to(DEVICE), normalize
        )

    def eager(self) -> list[Tensor]:
        """The scores, and the gradients that there are, by the definition in fp64 on the same numbers."""
        leaves = [
            [t if t is None else t.double().requires_grad_() for t in (s.x.detach(), s.weights)] for s in self.sides
        ]
        q, c = (
            mg.Tokens(x, s.mask, unit=not s.normalize).normalized().features
            for (x, _), s in zip(leaves, self.sides, strict=True)
        )
        masks = [s.mask for s in self.sides]
        spec, sim = self.spec, torch.einsum("qmd,cnd->qcmn", q, c)
        inner, outer = Reduction(spec.inner, spec.inner_temperature), None
        if spec.outer == "linear":
            q_mask, c_mask = (None if m is None else m for m in masks)
            q_weights, c_weights = (w if m is None else w * m for (_, w), m in zip(leaves, masks, strict=True))
            y = inner(sim, None if c_mask is None else c_mask[None, :, None], 3)
            scores = torch.einsum("qcm,qm->qc", y, q_weights)
            if spec.both:
                y = inner(sim, None if q_mask is None else q_mask[:, None, :, None], 2)
                scores = (scores + torch.einsum("qcn,cn->qc", y, c_weights)) / 2
        else:
            outer = Reduction(spec.outer, spec.outer_temperature)
            scores = TwoLevel(outer, inner, "both" if spec.both else "query")(sim, *masks)
        wanted = [leaf for pair in zip(*leaves, strict=True) for leaf in pair if leaf is not None]
        gradients = torch.autograd.grad(scores, wanted, self.grad.double(), allow_unused=True, materialize_grads=True)
        return [scores.detach(), *gradients]

    def fused(self) -> list[Tensor]:
        with constants(**(SMALL if self.small else {})):
            scores = fused.forward(*self.sides, self.spec)
            gradients = fused.backward(self.grad, *self.sides, self.spec)
        return [scores, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("seed", range(3 if INTERPRETED else 30))
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scores_and_all_gradients_equal_eager(spec, seed):
    draw = Draw(spec, seed)
    actual, expected = draw.fused(), draw.eager()
    assert len(actual) == len(expected)
    assert actual[0].dtype == torch.float32
    # A similarity's last bits count 1 / temperature times in a weight.
    names = ("scores", "query", "candidate", "q weights", "c weights")
    for name, got, want in zip(names, actual, expected, strict=False):
        tolerance = 1e-5 if name == "scores" else 1e-5 + 1e-6 * draw.sharp
        if name in ("query", "candidate"):
            assert got.dtype == draw.dtype
            tolerance += 0 if draw.dtype == torch.float32 else 4 * torch.finfo(draw.dtype).eps
        assert got.shape == want.shape
        error = float((got.double() - want).abs().max()) / max(float(want.abs().max()), 1e-3)
        assert error <= tolerance, f"{name}: error {error:.3g}, allowed {tolerance:.3g}"


@pytest.mark.parametrize("case", [*FUSED, *MIXED, *WEIGHTED], ids=str)
@settings(max_examples=5 if INTERPRETED else 40)
@given(st.data(), st.sampled_from(DTYPES[1:]), st.sampled_from(DTYPES[1:]))
def test_property_backend_equals_eager_for_every_aggregator(case, data, dtype, other):
    problem = data.draw(problems(case)).to(DEVICE, dtype, other)
    agree(outcome(problem), problem)


def outcome(problem: Problem) -> dict[str, Tensor]:
    """By the backend, and by nothing else."""
    with serving():
        return problem.outcome("triton")


@contextmanager
def serving() -> Iterator[None]:
    """The backend is there for the asking."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:  # the table's row is for CUDA
            scores = fusion.two_level_scores
            patch.setitem(table.BACKENDS, "triton", lambda *grain: scores(*grain[:3], "triton", *grain[3:]))
        yield


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's
@pytest.mark.parametrize("inner", ["max", "softmax", "logsumexp"])
def test_nan_at_a_real_token_shows_in_the_scores_of_its_item_alone(inner):
    x = torch.randn(3, 4, 8, device=DEVICE)
    x[1, 2, 3] = torch.nan
    scores = fused.forward(
        Operand(x, None, None, True), Operand(x, None, None, True), Spec(inner, 0.1, "max", 0.1, True)
    )
    expected = torch.zeros(3, 3, dtype=torch.bool, device=DEVICE)
    expected[1], expected[:, 1] = True, True
    assert torch.equal(scores.isnan(), expected)


def test_fp16_gradients_survive_any_scale():
    """Norms from 1e-3 to 1e3 and a gradient of 1e-6, as that of a mean over many pairs: no product leaves the range."""
    generator = torch.Generator().manual_seed(0)
    spec, sides = Spec("softmax", 0.1, "softmax", 0.1, True), []
    for size in (3, 4):
        x = torch.randn(size, 5, 16, generator=generator)
        scale = 10 ** torch.linspace(-3, 3, 5)[:, None]
        sides.append((x * scale).half().to(DEVICE))
    grad = 1e-6 * torch.randn(3, 4, generator=generator).to(DEVICE)
    operands = [[Operand(x.to(dtype), None, None, True) for x in sides] for dtype in (torch.float16, torch.float32)]
    half, single = (fused.backward(grad, *pair, spec) for pair in operands)
    for got, want, x in zip(half[:2], single[:2], sides, strict=True):
        norm = x.float().norm(dim=-1, keepdim=True)  # the gradient by a token goes with 1 / its norm
        smallest = 2.0**-24 * norm  # of fp16 in those units
        error = (got.float() * norm - want * norm).abs()
        assert (error <= 5e-3 * (want * norm).abs().max() + smallest).all()


@pytest.mark.parametrize("most", [16, 128])
def test_tiles_add_little_padding(most):
    for length in range(1, 400):
        slots = streamed_slots(length, most)
        assert slots <= most and -(-length // slots) * slots <= (length + 7) * 8 / 7


def test_what_cannot_be_served_is_said():
    def serve(m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        sides = [Operand(torch.randn(2, tokens, 8, dtype=dtype, device=DEVICE), None, None, True) for tokens in (m, n)]
        return fused.forward(*sides, Spec("max", 1.0, "max", 1.0, True))

    with pytest.raises(Unsupported, match="fp16, bf16 or fp32, got torch"):
        serve(2, 2, torch.float64)
    with pytest.raises(Unsupported, match="at most 128 tokens an item, got 129 query and 130 candidate"):
        serve(129, 130)
    assert serve(129, 128).shape == (2, 2)
    if not INTERPRETED:
        with pytest.raises(Unsupported, match="CUDA device"):
            fused.forward(*[Operand(torch.randn(2, 2, 8), None, None, True)] * 2, SPECS[-1])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_items(shape):
    sides = [Operand(torch.randn(size, 4, 8, device=DEVICE), None, None, True) for size in shape]
    scores = fused.forward(*sides, SPECS[-1])
    gradients = fused.backward(scores, *sides, SPECS[-1])
    assert scores.shape == shape
    assert [g.shape for g in gradients[:2]] == [s.x.shape for s in sides]
