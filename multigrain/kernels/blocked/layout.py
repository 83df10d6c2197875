"""Memory orders of a block of similarities, in which no reduced axis is the innermost one.

A reduction then runs vectorised across the innermost axis. Both orders hold x of q queries with m tokens and
c candidates with n tokens in four axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Layout(ABC):
    """An order of the four axes of x, and the ways into it and back."""

    query_axis: int  # of query tokens
    candidate_axis: int  # of candidate tokens

    @abstractmethod
    def prepare(self, c: Tensor) -> Tensor:
        """Store candidate tokens [c, n, D] as `similarity` reads them."""

    @abstractmethod
    def similarity(self, q: Tensor, c: Tensor) -> Tensor:
        """Compute x, of four axes, from tokens [q, m, D] and prepared [c, n, D]."""

    @abstractmethod
    def by_query(self, dx: Tensor, c: Tensor) -> Tensor:
        """Compute the gradient [q, m, D] by the query's tokens, from that by x."""

    @abstractmethod
    def add_by_candidate(self, dc: Tensor, dx: Tensor, q: Tensor) -> None:
        """Add the gradient by the candidates' tokens to dc [c, n, D], stored as by `prepare`."""

    @abstractmethod
    def of_query(self, t: Tensor) -> Tensor:
        """Make [q, m] broadcastable to x."""

    @abstractmethod
    def of_candidate(self, t: Tensor) -> Tensor:
        """Make [c, n] broadcastable to x."""

    @abstractmethod
    def of_pairs(self, t: Tensor) -> Tensor:
        """Make [q, c] broadcastable to x."""

    @abstractmethod
    def of_tokens(self, t: Tensor, axis: int) -> Tensor:
        """Sum t, x with the other token axis reduced to 1, over the other items: [items, tokens] of a token axis."""

    @abstractmethod
    def to_pairs(self, t: Tensor) -> Tensor:
        """Return t, x with both token axes reduced to 1, as [q, c]."""


class CandidatesInnermost(Layout):
    """x [q, m, n, c]: either token axis can be reduced. Candidates are transposed once a block."""

    query_axis, candidate_axis = 1, 2

    def prepare(self, c: Tensor) -> Tensor:
        """Stored [n, c, D]."""
        return c.transpose(0, 1).contiguous().transpose(0, 1)

    def similarity(self, q: Tensor, c: Tensor) -> Tensor:
        """x [q, m, n, c]."""
        (bq, m, d), (bc, n, _) = q.shape, c.shape
        return (q.reshape(-1, d) @ c.transpose(0, 1).reshape(-1, d).T).view(bq, m, n, bc)

    def by_query(self, dx: Tensor, c: Tensor) -> Tensor:
        """[q m, n c] @ [n c, D]."""
        (bq, m, n, bc), d = dx.shape, c.shape[-1]
        return (dx.view(bq * m, n * bc) @ c.transpose(0, 1).reshape(-1, d)).view(bq, m, d)

    def add_by_candidate(self, dc: Tensor, dx: Tensor, q: Tensor) -> None:
        """[n c, q m] @ [q m, D]."""
        (bq, m, n, bc), d = dx.shape, q.shape[-1]
        dc.transpose(0, 1).view(n * bc, d).addmm_(dx.view(bq * m, n * bc).T, q.reshape(-1, d))

    def of_query(self, t: Tensor) -> Tensor:
        """[q, m, 1, 1]."""
        return t[:, :, None, None]

    def of_candidate(self, t: Tensor) -> Tensor:
        """[1, 1, n, c]."""
        return t.T[None, None]

    def of_pairs(self, t: Tensor) -> Tensor:
        """[q, 1, 1, c]."""
        return t[:, None, None]

    def of_tokens(self, t: Tensor, axis: int) -> Tensor:
        """[q, m, 1, c] -> [q, m], or [q, 1, n, c] -> [c, n]."""
        return t.sum(3)[:, :, 0] if axis == self.query_axis else t.sum(0)[0].T

    def to_pairs(self, t: Tensor) -> Tensor:
        """[q, 1, 1, c] -> [q, c]."""
        return t[:, 0, 0]


class QueriesInnermost(Layout):
    """x [c, n, q, m]: for the inner reduction over candidate tokens alone. Candidates are read without a copy."""

    query_axis, candidate_axis = 3, 1

    def prepare(self, c: Tensor) -> Tensor:
        """Stored [c, n, D]."""
        return c.contiguous()

    def similarity(self, q: Tensor, c: Tensor) -> Tensor:
        """x [c, n, q, m]."""
        (bq, m, d), (bc, n, _) = q.shape, c.shape
        return (c.reshape(-1, d) @ q.reshape(-1, d).T).view(bc, n, bq, m)

    def by_query(self, dx: Tensor, c: Tensor) -> Tensor:
        """[q m, c n] @ [c n, D]."""
        (bc, n, bq, m), d = dx.shape, c.shape[-1]
        return (dx.view(bc * n, bq * m).T @ c.reshape(-1, d)).view(bq, m, d)

    def add_by_candidate(self, dc: Tensor, dx: Tensor, q: Tensor) -> None:
        """[c n, q m] @ [q m, D]."""
        (bc, n, bq, m), d = dx.shape, q.shape[-1]
        dc.view(bc * n, d).addmm_(dx.view(bc * n, bq * m), q.reshape(-1, d))

    def of_query(self, t: Tensor) -> Tensor:
        """[1, 1, q, m]."""
        return t[None, None]

    def of_candidate(self, t: Tensor) -> Tensor:
        """[c, n, 1, 1]."""
        return t[:, :, None, None]

    def of_pairs(self, t: Tensor) -> Tensor:
        """[c, 1, q, 1]."""
        return t.T[:, None, :, None]

    def of_tokens(self, t: Tensor, axis: int) -> Tensor:
        """[c, 1, q, m] -> [q, m], or [c, n, q, 1] -> [c, n]."""
        return t.sum(0)[0] if axis == self.query_axis else t.sum(2)[:, :, 0]

    def to_pairs(self, t: Tensor) -> Tensor:
        """[c, 1, q, 1] -> [q, c]."""
        return t[:, 0, :, 0].T
