"""The arguments of a kernel, operands and aggregation; its gradients; and the exception that says it cannot serve."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Below every similarity, yet finite: a weight of 0 times it is 0.
LOWEST = -1e30
# Similarities of a block: enough that starting an operation costs little beside its work, few enough that a block and
# its copies (4 MB each in fp32) stay in a shared cache.
ELEMENTS = 1 << 20


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
        """True where the side has a mixing matrix."""
        return self.inner is not None or self.outer is not None


class Spec(NamedTuple):
    """A two-level aggregation: outer over query tokens of inner over candidate tokens; `both` averages both orders."""

    inner: str  # max, softmax or logsumexp
    inner_temperature: float
    outer: str  # those, or linear: the sum under the operand's weights
    outer_temperature: float
    both: bool


class Gradients(NamedTuple):
    """Gradients by tokens [B, L, D], weights [B, L] and matrices [L, L] of both operands, in their dtypes."""

    query: Tensor
    candidate: Tensor
    query_weights: Tensor | None
    candidate_weights: Tensor | None
    query_inner: Tensor | None = None
    candidate_inner: Tensor | None = None
    query_outer: Tensor | None = None
    candidate_outer: Tensor | None = None
