"""Loss: anything that a step minimises; losses add up, `a + 0.5 * b`, to one whose terms have names.

    loss = RetrievalLoss(scorer, InfoNCE()).named("global") + 0.5 * TokenNCE().named("token")
    loss(text, video).backward()
    loss.terms      {"global": 3.1, "token": 1.2}, as they count in the sum
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import checks


class Loss(nn.Module, ABC):
    """A scalar to minimise, of scores (a criterion) or of features. Subclass it and write `forward`.

    Attributes:
        terms: after a call, name -> detached scalar of each term, weighted: together they are the loss. A loss that is
            no sum is one term, of the name of its class.
    """

    terms: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.terms = {}
        self.register_forward_hook(_keep_terms)

    @abstractmethod
    def forward(self, *args: Any, **settings: Any) -> Tensor:
        """Compute the loss, a scalar."""

    def named(self, name: str) -> Loss:
        """Name the loss; the terms of a sum then begin with the name, as in "name.InfoNCE".

        Raises:
            ValueError: an empty name.
        """
        if not checks.instance("name", name, str):
            raise ValueError(f"name: expected a word, got {name!r}")
        return Sum([Term(name, 1.0, self)])

    def summands(self) -> list[Term]:
        """The terms of this loss: itself, where it is no sum."""
        return [Term(type(self).__name__, 1.0, self)]

    def _terms_of(self, loss: Tensor) -> dict[str, Tensor]:
        """The terms of a call, given the loss that it returned."""
        return {type(self).__name__: loss.detach()}

    def __add__(self, other: object) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return Sum([*_outer(self), *_outer(other)])

    def __radd__(self, other: object) -> Loss:
        return self if other == 0 else NotImplemented  # sum([a, b]) begins with 0

    def __mul__(self, weight: object) -> Loss:
        weight = checks.number(f"weight of {type(self).__name__}", cast("float", weight))
        return Sum([term._replace(weight=weight * term.weight) for term in _outer(self)])

    __rmul__ = __mul__


class Term(NamedTuple):
    """One part of a sum."""

    name: str
    weight: float
    loss: Loss


class Sum(Loss):
    """sum_k weight_k loss_k of the same arguments, made by `a + 0.5 * b`.

    A keyword argument, such as the `keys` of RetrievalLoss, goes to the terms that know it.
    """

    def __init__(self, parts: Sequence[Term]) -> None:
        super().__init__()
        names = _distinct([part.name for part in parts])
        self.names, self.weights = names, [float(part.weight) for part in parts]
        self.parts = nn.ModuleList([part.loss for part in parts])

    def forward(self, *args: Any, **settings: Any) -> Tensor:
        """Compute the weighted sum.

        Raises:
            TypeError: a keyword argument that no term knows.
        """
        known = [_accepted(part, settings) for part in self.parts]
        if stray := set(settings).difference(*known):
            raise TypeError(f"{', '.join(sorted(stray))}: expected by no term of {', '.join(self.names)}")
        found = [part(*args, **mine) for part, mine in zip(self.parts, known, strict=True)]
        return torch.stack([weight * x for weight, x in zip(self.weights, found, strict=True)]).sum()

    def summands(self) -> list[Term]:
        """The terms of all terms, each with its full name and weight."""
        return [
            Term(_full_name(name, inner.name, len(terms)), weight * inner.weight, inner.loss)
            for name, weight, part in self.outer()
            for terms in [part.summands()]
            for inner in terms
        ]

    def outer(self) -> list[Term]:
        """The terms as they were added: one of them may be a named sum."""
        parts = cast("list[Loss]", list(self.parts))
        return [Term(*each) for each in zip(self.names, self.weights, parts, strict=True)]

    def _terms_of(self, loss: Tensor) -> dict[str, Tensor]:
        return {
            _full_name(name, inner, len(part.terms)): weight * value
            for name, weight, part in self.outer()
            for inner, value in part.terms.items()
        }

    def extra_repr(self) -> str:
        """The weights and names that repr shows."""
        return " + ".join(f"{weight:g} {name}" for name, weight in zip(self.names, self.weights, strict=True))


def _keep_terms(loss: nn.Module, _: Any, value: Tensor) -> None:
    """Keep the terms of a call: a forward hook."""
    cast("Loss", loss).terms = cast("Loss", loss)._terms_of(value)  # pyright: ignore[reportPrivateUsage]


def _outer(loss: Loss) -> list[Term]:
    return loss.outer() if isinstance(loss, Sum) else [Term(type(loss).__name__, 1.0, loss)]


def _full_name(name: str, inner: str, terms: int) -> str:
    return name if terms == 1 else f"{name}.{inner}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur more than once: the second "a" becomes "a_2"."""
    found: list[str] = []
    for name in names:
        number = next(i for i in itertools.count(1) if (name if i == 1 else f"{name}_{i}") not in found)
        found.append(name if number == 1 else f"{name}_{number}")
    return found


def _accepted(loss: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """Select the keyword arguments that a loss takes."""
    if isinstance(loss, Sum):
        return {name: value for part in loss.parts for name, value in _accepted(part, settings).items()}
    parameters = inspect.signature(loss.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return settings
    return {name: value for name, value in settings.items() if name in parameters}
