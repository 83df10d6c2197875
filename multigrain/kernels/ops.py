"""The fused scores as operators of torch.library, so that autograd, fake tensors and torch.compile know them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..reduce import without_autocast
from . import reference
from .blocked import scores as blocked
from .spec import Gradients, Operand, Spec
from .triton import scores as fused

_MODULES: dict[str, ModuleType] = {"blocked": blocked, "triton": fused}

# Operators take no tuples: what `_flat` makes of (Operand, Operand, Spec, backend).
_SCHEMA = (
    "Tensor query, Tensor candidate, Tensor? query_mask, Tensor? candidate_mask, "
    "Tensor? query_weights, Tensor? candidate_weights, bool normalize_query, bool normalize_candidate, "
    "Tensor? query_inner, Tensor? candidate_inner, Tensor? query_outer, Tensor? candidate_outer, "
    "str inner, float inner_temperature, str outer, float outer_temperature, bool both, str backend"
)


def fused_scores(query: Operand, candidate: Operand, spec: Spec, backend: str) -> Tensor:
    """Compute scores [q, c], fp32 (fp64 stays), by a backend with a kernel ("blocked" or "triton")."""
    return torch.ops.multigrain.pair_scores(*_flat(query, candidate), *spec, backend)


def _flat(query: Operand, candidate: Operand) -> list[Any]:
    return [value for pair in zip(query, candidate, strict=True) for value in pair]


def _unflat(arguments: tuple[Any, ...]) -> tuple[Operand, Operand, Spec, str]:
    operands = [Operand(*arguments[side:12:2]) for side in (0, 1)]
    return operands[0], operands[1], Spec(*arguments[12:17]), arguments[17]


def _scores(*arguments: Any) -> Tensor:
    query, candidate, spec, backend = _unflat(arguments)
    with without_autocast(query.x):
        return _MODULES[backend].forward(query, candidate, spec)


def _scores_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    query, candidate, spec, backend = _unflat(arguments)
    with without_autocast(query.x):
        gradients: Gradients = _MODULES[backend].backward(grad, query, candidate, spec)
    return [gradient for gradient in gradients if gradient is not None]


def _fake_scores(*arguments: Any) -> Tensor:
    query, candidate, *_ = _unflat(arguments)
    dtype = torch.promote_types(query.x.dtype, torch.float32)
    return query.x.new_empty(query.x.shape[0], candidate.x.shape[0], dtype=dtype)


def _fake_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    return [torch.empty_like(arguments[i], memory_format=torch.contiguous_format) for i in _differentiable(arguments)]


def _differentiable(arguments: tuple[Any, ...]) -> list[int]:
    """Positions of the tokens and of those weights and matrices that were given."""
    return [i for i in (0, 1, 4, 5, 8, 9, 10, 11) if arguments[i] is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6], *inputs[8:12])
    ctx.settings = inputs[6:8], inputs[12:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, (normalize, settings) = ctx.saved_tensors, ctx.settings
    arguments = (*tensors[:6], *normalize, *tensors[6:], *settings)
    wanted = _differentiable(arguments)
    gradients: list[Tensor | None] | list[Tensor]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        gradients = _differentiable_backward(grad, arguments, wanted)
    else:
        gradients = torch.ops.multigrain.pair_scores_backward(grad, *arguments)
    out: list[Tensor | None] = [None] * len(arguments)
    for i, gradient in zip(wanted, gradients, strict=True):
        out[i] = gradient
    return tuple(out)


def _differentiable_backward(grad: Tensor, arguments: tuple[Any, ...], wanted: list[int]) -> list[Tensor | None]:
    """Differentiate the definition: grad mode in a backward pass asks for a gradient of the gradient."""
    query, candidate, spec, _ = _unflat(arguments)
    inputs = [arguments[i] for i in wanted if arguments[i].requires_grad]
    scores = reference.reference_scores(query, candidate, spec)
    gradients = iter(torch.autograd.grad(scores, inputs, grad, create_graph=True, materialize_grads=True))
    return [next(gradients) if arguments[i].requires_grad else None for i in wanted]


def _register(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    # Not torch.library.custom_op, whose first call imports the compiler: a second and 900 modules.
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"multigrain::{name}", fake, lib=_LIBRARY)


_LIBRARY = torch.library.Library("multigrain", "DEF")
_register("pair_scores", f"({_SCHEMA}) -> Tensor", _scores, _fake_scores)
_register("pair_scores_backward", f"(Tensor grad, {_SCHEMA}) -> Tensor[]", _scores_backward, _fake_backward)
torch.library.register_autograd("multigrain::pair_scores", _backward, setup_context=_setup_context, lib=_LIBRARY)
