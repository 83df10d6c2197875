"""Masked reductions of one axis; the only module with fill values and fp32 widening.

    mean       sum_k m_k x_k / sum_k m_k
    sum        sum_k m_k x_k
    max        max over real k of x_k; tied tokens share the gradient evenly
    logsumexp  t log sum_k m_k exp(x_k / t)
    softmax    sum_k p_k x_k, p = softmax over real k of x_k / t      (attention over the similarities)

Three more have no kernel: `mean_of_top`, `attend_twice`, `attend_normalized`.

x [...]; mask broadcastable to x, bool, True = a real token, None = all. Masked positions are filled with the
dtype's lowest number before a max or a softmax and their weights are zeroed after it: a similarity is never
multiplied by a mask, or a padding's 0 would beat a real negative. Where no token is real the result is 0 with
zero gradient. Half precision is widened to fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import checks


def mean(x: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """The mean of the real entries along `dim`."""
    x = widen(x)
    if mask is None:
        return x.mean(dim)
    count = mask.sum(dim).clamp_min(1)
    return torch.where(mask, x, 0.0).sum(dim) / count


def total(x: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """The sum of the real entries along `dim`."""
    x = widen(x)
    return (x if mask is None else torch.where(mask, x, 0.0)).sum(dim)


def maximum(x: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """The maximum of the real entries along `dim`."""
    x = widen(x)
    return _zero_if_empty(_lowest(x, mask).amax(dim), mask, dim)


def logsumexp(x: Tensor, mask: Tensor | None = None, dim: int = -1, temperature: float = 1.0) -> Tensor:
    """t log sum exp(x / t) over the real entries along `dim`; at least their maximum, which it meets as t falls."""
    x = widen(x)
    out = temperature * torch.logsumexp(_lowest(x / temperature, mask), dim)
    return _zero_if_empty(out, mask, dim)


def attend(
    x: Tensor, mask: Tensor | None = None, dim: int = -1, temperature: float = 1.0, mixing: Tensor | None = None
) -> Tensor:
    """Attention of the entries along `dim` over themselves: softmax(x / t), times x.

    Args:
        mixing: [K, K], K the length of `dim`: multiplies the attention after the softmax (p @ mixing), as in the
            code of X-CLIP. Rows and columns of masked entries drop out.
    """
    x = widen(x)
    attention = softmax(x / temperature, mask, dim)
    if mixing is not None:
        attention = _mix(attention, mixing, dim)
    return total(attention * _zeroed(x, mask), None, dim)


def attend_twice(
    x: Tensor, mask: Tensor | None = None, dim: int = -1, temperature: float = 1.0, mixing: Tensor | None = None
) -> Tensor:
    """sum_k a_k x_k, a = softmax(p W / t), p = softmax(x / t); W [K, K] is `mixing`, None for the identity."""
    x = widen(x)
    first = softmax(x / temperature, mask, dim)
    if mixing is not None:
        first = _mix(first, mixing, dim)
    return total(softmax(first / temperature, mask, dim) * _zeroed(x, mask), None, dim)


def attend_normalized(x: Tensor, mask: Tensor | None = None, dim: int = -1, temperature: float = 1.0) -> Tensor:
    """sum_k a_k x_k, a = softmax(x / (t |x|)), |x| the Euclidean length of the real entries; zeros count alike."""
    x = _zeroed(widen(x), mask)
    # Divided by the largest, a factor that cancels: then no square overflows, and the length is at least 1.
    largest = x.detach().abs().amax(dim, keepdim=True)
    y = x / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(y, dim=dim, keepdim=True).clamp_min(1.0)
    return total(softmax(y / length / temperature, mask, dim) * x, None, dim)


def mean_of_top(x: Tensor, count: Tensor | int, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """The mean of the `count` largest real entries along `dim`, of all where there are fewer.

    Args:
        count: a number, or a tensor that has 1 where x has `dim` and is broadcastable to x elsewhere; at least 1.
    """
    x = widen(x)
    ordered = _lowest(x, mask).sort(dim=dim, descending=True, stable=True).values
    rank = torch.ones_like(x, dtype=torch.long).cumsum(dim)
    best = rank <= count
    if mask is not None:
        best = best & (rank <= mask.sum(dim, keepdim=True))
    return mean(ordered, best, dim)


def softmax(x: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    """The softmax over the real entries along `dim`, of the shape of x; 0 at the others, also where none is real."""
    attention = _lowest(widen(x), mask).softmax(dim)
    return _zeroed(attention, mask)


@dataclass(frozen=True)
class Reduction:
    """A reduction by name, which kernels can read: mean, sum, max, logsumexp or softmax, with its temperature.

    Raises:
        ValueError: unknown kind, or a temperature that is not positive and finite.
    """

    kind: str
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks.choice("reduction", self.kind, [*_PLAIN, *_TEMPERED])
        checks.positive("temperature", self.temperature)

    def __call__(self, x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        """Reduce `dim` of x under a mask broadcastable to x."""
        if self.kind in _PLAIN:
            return _PLAIN[self.kind](x, mask, dim)
        return _TEMPERED[self.kind](x, mask, dim, self.temperature)


_PLAIN: dict[str, Callable[[Tensor, Tensor | None, int], Tensor]] = {"mean": mean, "sum": total, "max": maximum}
_TEMPERED: dict[str, Callable[[Tensor, Tensor | None, int, float], Tensor]] = {
    "logsumexp": logsumexp,
    "softmax": attend,
}


def widen(x: Tensor) -> Tensor:
    """Convert narrower dtypes to fp32; fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bounded(x: Tensor) -> Tensor:
    """Widen, and replace -inf by the lowest number: in the gradient by a scale, 0 times it is 0 and not NaN."""
    x = widen(x)
    return x.clamp_min(torch.finfo(x.dtype).min)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Make a context without autocast on x's device, so that tensors are computed at their own precision."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in the dtype of x, not in its own: fp64 tokens meet no fp32 product."""
    weights = {name: value.to(x.dtype) for name, value in layer.named_parameters()}
    return nn.functional.linear(x, weights["weight"], weights.get("bias"))


def _mix(attention: Tensor, mixing: Tensor, dim: int) -> Tensor:
    return (attention.movedim(dim, -1) @ mixing.to(attention.dtype)).movedim(-1, dim)


def _zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def _lowest(x: Tensor, mask: Tensor | None) -> Tensor:
    # Not -inf: the softmax of a row of them is NaN, and the backward pass of a NaN is only masked afterwards.
    return x if mask is None else torch.where(mask, x, torch.finfo(x.dtype).min)


def _zero_if_empty(out: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    return out if mask is None else torch.where(mask.any(dim), out, 0.0)
