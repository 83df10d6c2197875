"""The triton backend: two-level scores and their gradient on a CUDA device, in memory of one block.

The forward pass is one kernel: similarities live and die in registers, nothing but the scores is written. The
backward pass goes through blocks of pairs: a kernel computes their similarities again and writes the gradient by
them, in the dtype of the tokens, to a buffer; two matrix products of the device's library turn that into the
gradients of both sides, accumulated in fp32. So nothing depends on the order in which programs run, and no tile
needs an accumulator of its tokens' full width, for which there are no registers. With mixing matrices the forward
pass goes through blocks too: mixed.py.

fp16 and bf16 tokens are multiplied as they are, with fp32 accumulation; norms divide the products, in fp32. fp32
tokens are multiplied as three TF32 products, whose error is that of fp32. Without a CUDA device the kernels run on
the CPU under Triton's interpreter, where TRITON_INTERPRET=1 was set before they were first used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import Gradients, Operand, Spec
from .launch import Plan
from .mixed import MixedPlan
from .side import BlockGradient, SideGradient


def forward(query: Operand, candidate: Operand, spec: Spec) -> Tensor:
    """Compute scores [queries, candidates], fp32.

    Raises:
        Unsupported: no CUDA device of compute capability 8, no Triton, a dtype, or more than 128 tokens on both sides.
    """
    out = query.x.new_empty(len(query.x), len(candidate.x), dtype=torch.float32)
    plan = _plan(query, candidate, spec)
    if out.numel() == 0:
        return out
    for resident, streamed in plan.forward_blocks():
        plan.scores(plan.oriented(out), resident, streamed)
    if "max" in (spec.inner, spec.outer):
        plan.oriented(out).add_(plan.resident.nan_items[:, None]).add_(plan.streamed.nan_items)
    return out


def backward(grad: Tensor, query: Operand, candidate: Operand, spec: Spec) -> Gradients:
    """Compute the gradients by both operands, from that of the scores [queries, candidates].

    Raises:
        Unsupported: the same as in `forward`.
    """
    plan = _plan(query, candidate, spec)
    by_resident, by_streamed = SideGradient(plan.resident), SideGradient(plan.streamed)
    if grad.numel() > 0:
        _accumulate(plan, plan.oriented(grad), by_resident, by_streamed)
    sides = (by_streamed, by_resident) if plan.swapped else (by_resident, by_streamed)
    (q, q_weights, q_inner, q_outer), (c, c_weights, c_inner, c_outer) = (side.finish() for side in sides)
    return Gradients(q, c, q_weights, c_weights, q_inner, c_inner, q_outer, c_outer)


def _plan(query: Operand, candidate: Operand, spec: Spec) -> Plan:
    return (MixedPlan if query.mixed or candidate.mixed else Plan)(query, candidate, spec)


def _accumulate(plan: Plan, grad: Tensor, by_resident: SideGradient, by_streamed: SideGradient) -> None:
    """Add up the gradients of both sides, from that of the scores [resident, streamed]."""
    resident, streamed = plan.blocks()
    factor, memory = plan.factor(grad), plan.memory(resident, streamed)
    columns = [BlockGradient(plan.streamed, block) for block in streamed]
    for block in resident:
        row = BlockGradient(plan.resident, block)
        for column in columns:
            slopes, by_q, by_c = plan.slopes(grad, factor, memory, block, column.block)
            row.add(slopes, column.tokens, by_q)
            column.add(slopes.T, row.tokens, by_c)
            by_resident.add(by_q)
            by_streamed.add(by_c)
        row.put(factor, by_resident)
    for column in columns:
        column.put(factor, by_streamed)
