"""AOSM with mixing matrices on the triton backend: sizes that the drawn problems of triton_cases.py are too small for.

The eager definition in fp64 judges scores and all gradients, those by the matrices included.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import multigrain as mg
from multigrain.kernels import ops, reference
from multigrain.kernels.spec import Operand, Spec, Unsupported
from multigrain.kernels.triton import scores as fused
from multigrain.kernels.triton.launch import Tiling
from tests.kernels.problems import Problem, Side, agree, constants
from tests.kernels.scorers import same
from tests.kernels.triton_cases import DEVICE, SMALL, outcome, serving
from tests.strategies import randomise

# Tiles of 16 x 16: even short items are streamed.
SMALL = SMALL | {
    "triton__mixed__TILINGS": {
        (kernel, size): Tiling(16, 16, 16, 4, 2) for kernel in ("levels", "mixed_slopes") for size in (2, 4)
    },
}
HALF = torch.float16


def side(items: int, length: int, masked: str, seed: int) -> Side:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, length, 24, generator=generator, dtype=torch.float64)
    real = None
    if masked == "prefix":
        real = torch.arange(length) < torch.randint(1, length + 1, (items, 1), generator=generator)
    if masked == "holes":
        real = torch.rand(items, length, generator=generator) < 0.6
        real[0] = False  # an item with nothing
        real[-1, -1] = True
    if real is not None:
        x = x.masked_fill(~real[..., None], torch.nan)
    return Side(x, "contiguous", items, real, torch.ones(items, length, 1, dtype=torch.float64))


def problem(
    items: tuple[int, int], lengths: tuple[int, int], matrices: dict[str, int], masked: str = "holes", **settings
) -> Problem:
    sides = [side(size, length, masked, seed) for seed, (size, length) in enumerate(zip(items, lengths, strict=True))]
    aggregator = mg.AOSM(0.1, **{f"{name}_tokens": size for name, size in matrices.items()}, **settings).double()
    weight = torch.randn(items, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spread = 0.3 / max(lengths) ** 0.5
    return Problem(*sides, randomise(aggregator, spread=spread), 0.1, False, None, weight, "both")


def judge(problem: Problem, small: bool, *dtypes: torch.dtype) -> None:
    problem = problem.to(DEVICE, *dtypes)
    with constants(**(SMALL if small else {})):
        actual = outcome(problem)
    agree(actual, problem)


# Items of either side, their tokens, whether in small tiles.
SHAPES = {
    "many small tiles": ((4, 3), (12, 9), True),
    "streamed in small tiles": ((2, 2), (7, 33), True),
    "streamed": ((2, 2), (18, 150), False),
    "no room for the query": ((2, 2), (130, 20), False),
    "words and frames": ((3, 5), (32, 12), False),
}


@pytest.mark.parametrize(
    ("direction", "masked", "dtype"),
    [
        ("both", "none", torch.float32),
        ("both", "prefix", torch.bfloat16),
        ("both", "holes", torch.float32),
        ("query", "holes", HALF),
        ("candidate", "holes", torch.float32),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_all_gradients_equal_eager(shape, direction, masked, dtype):
    """The matrices are larger than the items are long: their upper left corners count."""
    items, lengths, small = SHAPES[shape]
    matrices = {"query": lengths[0] + 2, "candidate": lengths[1] + 3}
    judge(problem(items, lengths, matrices, masked, direction=direction), small, dtype)


def test_an_item_that_ends_some_tiles_before_its_neighbour_equals_eager():
    drawn = problem((2, 2), (3, 52), {"query": 3, "candidate": 52}, "none")
    drawn.candidate.mask = torch.arange(52) < torch.tensor([[52], [36]])
    with constants(triton__mixed__TILINGS=SMALL["triton__mixed__TILINGS"]):  # in one block
        judge(drawn, False, torch.float32)


@pytest.mark.parametrize(("length", "small"), [(1, True), (20, True), (32, False), (140, False)])
@pytest.mark.parametrize("side", ["query", "candidate"])
def test_against_a_coarse_side_equals_eager(length, side, small):
    lengths = (length, 1) if side == "query" else (1, length)
    judge(problem((3, 4), lengths, {side: length + 1}), small, torch.float32, HALF)


def test_fp16_gradients_survive_steep_matrices():
    """Tokens of an item are alike, and mixed so that they are not: slopes are large, and none leaves the range."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(2, 4, 1, 16, generator=generator) + 0.01 * torch.randn(2, 4, 6, 16, generator=generator)]
    sides = list(sides[0].half().to(DEVICE))
    matrices = [3 * torch.randn(6, 6, generator=generator).to(DEVICE) for _ in range(4)]
    grad = torch.randn(4, 4, generator=generator).to(DEVICE)
    spec = Spec("softmax", 0.01, "softmax", 0.01, True)
    half, single = (
        fused.backward(grad, *(Operand(x.to(t), None, None, True, *matrices[i::2]) for i, x in enumerate(sides)), spec)
        for t in (HALF, torch.float32)
    )
    for got, want in zip(half, single, strict=True):
        if want is not None:
            assert got.isfinite().all()
            # Of tokens that are alike, little of what was rounded is left across them.
            assert (got.float() - want).abs().max() <= 0.05 * want.abs().max()


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")  # the interpreter's
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_real_token_shows_in_the_scores_of_its_item_alone(bad):
    x = torch.randn(3, 4, 8, device=DEVICE)
    x[1, 2, 3] = bad
    sides = [Operand(x, None, None, True, *torch.randn(2, 4, 4, device=DEVICE)) for _ in range(2)]
    scores = fused.forward(*sides, Spec("softmax", 0.1, "softmax", 0.1, True))
    expected = torch.zeros(3, 3, dtype=torch.bool, device=DEVICE)
    expected[1], expected[:, 1] = True, True
    assert torch.equal(scores.isnan(), expected)


def operands(**change) -> list[Operand]:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for items, length in ((3, 5), (4, 2)):
        x = torch.randn(items, length, 4, generator=generator)
        real = torch.rand(items, length, generator=generator) < 0.7
        matrices = torch.eye(length) + 0.3 * torch.randn(2, length, length, generator=generator)
        x, *matrices = (t.to(DEVICE).requires_grad_() for t in (x, *matrices))
        sides.append(Operand(x, real.to(DEVICE), None, True, *matrices)._replace(**change))
    return sides


SOFT = Spec("softmax", 0.1, "softmax", 0.1, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_operators_keep_the_rules_of_torch_library(backward):
    arguments = (*ops._flat(*operands()), *SOFT, "triton")
    if backward:
        arguments = (torch.randn(3, 4, device=DEVICE), *(x.detach() if isinstance(x, Tensor) else x for x in arguments))
    op = torch.ops.multigrain.pair_scores_backward if backward else torch.ops.multigrain.pair_scores
    torch.library.opcheck(op.default, arguments)


def leaves(sides: list[Operand]) -> list[Tensor]:
    return [t for side in sides for t in (side.x, side.inner, side.outer) if t is not None]


def test_a_gradient_of_the_gradient_is_that_of_the_definition():
    sides = operands()

    def second(score) -> list[Tensor]:
        first = torch.autograd.grad(score(*sides, SOFT).square().sum(), leaves(sides), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves(sides)))

    same(second(lambda *given: ops.fused_scores(*given, "triton")), second(reference.reference_scores), 1e-5)


@pytest.mark.filterwarnings("ignore")  # the compiler's, about its own future
def test_a_grain_compiles_to_one_graph():
    drawn = problem((3, 4), (5, 3), {"query": 6, "candidate": 4}).to(DEVICE, torch.float32)
    grain = mg.Grain("query", "candidate", drawn.aggregator)
    given = [mg.Features(**{name: getattr(drawn, name).tokens(False)}) for name in ("query", "candidate")]
    compiled = torch.compile(lambda q, c: grain(q, c, "triton"), fullgraph=True, backend="aot_eager")
    outcomes = []
    with serving():
        for score in (compiled, lambda q, c: grain(q, c, "eager")):
            scores = score(*given)
            outcomes.append([scores.detach(), *torch.autograd.grad(scores.sum(), list(grain.parameters()))])
    same(*outcomes, 1e-5)


def test_what_cannot_be_served_is_said():
    sides = [
        Operand(torch.randn(2, tokens, 8, device=DEVICE), None, None, True, torch.eye(tokens, device=DEVICE))
        for tokens in (129, 130)
    ]
    with pytest.raises(Unsupported, match="at most 128 tokens an item, got 129 query and 130 candidate"):
        fused.forward(*sides, SOFT)
