"""What the kernel tests draw: one grain with everything a kernel could trip over, and its outcome by a backend.

A problem is drawn as sizes, kinds and a seed, in fp64, with a poison behind every mask, and rounded to the dtype
under test. The judge is the eager backend in fp64 on the same rounded numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import multigrain as mg
from multigrain.aggregators import TwoLevel
from multigrain.kernels import fusion
from multigrain.reduce import Reduction
from tests.strategies import CASES, MASKS, POISONS, Case, mask, randomise

TEMPERATURES = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOKENS = 5
Outcome = dict[str, Tensor]  # the scores and the gradient of every leaf that wants one


class Attentive(mg.Aggregator):
    """A user's own aggregator with parameters of its own: one softmax over all token pairs, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, sim, query_mask=None, candidate_mask=None):
        logits = sim * self.sharpness
        if query_mask is not None:
            logits = logits.masked_fill(~query_mask[:, None, :, None], -torch.inf)
        if candidate_mask is not None:
            logits = logits.masked_fill(~candidate_mask[None, :, None, :], -torch.inf)
        return (logits.flatten(2).softmax(2) * sim.flatten(2)).sum(2) + self.bias


@dataclass(frozen=True)
class OwnCase(Case):
    """As a registered case, for the aggregator above."""

    def build(self, **more: Any) -> mg.Aggregator:
        return Attentive().double()


STEEP = ("isa", "normalized_softmax")
KINDS = ("mean", "sum", "max", "logsumexp", "softmax")


@dataclass(frozen=True)
class TwoLevelCase(Case):
    """Any reduction of any reduction, each with a temperature of its own; its name is "outer of inner"."""

    def build(self, temperature: float = 0.1, **more: Any) -> mg.Aggregator:
        outer, inner = self.name.split(" of ")
        return TwoLevel(Reduction(outer, 3 * temperature), Reduction(inner, temperature), **self.options)


TWO_LEVEL = [
    TwoLevelCase(f"{outer} of {inner}", {"direction": direction})
    for outer in KINDS
    for inner in KINDS
    for direction in ("query", "candidate", "both")
]
MIXED = [
    Case("aosm", {"direction": direction, "query_tokens": TOKENS, "candidate_tokens": TOKENS})
    for direction in ("query", "candidate", "both")
]
MIXED += [Case("aosm", {"query_tokens": TOKENS}), Case("aosm", {"candidate_tokens": TOKENS})]
MIXED_ISA = [
    Case("isa", {"query_tokens": TOKENS, "candidate_tokens": TOKENS}),
    Case("isa", {"query_tokens": TOKENS}),
    Case("isa", {"candidate_tokens": TOKENS}),
]
LEARNED = [Case("token_weighted", {"direction": direction, "dim": 1}) for direction in ("query", "candidate", "both")]
GIVEN = [
    Case("token_weighted", {"query_weights": "weight", "candidate_weights": "weight"}),
    Case("token_weighted", {"candidate_weights": "weight", "dim": 1}),
]
WEIGHTED = [*LEARNED, *GIVEN]
OWN = OwnCase("own")
FUSED = [case for case in CASES if fusion.fuses(case.build(), "blocked")]
ALL_CASES = [*CASES, *MIXED, *MIXED_ISA, Case("top_k", {"k": 2}), *WEIGHTED, OWN]


@dataclass
class Side:
    """One side: the leaf that collects gradients, how it becomes [B, L, D], its mask, weights of its tokens."""

    base: Tensor
    layout: str
    items: int
    mask: Tensor | None
    weights: Tensor  # [B, L, 1], the grain "weight"

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Side:
        moved = None if self.mask is None else self.mask.to(device)
        base, weights = (x.detach().to(device, dtype) for x in (self.base, self.weights))
        return dataclasses.replace(self, base=base, mask=moved, weights=weights)

    def tokens(self, unit: bool) -> mg.Tokens:
        x = self.base
        if self.layout == "transposed":
            x = x.transpose(0, 1)
        elif self.layout == "strided":
            x = x[..., ::2]
        elif self.layout == "expanded":
            x = x.expand(self.items, -1, -1)
        return mg.Tokens(x, self.mask, unit=unit)


@dataclass
class Problem:
    """One grain: two sides, an aggregator, perhaps a bilinear matrix, and the gradient of the scores."""

    query: Side
    candidate: Side
    aggregator: mg.Aggregator
    temperature: float  # the smallest; 1 where there is none
    unit: bool
    bilinear: Tensor | None
    weight: Tensor  # [q, c]: the gradient of the scores
    wants: str  # "both", "query" or "candidate": the sides whose features want a gradient

    def to(self, device: torch.device | str, dtype: torch.dtype, other: torch.dtype | None = None) -> Problem:
        """On a device, features in a dtype (the candidate's in another); everything else in that of the scores."""
        other = other or dtype
        wide = torch.promote_types(torch.promote_types(dtype, other), torch.float32)
        weight = self.weight
        if torch.float16 in (dtype, other):
            weight = weight / weight.abs().max().clamp_min(1.0)  # or gradients overflow fp16
        return dataclasses.replace(
            self,
            query=self.query.to(device, dtype),
            candidate=self.candidate.to(device, other),
            aggregator=self.aggregator.to(device, wide),
            bilinear=None if self.bilinear is None else self.bilinear.to(device, wide),
            weight=weight.to(device, wide),
        )

    @property
    def dtype(self) -> torch.dtype:
        """That of the scores."""
        return self.weight.dtype

    def outcome(self, backend: str | None) -> Outcome:
        """Scores by a backend and the gradients by every leaf that wants one."""
        grain = mg.Grain("query", "candidate", self.aggregator)
        if self.bilinear is not None:
            grain.bilinear = nn.Parameter(self.bilinear.clone())
        sides = {"query": self.query, "candidate": self.candidate}
        for name, side in sides.items():
            side.base = side.base.detach().clone().requires_grad_(self.wants in ("both", name))
            side.weights = side.weights.detach().clone().requires_grad_()
        grain.zero_grad()
        features = [
            mg.Features(**{name: side.tokens(self.unit), "weight": (side.weights, side.mask)})
            for name, side in sides.items()
        ]
        scores = grain(*features, backend)
        scores.backward(self.weight)
        leaves = {name: side.base for name, side in sides.items()} | dict(grain.named_parameters())
        leaves |= {f"weights of {name}": side.weights for name, side in sides.items()}
        return {"scores": scores.detach()} | {k: v.grad for k, v in leaves.items() if v.grad is not None}


@st.composite
def problems(draw: st.DrawFn, case: Case, items: int = 4) -> Problem:
    """A problem for an aggregator; sizes of 1 are as likely as others."""
    q, c, m, n = (draw(st.integers(1, size)) for size in (items, items, TOKENS, TOKENS))
    if case.options.get("query_tokens", 0) and "candidate_tokens" not in case.options:
        n = 1
    if case.options.get("candidate_tokens", 0) and "query_tokens" not in case.options:
        m = 1
    dim = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    # Of a mean, which tokens tie is a matter of rounding; and so is the direction of similarities that cancel.
    tied = case.name not in ("max_mean", "max of mean", "normalized_softmax") and draw(st.integers(0, 3)) == 0
    unit = draw(st.booleans())
    numbers = _tied if tied else _normal
    query, candidate = (_side(draw, b, t, dim, lambda *s: numbers(generator, unit, *s)) for b, t in ((q, m), (c, n)))
    temperatures = TEMPERATURES[2:] if case in MIXED or case.name in STEEP else TEMPERATURES
    tempered = any(word in case.name for word in ("aosm", "isa", "logsumexp", "softmax"))
    settings = {"temperature": draw(st.sampled_from(temperatures))} if tempered else {}
    if "dim" in case.options:
        settings["dim"] = dim
    matrix = None
    if not tied and draw(st.booleans()):
        matrix = torch.eye(dim, dtype=torch.float64) + 0.3 * _normal(generator, False, dim, dim)
    return Problem(
        query=query,
        candidate=candidate,
        aggregator=randomise(case.build(**settings)),
        temperature=settings.get("temperature", 1.0),
        unit=unit,
        bilinear=matrix,
        weight=draw(st.sampled_from([1.0, 1e5])) * _normal(generator, False, q, c),
        wants=draw(st.sampled_from(["both", "query", "candidate"])),
    )


def _normal(generator: torch.Generator, unit: bool, *shape: int) -> Tensor:
    """Any direction; of length 1, or from 0.5 to 2."""
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    length = 1.0 if unit else 2 ** (2 * torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64) - 1)
    return length * x / x.norm(dim=-1, keepdim=True)


def _tied(generator: torch.Generator, unit: bool, *shape: int) -> Tensor:
    """Signed axes, some doubled: every cosine is 0, 1 or -1 in every dtype, so that maxima tie exactly."""
    axis = torch.randint(shape[-1], shape[:-1], generator=generator)
    length = 2.0 ** torch.randint(-2, 3, shape[:-1], generator=generator) if not unit else torch.ones(shape[:-1])
    sign = 1 - 2 * torch.randint(2, shape[:-1], generator=generator)
    return nn.functional.one_hot(axis, shape[-1]).double() * (sign * length)[..., None]


def _side(draw: st.DrawFn, items: int, length: int, dim: int, numbers) -> Side:
    layout = draw(st.sampled_from(LAYOUTS))
    real = mask(draw, items, length, MASKS)
    poison = draw(st.sampled_from(POISONS))
    x, weights = numbers(items, length, dim), 0.5 + numbers(items, length, 1).abs()
    if real is not None:
        weights = weights.masked_fill(~real[..., None], poison)
    if layout == "expanded":
        return Side(x[:1].clone(), layout, items, real, weights)  # a slot padded in one item may be real in another
    if real is not None:
        x = x.masked_fill(~real[..., None], poison)
    if layout == "transposed":
        x = x.transpose(0, 1).contiguous()
    if layout == "strided":
        x = torch.stack([x, torch.full_like(x, 7.0)], -1).flatten(-2)
    return Side(x, layout, items, real, weights)


def agree(actual: Outcome, problem: Problem, share: float = 1.0) -> None:
    """Equal to eager in fp64, to a share of the tolerance relative to 1, or to the gradient that came in."""
    device = problem.weight.device
    expected = problem.to(device, torch.float64).outcome("eager")
    assert actual.keys() == expected.keys()
    incoming = float(problem.weight.abs().sum())
    for name, value in expected.items():
        got = actual[name]
        assert got.shape == value.shape, name
        assert got.isfinite().all(), f"{name}: not finite"
        scale = max(float(value.abs().max()), 1.0 if name == "scores" else incoming)
        # A half-precision leaf holds its gradient rounded.
        rounding = 2 * torch.finfo(got.dtype).eps if got.dtype in (torch.float16, torch.bfloat16) else 0.0
        allowed = share * tolerance(problem) + rounding
        error = float((got.double() - value).abs().max()) / scale
        assert error <= allowed, f"{name}: error {error:.3g} of {scale:.3g}, allowed {allowed:.3g}"


def tolerance(problem: Problem) -> float:
    """A similarity's last bits count 1 / temperature times in a weight of a softmax, squared behind a mixing matrix."""
    coarsest = min((problem.query.base.dtype, problem.candidate.base.dtype), key=lambda dtype: dtype.itemsize)
    eps = torch.finfo(torch.promote_types(coarsest, torch.float32)).eps
    steep = isinstance(problem.aggregator, mg.aggregators.ISA) or (
        isinstance(problem.aggregator, mg.AOSM) and problem.aggregator.mixes
    )
    # Similarities of a level that nearly cancel have a length of which rounding takes a larger share.
    scale = 100 if isinstance(problem.aggregator, mg.aggregators.NormalizedSoftmax) else 1
    return 30 * eps * scale * max(1.0, 1 / problem.temperature) ** (2 if steep else 1)


@contextmanager
def constants(**values: Any) -> Iterator[None]:
    """Constants "module.NAME" of multigrain.kernels for a while; one that is not there is an error."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(f"multigrain.kernels.{name.replace('__', '.')}", value)
        yield
