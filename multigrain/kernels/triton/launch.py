"""Launches of the triton backend's kernels: the side that is resident, the shape of a tile, the arguments."""

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
from .side import ExtraGradients, FusedSide, ItemRange, power_of_two

LOG2_E = 1.4426950408889634
RESIDENT = 128  # tokens of an item on the resident side, at most: all of them are in a tile
GROUP = 8  # resident blocks whose programs run together, to read the same streamed tokens

# Most rows and columns of the backward pass' buffer, by the size of an element: at most 128 MB.
ROWS, COLUMNS = 8192, {2: 8192, 4: 4096}


class Tiling(NamedTuple):
    """The largest tile of similarities of a kernel, and how it is run; every size is a power of two from 16 on."""

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
    """The plan of a call: its operands as a resident and a streamed side (the query is resident where it can be)."""

    def __init__(self, query: Operand, candidate: Operand, spec: Spec) -> None:
        self.kernels = kernels("kernels")
        dtype = _dtype(query.x, candidate.x, self.kernels.INTERPRETED)
        sides = FusedSide(query, dtype), FusedSide(candidate, dtype)
        self.swapped = sides[0].longest > RESIDENT
        self.resident, self.streamed = sides[::-1] if self.swapped else sides
        if self.resident.longest > RESIDENT:
            raise Unsupported(
                f"triton: one side must have at most {RESIDENT} tokens an item, "
                f"got {sides[0].longest} query and {sides[1].longest} candidate tokens"
            )
        self.spec = spec
        self.row, self.col = spec.both or not self.swapped, spec.both or self.swapped
        # A reduction with a temperature is done in units of it, over log2(e); the others in those before them.
        self.steep = 1.0 if spec.inner == "max" else LOG2_E / spec.inner_temperature
        outer = self.steep if spec.outer in ("linear", "max") else LOG2_E / spec.outer_temperature
        self.ratio, self.outer_unit = outer / self.steep, 1 / outer
        self.share = 0.5 if spec.both else 1.0

    def forward_blocks(self) -> Iterator[tuple[ItemRange, ItemRange]]:
        """Pair resident and streamed ranges for the forward pass."""
        streamed = self.streamed.all_items()
        return ((resident, streamed) for resident in self.resident.blocks())

    def blocks(self) -> tuple[list[ItemRange], list[ItemRange]]:
        """Split both sides into the ranges of the backward pass."""
        columns = COLUMNS[self.resident.tokens.element_size()]
        return list(self.resident.blocks(ROWS)), list(self.streamed.blocks(columns))

    def oriented(self, pairs: Tensor) -> Tensor:
        """A view [resident, streamed] of a matrix [queries, candidates]."""
        return pairs.T if self.swapped else pairs

    def scores(self, out: Tensor, resident: ItemRange, streamed: ItemRange) -> None:
        """Write the scores of two ranges to their places in `out` [resident, streamed]."""
        tile = self._tile("scores", resident, streamed)
        unit = self.outer_unit * self.share
        arguments = (*out.stride(), *self._sides(resident, streamed), unit)
        launch(self.kernels.scores_kernel, tile, programs(tile, resident, streamed), out, *arguments)

    def factor(self, grad: Tensor) -> Tensor:
        """The factor [1] of the slopes: in fp16 as large as its range allows."""
        one = torch.ones(1, dtype=torch.float32, device=grad.device)
        if self.resident.tokens.dtype != torch.float16:
            return one
        most = grad.abs().amax().float()
        for side in (self.resident, self.streamed):
            most = most * side.scale.amax()
            if side.weights is not None:
                most = most * side.weights.abs().amax().clamp_min(1)
        return torch.where(most > 0, 128 / most, one)

    def slopes(
        self, grad: Tensor, factor: Tensor, memory: Tensor, resident: ItemRange, streamed: ItemRange
    ) -> tuple[Tensor, ExtraGradients, ExtraGradients]:
        """Compute the gradient by the token products of two ranges, from that by the scores [resident, streamed].

        Returns:
            That gradient [resident slots, streamed slots], times `factor`, in `memory`; and those by the weights and
            matrices of either side.
        """
        tile = self._tile("slopes", resident, streamed)
        out = room(memory, tile, resident, streamed)
        (q_blocks, c_blocks), linear = programs(tile, resident, streamed), self.spec.outer == "linear"
        by_q = grad.new_empty(c_blocks, resident.slots, dtype=torch.float32) if linear and self.row else None
        by_c = grad.new_empty(q_blocks, streamed.slots, dtype=torch.float32) if linear and self.col else None
        launch(
            self.kernels.slopes_kernel, tile, (q_blocks, c_blocks), out, out.stride(0), factor,
            factor if by_q is None else by_q, factor if by_c is None else by_c, grad, *grad.stride(),
            *self._sides(resident, streamed), 1 / self.steep, self.share,
        )  # fmt: skip
        return out, ExtraGradients(by_q), ExtraGradients(by_c)

    def memory(self, resident: list[ItemRange], streamed: list[ItemRange]) -> Tensor:
        """Allocate room for the slopes of any two of these ranges."""
        rows, cols = (max(block.slots for block in blocks) for blocks in (resident, streamed))
        return torch.empty(rows * (cols + 15), dtype=self.resident.tokens.dtype, device=self.resident.tokens.device)

    def _tiling(self, kernel: str, resident: ItemRange) -> tuple[int, int]:
        """Rows and columns of a tile: where one item needs more rows than usual, there are fewer columns."""
        tiling = TILINGS[kernel, self.resident.tokens.element_size()]
        rows = max(tiling.rows, power_of_two(resident.length))
        return rows, max(16, tiling.cols * tiling.rows // rows)

    def _tile(self, kernel: str, resident: ItemRange, streamed: ItemRange) -> dict[str, Any]:
        """The constants that a kernel is compiled for."""
        tiling = TILINGS[kernel, self.resident.tokens.element_size()]
        rows, cols = self._tiling(kernel, resident)
        q_slots = power_of_two(resident.length)
        c_slots = streamed_slots(streamed.length, cols)
        if kernel == "slopes" and power_of_two(streamed.length) <= cols:
            c_slots = power_of_two(streamed.length)  # padding costs less than to compute the similarities twice
        return {
            "INNER": self.spec.inner,
            "OUTER": self.spec.outer,
            **self.compiled(tiling, (rows // q_slots, q_slots), (cols // c_slots, c_slots), resident, streamed),
        }

    def compiled(
        self, tiling: Tiling, q: tuple[int, int], c: tuple[int, int], resident: ItemRange, streamed: ItemRange
    ) -> dict[str, Any]:
        """The constants that any kernel is compiled for, with a tile of so many (items, slots) of either side."""
        ragged = resident.ragged or streamed.ragged
        return {
            "ROW": self.row,
            "COL": self.col,
            "MASKED": ragged or q[1] != resident.length or streamed.length % c[1] != 0,
            "SINGLE": streamed.length <= c[1],
            "ITEMS_Q": q[0],
            "SLOTS_Q": q[1],
            "ITEMS_C": c[0],
            "SLOTS_C": c[1],
            "DEPTH": tiling.depth,
            "EVEN": self.resident.tokens.shape[1] % tiling.depth == 0,
            # Three products of TF32 parts, as exact as fp32 and on the tensor cores; half precision has no choice.
            "PRECISION": "tf32x3" if self.resident.tokens.dtype == torch.float32 else "ieee",
            "GROUP": GROUP,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }

    def _sides(self, resident: ItemRange, streamed: ItemRange) -> tuple[Any, ...]:
        """The arguments that both kernels take, from q to ratio."""
        q, c = self.resident, self.streamed
        return (
            q.tokens, c.tokens, q.index, c.index, q.scale, c.scale,
            q.scale if q.weights is None else q.weights, c.scale if c.weights is None else c.weights,
            q.order, c.order, c.device_lengths,
            resident.start, resident.end, streamed.start, streamed.end,
            q.width, c.width, resident.length, streamed.length, q.tokens.shape[1], self.steep, self.ratio,
        )  # fmt: skip


def streamed_slots(length: int, most: int) -> int:
    """Choose how many slots of an item a tile takes at a time: the most that adds little padding to `length` tokens.

    At least 8, where there are so many tokens: reductions that continue from tile to tile take registers of each item.
    """
    full = power_of_two(length)
    sizes = [1 << k for k in range(most.bit_length()) if min(8, full) <= 1 << k <= full]
    padded = [-(-length // size) * size for size in sizes]
    return max(size for size, slots in zip(sizes, padded, strict=True) if slots * 7 <= min(padded) * 8)


def room(memory: Tensor, tile: dict[str, Any], resident: ItemRange, streamed: ItemRange) -> Tensor:
    """View memory as the slopes [resident slots, streamed slots] of two ranges, rows padded to full vectors."""
    pitch = -(-streamed.slots // 16) * 16
    out = memory[: resident.slots * pitch].view(resident.slots, pitch)[:, : streamed.slots]
    return out.zero_() if streamed.ragged and not tile["SINGLE"] else out


def programs(tile: dict[str, Any], resident: ItemRange, streamed: ItemRange) -> tuple[int, int]:
    """Count a kernel's programs along the resident and the streamed items."""
    items = resident.end - resident.start, streamed.end - streamed.start
    return -(-items[0] // tile["ITEMS_Q"]), -(-items[1] // tile["ITEMS_C"])


def launch(kernel: Any, tile: dict[str, Any], grid: tuple[int, int], out: Tensor, *arguments: Any) -> None:
    """Run a kernel's programs, along the resident and the streamed items."""
    # A launch goes to the current device, whichever the tensors are on.
    with torch.cuda.device(out.device) if out.is_cuda else contextlib.nullcontext():
        kernel[(grid[0] * grid[1],)](out, *arguments, **tile)


@cache
def kernels(module: str) -> ModuleType:
    """Import a module that needs Triton.

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
    """Return the dtype in which kernels read the tokens, or raise Unsupported with the reason why they cannot run."""
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
