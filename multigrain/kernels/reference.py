"""The eager definition of what the fused operators compute: the judge of every kernel, and its double backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reduce import Reduction, attend
from ..tokens import Tokens
from .spec import Operand, Spec


def reference_scores(query: Operand, candidate: Operand, spec: Spec) -> Tensor:
    """Compute scores [q, c] through all similarities [q, c, m, n], differentiable any number of times."""
    q, c = _unit(query), _unit(candidate)
    sim = torch.einsum("qmd,cnd->qcmn", q, c)
    q_mask = None if query.mask is None else query.mask[:, None, :, None]
    c_mask = None if candidate.mask is None else candidate.mask[None, :, None, :]
    inner = Reduction(spec.inner, spec.inner_temperature)
    y = _reduce(inner, sim, c_mask, 3, candidate.inner)
    out = _outer(y, query, None if q_mask is None else q_mask[..., 0], spec, "qcm,qm->qc")
    if spec.both:
        y = _reduce(inner, sim, q_mask, 2, query.inner)
        converse = _outer(y, candidate, None if c_mask is None else c_mask[:, :, 0], spec, "qcn,cn->qc")
        out = (out + converse) / 2
    return out


def _unit(operand: Operand) -> Tensor:
    return Tokens(operand.x, operand.mask, unit=not operand.normalize).normalized().features


def _reduce(by: Reduction, x: Tensor, mask: Tensor | None, dim: int, mixing: Tensor | None) -> Tensor:
    return by(x, mask, dim) if mixing is None else attend(x, mask, dim, by.temperature, mixing)


def _outer(y: Tensor, operand: Operand, mask: Tensor | None, spec: Spec, product: str) -> Tensor:
    if spec.outer != "linear":
        return _reduce(Reduction(spec.outer, spec.outer_temperature), y, mask, 2, operand.outer)
    assert operand.weights is not None
    if mask is not None:
        y = torch.where(mask, y, 0.0)  # no gradient by the weight of padding
    return torch.einsum(product, y, operand.weights.to(y.dtype))
