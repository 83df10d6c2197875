"""What the properties draw: similarities with masks, pairs of Features, and one case per aggregator and direction.

Sizes, mask kinds and a seed are drawn, so that a failing example shrinks to few items and tokens; the numbers
come from the seed. Everything is fp64 on the CPU until a test moves it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

import multigrain as mg
from multigrain.aggregators import aggregator_names
from tests import oracle

DIRECTIONS = ("query", "candidate", "both")
POISONS = (float("nan"), float("inf"), -float("inf"), 1e30)
MASKS = ("none", "full", "prefix", "holes", "empty")
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A registered aggregator with arguments, and the oracle that judges it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> mg.Aggregator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for those with an MLP
            return mg.aggregators.build_aggregator(self.name, **(self.options | more)).double()

    def judge(self, sim: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None, **more: Any) -> Tensor:
        """Scores [q, c] by the oracle, one pair after the other."""
        queries, candidates, m, n = sim.shape
        rows = _list(query_mask, (queries, m))
        columns = _list(candidate_mask, (candidates, n))
        scores = [
            [
                oracle.aggregate(self.name, sim[q, c].tolist(), rows[q], columns[c], **(self.options | more))
                for c in range(candidates)
            ]
            for q in range(queries)
        ]
        return torch.tensor(scores, dtype=torch.float64)

    def __str__(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.options.values())])


def _cases() -> list[Case]:
    """Every registered aggregator in every direction it takes; one that the oracle does not know is an error."""
    cases = []
    for name in sorted(aggregator_names()):
        assert name in oracle.AGGREGATORS, f"aggregator {name!r} is registered, but tests/oracle.py cannot judge it"
        assert "direction" in inspect.signature(type(mg.aggregators.build_aggregator(name))).parameters
        cases += [Case(name, {"direction": direction}) for direction in DIRECTIONS]
    return cases


CASES = _cases()


def judge_grain(grain: mg.Grain, pair: Pair, case: Case | None, **options: Any) -> Tensor:
    """Scores [texts, videos] of one grain by the oracle; `case` says which aggregator the grain holds."""
    query, candidate = items(pair.text[grain.query]), items(pair.video[grain.candidate])
    bilinear = None if grain.bilinear is None else grain.bilinear.tolist()
    name, options = (None, {}) if case is None else (case.name, case.options | options)
    scores = [[oracle.grain(q, c, qm, cm, bilinear, name, **options) for c, cm in candidate] for q, qm in query]
    return torch.tensor(scores, dtype=torch.float64)


def items(tokens: mg.Tokens) -> list[tuple[list[list[float]], list[bool]]]:
    """(tokens, mask) of each item, as the oracle takes them."""
    shape = tokens.batch_size, tokens.length
    return list(zip(tokens.features.view(*shape, -1).tolist(), _list(tokens.mask, shape), strict=True))


def _list(mask: Tensor | None, shape: tuple[int, int]) -> list[list[bool]]:
    return (torch.ones(shape, dtype=torch.bool) if mask is None else mask).tolist()


def numbers(draw: st.DrawFn, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mask(draw: st.DrawFn, items: int, length: int, kinds: tuple[str, ...] = MASKS) -> Tensor | None:
    """[items, length]: none, all real, real prefixes, holes anywhere, or holes with an item that has nothing."""
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    real = torch.ones(items, length, dtype=torch.bool)
    if kind == "prefix":
        lengths = torch.tensor(draw(st.lists(st.integers(1, length), min_size=items, max_size=items)))
        real = torch.arange(length) < lengths[:, None]
    if kind in ("holes", "empty"):
        bits = draw(st.lists(st.booleans(), min_size=items * length, max_size=items * length))
        real = torch.tensor(bits).view(items, length)
        real[torch.arange(items), torch.arange(items) % length] = True
    if kind == "empty":
        real[draw(st.integers(0, items - 1))] = False
    return real


@dataclass
class Sims:
    """sim [q, c, m, n] and its masks."""

    sim: Tensor
    query_mask: Tensor | None
    candidate_mask: Tensor | None

    def to(self, device: torch.device) -> Sims:
        masks = (None if x is None else x.to(device) for x in (self.query_mask, self.candidate_mask))
        return Sims(self.sim.to(device), *masks)

    def __iter__(self):  # so that aggregator(*sims) reads as the call it is
        return iter((self.sim, self.query_mask, self.candidate_mask))

    @property
    def real(self) -> Tensor:
        """[q, c, m, n]: both tokens are real."""
        q, c, m, n = self.sim.shape
        rows = torch.tensor(_list(self.query_mask, (q, m)), device=self.sim.device)
        columns = torch.tensor(_list(self.candidate_mask, (c, n)), device=self.sim.device)
        return rows[:, None, :, None] & columns[None, :, None, :]


@st.composite
def sims(draw: st.DrawFn, masks: tuple[str, ...] = MASKS, ties: bool = True, tokens: int = 5) -> Sims:
    """Similarities in about [-1, 1]; with `ties`, sometimes on a coarse grid where maxima tie."""
    q, c = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    m, n = draw(st.integers(1, tokens)), draw(st.integers(1, tokens))
    sim = numbers(draw, q, c, m, n).tanh()
    if ties and draw(st.booleans()):
        sim = (2 * sim).round() / 2
    return Sims(sim, mask(draw, q, m, masks), mask(draw, c, n, masks))


@dataclass
class Pair:
    """Text and video features of one drawn width; `texts` and `videos` differ more often than not."""

    text: mg.Features
    video: mg.Features
    dim: int

    def to(self, device: torch.device, dtype: torch.dtype = torch.float64) -> Pair:
        return Pair(self.text.to(device, dtype), self.video.to(device, dtype), self.dim)

    def __iter__(self):
        return iter((self.text, self.video))


@st.composite
def pairs(draw: st.DrawFn, masks: tuple[str, ...] = MASKS, items: int = 4, tokens: int = 5) -> Pair:
    """Features(sentence, word) and Features(video, frame); vectors are far from unit length."""
    q, c = draw(st.integers(1, items)), draw(st.integers(1, items))
    m, n, dim = draw(st.integers(1, tokens)), draw(st.integers(1, tokens)), draw(st.integers(2, 6))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    text = mg.Features(
        sentence=scale * numbers(draw, q, dim), word=(scale * numbers(draw, q, m, dim), mask(draw, q, m, masks))
    )
    video = mg.Features(
        video=scale * numbers(draw, c, dim), frame=(scale * numbers(draw, c, n, dim), mask(draw, c, n, masks))
    )
    return Pair(text, video, dim)


def map_grains(features: mg.Features, change: Callable[[mg.Tokens], mg.Tokens]) -> mg.Features:
    return mg.Features(**{name: change(features[name]) for name in features.names})


def poisoned(features: mg.Features, poison: float) -> mg.Features:
    """The same features with a poison in every padded slot."""

    def change(tokens: mg.Tokens) -> mg.Tokens:
        if tokens.mask is None:
            return tokens
        return mg.Tokens(tokens.features.masked_fill(~tokens.mask[..., None], poison), tokens.mask)

    return map_grains(features, change)


def leaves(features: mg.Features) -> mg.Features:
    """The same features as leaves that collect gradients."""
    return map_grains(features, lambda t: mg.Tokens(t.features.detach().clone().requires_grad_(), t.mask))


def gradients(*features: mg.Features) -> list[Tensor]:
    return [f[name].features.grad for f in features for name in f.names if f[name].features.grad is not None]


def randomise(module: torch.nn.Module, seed: int = 0, spread: float = 0.3) -> torch.nn.Module:
    """Every parameter moved off its initial value: identities would hide a transposed or swapped matrix."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (spread * noise).to(parameter)
    return module


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal in dtype and shape, and in value to an absolute and relative tolerance, wherever they live."""
    torch.testing.assert_close(actual.detach().cpu(), expected.detach().cpu(), atol=tolerance, rtol=tolerance)
