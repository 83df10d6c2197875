"""What a kernel is told: the two operands, the aggregation, and how it says that it cannot serve."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Unsupported(Exception):
    """A backend cannot serve these inputs, and says why. Only this makes `backend="auto"` try the next one."""


class Operand(NamedTuple):
    """One side of a score matrix."""

    x: Tensor  # tokens [B, L, D]: fp16, bf16, fp32 or fp64
    mask: Tensor | None  # bool [B, L], True = a real token
    weights: Tensor | None  # [B, L]: of a linear outer reduction over these tokens, 0 at padding
    normalize: bool  # divide every token by its norm (zero vectors stay zero)
    # [L, L]: mix the attention of a softmax over these tokens, the inner one and the outer one. For triton alone.
    inner: Tensor | None = None
    outer: Tensor | None = None

    @property
    def mixed(self) -> bool:
        """Whether it has a mixing matrix."""
        return self.inner is not None or self.outer is not None


class Spec(NamedTuple):
    """A two-level aggregation: outer over query tokens of inner over candidate tokens; `both` averages with the
    converse."""

    inner: str  # max, softmax or logsumexp
    inner_temperature: float
    outer: str  # those, or linear: the sum under the operand's weights
    outer_temperature: float
    both: bool


class Gradients(NamedTuple):
    """By tokens [B, L, D], weights [B, L] and matrices [L, L] of both operands, in their dtypes; None for those not
    given."""

    query: Tensor
    candidate: Tensor
    query_weights: Tensor | None
    candidate_weights: Tensor | None
    query_inner: Tensor | None = None
    candidate_inner: Tensor | None = None
    query_outer: Tensor | None = None
    candidate_outer: Tensor | None = None
