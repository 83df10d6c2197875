"""How the kernels of the triton backend are launched: on which side held, with what tile, with what arguments."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spec import Operand, Spec, Unsupported
from .side import Beside, Block, FusedSide, power_of_two

LOG2_E = 1.4426950408889634
HELD = 128  # tokens of an item that a tile holds whole, at most
GROUP = 8  # held blocks whose programs run together, to read the same streamed tokens

# Most rows and columns of the backward pass' buffer, by the size of an element: at most 128 MB.
ROWS, COLUMNS = 8192, {2: 8192, 4: 4096}


class Tiling(NamedTuple):
    """The most of a kernel's tile of similarities, and how it is run; every size is a power of two from 16 on."""

    rows: int
    cols: int
    depth: int  # of a step along the features
    num_warps: int
    num_stages: int


# By kernel, and by the bytes of an element: the largest that leave no register of the usual shapes to memory on sm_90.
TILINGS = {
    ("scores", 2): Tiling(64, 128, 64, 4, 3),
    ("scores", 4): Tiling(64, 64, 32, 4, 3),
    ("slopes", 2): Tiling(64, 128, 64, 8, 3),
    ("slopes", 4): Tiling(64, 64, 32, 4, 3),
}


class Plan:
    """A call: its operands as a held and a streamed side (the query is held where it can be), and its constants."""

    def __init__(self, query: Operand, candidate: Operand, spec: Spec) -> None:
        self.kernels = kernels("kernels")
        dtype = _dtype(query.x, candidate.x, self.kernels.INTERPRETED)
        sides = FusedSide(query, dtype), FusedSide(candidate, dtype)
        self.swapped = sides[0].longest > HELD
        self.held, self.streamed = sides[::-1] if self.swapped else sides
        if self.held.longest > HELD:
            raise Unsupported(
                f"triton: one side must have at most {HELD} tokens an item, "
                f"got {sides[0].longest} query and {sides[1].longest} candidate tokens"
            )
        self.spec = spec
        self.row, self.col = spec.both or not self.swapped, spec.both or self.swapped
        # A reduction with a temperature is done in units of it, over log2(e); the others in those before them.
        self.steep = 1.0 if spec.inner == "max" else LOG2_E / spec.inner_temperature
        outer = self.steep if spec.outer in ("linear", "max") else LOG2_E / spec.outer_temperature
        self.ratio, self.outer_unit = outer / self.steep, 1 / outer
        self.share = 0.5 if spec.both else 1.0

    def forward_blocks(self) -> Iterator[tuple[Block, Block]]:
        """All pairs of held and streamed blocks of the forward pass."""
        streamed = self.streamed.whole()
        return ((held, streamed) for held in self.held.blocks())

    def blocks(self) -> tuple[list[Block], list[Block]]:
        """The held and the streamed blocks of the backward pass."""
        columns = COLUMNS[self.held.tokens.element_size()]
        return list(self.held.blocks(ROWS)), list(self.streamed.blocks(columns))

    def oriented(self, pairs: Tensor) -> Tensor:
        """A view [held, streamed] of a matrix [queries, candidates]."""
        return pairs.T if self.swapped else pairs

    def scores(self, out: Tensor, held: Block, streamed: Block) -> None:
        """Write the scores of two blocks to their places in `out` [held, streamed]."""
        tile = self._tile("scores", held, streamed)
        unit = self.outer_unit * self.share
        arguments = (*out.stride(), *self._sides(held, streamed), unit)
        launch(self.kernels.scores_kernel, tile, programs(tile, held, streamed), out, *arguments)

    def factor(self, grad: Tensor) -> Tensor:
        """By what the slopes are multiplied, [1]: for fp16, so much that they make use of its range, and no more."""
        one = torch.ones(1, dtype=torch.float32, device=grad.device)
        if self.held.tokens.dtype != torch.float16:
            return one
        most = grad.abs().amax().float()
        for side in (self.held, self.streamed):
            most = most * side.scale.amax()
            if side.weights is not None:
                most = most * side.weights.abs().amax().clamp_min(1)
        return torch.where(most > 0, 128 / most, one)

    def slopes(
        self, grad: Tensor, factor: Tensor, memory: Tensor, held: Block, streamed: Block
    ) -> tuple[Tensor, Beside, Beside]:
        """The gradient by the products of the tokens of two blocks, from that by the scores [held, streamed].

        Returns:
            [held slots, streamed slots], `factor` times, in `memory`; and by what else either side has.
        """
        tile = self._tile("slopes", held, streamed)
        out = room(memory, tile, held, streamed)
        (q_blocks, c_blocks), linear = programs(tile, held, streamed), self.spec.outer == "linear"
        by_q = grad.new_empty(c_blocks, held.slots, dtype=torch.float32) if linear and self.row else None
        by_c = grad.new_empty(q_blocks, streamed.slots, dtype=torch.float32) if linear and self.col else None
        launch(
            self.kernels.slopes_kernel, tile, (q_blocks, c_blocks), out, out.stride(0), factor,
            factor if by_q is None else by_q, factor if by_c is None else by_c, grad, *grad.stride(),
            *self._sides(held, streamed), 1 / self.steep, self.share,
        )  # fmt: skip
        return out, Beside(by_q), Beside(by_c)

    def memory(self, held: list[Block], streamed: list[Block]) -> Tensor:
        """Room for the slopes of any two of these blocks."""
        rows, cols = (max(block.slots for block in blocks) for blocks in (held, streamed))
        return torch.empty(rows * (cols + 15), dtype=self.held.tokens.dtype, device=self.held.tokens.device)

    def _tiling(self, kernel: str, held: Block) -> tuple[int, int]:
        """Rows and columns of a tile: where one item needs more rows than usual, there are fewer columns."""
        tiling = TILINGS[kernel, self.held.tokens.element_size()]
        rows = max(tiling.rows, power_of_two(held.length))
        return rows, max(16, tiling.cols * tiling.rows // rows)

    def _tile(self, kernel: str, held: Block, streamed: Block) -> dict[str, Any]:
        """What a kernel is compiled for."""
        tiling = TILINGS[kernel, self.held.tokens.element_size()]
        rows, cols = self._tiling(kernel, held)
        q_slots = power_of_two(held.length)
        c_slots = streamed_slots(streamed.length, cols)
        if kernel == "slopes" and power_of_two(streamed.length) <= cols:
            c_slots = power_of_two(streamed.length)  # padding costs less than to compute the similarities twice
        return {
            "INNER": self.spec.inner,
            "OUTER": self.spec.outer,
            **self.compiled(tiling, (rows // q_slots, q_slots), (cols // c_slots, c_slots), held, streamed),
        }

    def compiled(
        self, tiling: Tiling, q: tuple[int, int], c: tuple[int, int], held: Block, streamed: Block
    ) -> dict[str, Any]:
        """What any kernel is compiled for, with a tile of so many items and slots of either side."""
        ragged = held.ragged or streamed.ragged
        return {
            "ROW": self.row,
            "COL": self.col,
            "MASKED": ragged or q[1] != held.length or streamed.length % c[1] != 0,
            "SINGLE": streamed.length <= c[1],
            "ITEMS_Q": q[0],
            "SLOTS_Q": q[1],
            "ITEMS_C": c[0],
            "SLOTS_C": c[1],
            "DEPTH": tiling.depth,
            "EVEN": self.held.tokens.shape[1] % tiling.depth == 0,
            # Three products of TF32 parts, as exact as fp32 and on the tensor cores; half precision has no choice.
            "PRECISION": "tf32x3" if self.held.tokens.dtype == torch.float32 else "ieee",
            "GROUP": GROUP,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }

    def _sides(self, held: Block, streamed: Block) -> tuple[Any, ...]:
        """The arguments that both kernels take, from q to ratio."""
        q, c = self.held, self.streamed
        return (
            q.tokens, c.tokens, q.index, c.index, q.scale, c.scale,
            q.scale if q.weights is None else q.weights, c.scale if c.weights is None else c.weights,
            q.order, c.order, c.device_lengths,
            held.first, held.end, streamed.first, streamed.end,
            q.width, c.width, held.length, streamed.length, q.tokens.shape[1], self.steep, self.ratio,
        )  # fmt: skip


def streamed_slots(length: int, most: int) -> int:
    """How many slots of an item a tile takes at a time: the most that adds little padding to `length` tokens.

    At least 8, where there are so many tokens: reductions that go on from tile to tile take registers of each item.
    """
    whole = power_of_two(length)
    sizes = [1 << k for k in range(most.bit_length()) if min(8, whole) <= 1 << k <= whole]
    padded = [-(-length // size) * size for size in sizes]
    return max(size for size, slots in zip(sizes, padded, strict=True) if slots * 7 <= min(padded) * 8)


def room(memory: Tensor, tile: dict[str, Any], held: Block, streamed: Block) -> Tensor:
    """The slopes [held slots, streamed slots] of two blocks in memory, before a kernel writes them; as a view of rows
    of whole vectors."""
    pitch = -(-streamed.slots // 16) * 16
    out = memory[: held.slots * pitch].view(held.slots, pitch)[:, : streamed.slots]
    return out.zero_() if streamed.ragged and not tile["SINGLE"] else out


def programs(tile: dict[str, Any], held: Block, streamed: Block) -> tuple[int, int]:
    """The numbers of a kernel's programs along the held and the streamed items."""
    return -(-(held.end - held.first) // tile["ITEMS_Q"]), -(-(streamed.end - streamed.first) // tile["ITEMS_C"])


def launch(kernel: Any, tile: dict[str, Any], grid: tuple[int, int], out: Tensor, *arguments: Any) -> None:
    """Run a kernel's programs, along the held and the streamed items."""
    # A launch goes to the current device, whichever the tensors are on.
    with torch.cuda.device(out.device) if out.is_cuda else contextlib.nullcontext():
        kernel[(grid[0] * grid[1],)](out, *arguments, **tile)


@cache
def kernels(module: str) -> ModuleType:
    """A module that needs Triton.

    Raises:
        Unsupported: it is not installed.
    """
    try:
        return importlib.import_module(f".{module}", __package__)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise Unsupported('triton: the package is not installed: pip install "multigrain[kernels]"') from error


def _dtype(query: Tensor, candidate: Tensor, interpreted: bool) -> torch.dtype:
    """That of the tokens in the kernels, which is the given one; or why they cannot run."""
    for name, x in (("query", query), ("candidate", candidate)):
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise Unsupported(f"triton: expected {name} tokens in fp16, bf16 or fp32, got {x.dtype}")
        if x.numel() >= 2**31 * x.shape[-1]:
            raise Unsupported(f"triton: expected fewer than 2 ** 31 {name} tokens, got {x.numel() // x.shape[-1]}")
    dtype = torch.promote_types(query.dtype, candidate.dtype)
    if interpreted:
        # Its products of bf16 are wrong; those of their values in fp32 are the same.
        return torch.float32 if dtype == torch.bfloat16 else dtype
    if not query.is_cuda:
        raise Unsupported(f"triton: expected tokens on a CUDA device, got {query.device}")
    if torch.version.hip is not None or torch.cuda.get_device_capability(query.device) < (8, 0):
        raise Unsupported("triton: expected an NVIDIA GPU of compute capability 8.0 or newer")
    if not hasattr(torch.ops.aten.mm, "dtype"):
        raise Unsupported(f"triton: expected torch 2.8 or newer, got {torch.__version__}")
    return dtype
