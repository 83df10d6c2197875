"""How the kernels of the triton backend are launched: on which side held, with what tile, with what arguments."""

from __future__ import annotations

import contextlib
import importlib
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused_side import Block, FusedSide, power_of_two
from .spec import Operand, Spec, Unsupported

LOG2_E = 1.4426950408889634
HELD = 128  # tokens of an item that a tile holds whole, at most
GROUP = 8  # held blocks whose programs run together, to read the same streamed tokens


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
        self.kernels = _kernels()
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

    def oriented(self, pairs: Tensor) -> Tensor:
        """A view [held, streamed] of a matrix [queries, candidates]."""
        return pairs.T if self.swapped else pairs

    def scores(self, out: Tensor, held: Block, streamed: Block) -> None:
        """Write the scores of two blocks to their places in `out` [held, streamed]."""
        tile = self._tile("scores", held, streamed)
        unit = self.outer_unit * self.share
        q_blocks, c_blocks = _blocks(tile, held, streamed)
        arguments = (*out.stride(), *self._sides(held, streamed), unit)
        _launch(self.kernels.scores_kernel, tile, q_blocks * c_blocks, out, *arguments)

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
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient by the products of the tokens of two blocks, from that by the scores [held, streamed].

        Returns:
            [held slots, streamed slots], `factor` times, in `memory`; and by the weights of either side, where a
            linear reduction has them, [number of parts to add, slots].
        """
        tile = self._tile("slopes", held, streamed)
        pitch = -(-streamed.slots // 16) * 16  # whole vectors
        out = memory[: held.slots * pitch].view(held.slots, pitch)
        if streamed.ragged and not tile["SINGLE"]:
            out.zero_()
        q_blocks, c_blocks = _blocks(tile, held, streamed)
        linear = self.spec.outer == "linear"
        by_q = grad.new_empty(c_blocks, held.slots, dtype=torch.float32) if linear and self.row else None
        by_c = grad.new_empty(q_blocks, streamed.slots, dtype=torch.float32) if linear and self.col else None
        _launch(
            self.kernels.slopes_kernel, tile, q_blocks * c_blocks, out, pitch, factor,
            factor if by_q is None else by_q, factor if by_c is None else by_c, grad, *grad.stride(),
            *self._sides(held, streamed), 1 / self.steep, self.share,
        )  # fmt: skip
        return out[:, : streamed.slots], by_q, by_c

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
        ragged = held.ragged or streamed.ragged
        return {
            "INNER": self.spec.inner,
            "OUTER": self.spec.outer,
            "ROW": self.row,
            "COL": self.col,
            "MASKED": ragged or q_slots != held.length or streamed.length % c_slots != 0,
            "SINGLE": streamed.length <= c_slots,
            "ITEMS_Q": rows // q_slots,
            "SLOTS_Q": q_slots,
            "ITEMS_C": cols // c_slots,
            "SLOTS_C": c_slots,
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


def _blocks(tile: dict[str, Any], held: Block, streamed: Block) -> tuple[int, int]:
    """The number of a kernel's blocks of either side."""
    return -(-(held.end - held.first) // tile["ITEMS_Q"]), -(-(streamed.end - streamed.first) // tile["ITEMS_C"])


def _launch(kernel: Any, tile: dict[str, Any], grid: int, out: Tensor, *arguments: Any) -> None:
    # A launch goes to the current device, whichever the tensors are on.
    with torch.cuda.device(out.device) if out.is_cuda else contextlib.nullcontext():
        kernel[(grid,)](out, *arguments, **tile)


@cache
def _kernels() -> ModuleType:
    try:
        return importlib.import_module(".triton_kernels", __package__)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise Unsupported("triton: the package is not installed") from error


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
