"""Checks that any module may use: what was expected, what came, and of which argument."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

# Beyond, fp32 could not hold the sums and products of what is given: of scores in a loss, of settings with scores.
LARGEST = 1e30
# The least temperature: fp32 holds a similarity by it, and kernels their fill values beside that.
SMALLEST = 1e-20
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What moves a cursor, sets colours, ends a line or turns the direction of writing; halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def floating(name: str, value: Tensor, what: str) -> None:
    """A dense tensor of numbers to compute with, or an error."""
    dense(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected floating-point {what} of 16 to 64 bits, got {value.dtype}")


def present(name: str, value: Tensor) -> None:
    """A tensor that has values."""
    if value.is_meta:
        raise ValueError(f"{name}: expected values, got a tensor on the device meta, which has none")


def no_grain(target: str, names: Sequence[str], source: str) -> None:
    """Features do not have what a head is about to make: what a caller gave is not overwritten."""
    if target in names:
        raise ValueError(
            f"target: expected features without {target!r}, which is made of {source!r} here, got one; "
            "features.only(...) leaves it out"
        )


def similarity(sim: Tensor, query_mask: Tensor | None, candidate_mask: Tensor | None) -> None:
    """sim [q, c, m, n] with masks [q, m] and [c, n] (True = real), or an error."""
    instance("sim", sim, Tensor)
    if sim.ndim != 4:
        raise ValueError(f"sim: expected [query, candidate, query_token, candidate_token], got {shape(sim)}")
    q, c, m, n = sim.shape
    for name, value, expected in (("query_mask", query_mask, (q, m)), ("candidate_mask", candidate_mask, (c, n))):
        if value is None:
            continue
        if instance(name, value, Tensor).shape != expected:
            raise ValueError(f"{name}: expected shape {list(expected)} for sim {shape(sim)}, got {shape(value)}")
        if value.dtype != torch.bool:
            raise TypeError(f"{name}: expected dtype torch.bool (True = a real token), got {value.dtype}")
        if value.device != sim.device:
            raise ValueError(f"{name}: expected device {sim.device} as sim, got {value.device}")


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """That something holds of a setting or a field."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {short(got)}")


def few(names: Iterable[str]) -> str:
    """The first of some names, for a message."""
    first, *rest = sorted(names)
    shown = [first[:100], *rest[:4]]
    return ", ".join(shown) + (f" and {len(rest) - 4} more" if len(rest) > 4 else "")


def positive(name: str, value: float, least: float = SMALLEST, most: float = 1 / SMALLEST) -> float:
    """A number above zero by which fp32 can divide and multiply similarities, or an error."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a positive number, got {short(value)}")
    if not least <= value <= most:
        limits = f" from {least:g} to {most:g}" if 0 < value < math.inf else ""
        raise ValueError(f"{name}: expected a positive finite number{limits}, got {short(value)}")
    return float(value)


def number(name: str, value: float, least: float = -LARGEST, most: float = LARGEST) -> float:
    """A finite number between limits, or an error."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {short(value)}")
    if not least <= value <= most:
        limits = f" from {least:g} to {most:g}" if least > -LARGEST or abs(value) < math.inf else ""
        raise ValueError(f"{name}: expected a finite number{limits}, got {short(value)}")
    return float(value)


class BadEntry(ValueError):
    """An entry of a matrix that may not be there, in this row and column."""

    row: int
    column: int


class NotFinite(BadEntry):
    """Scores of which no loss is finite."""


class Rule(NamedTuple):
    """What the numbers of a config have to be, in words and as a test."""

    expected: str
    kind: type
    holds: Callable[[Any], bool]


MOST_LAYERS = 1000  # a file can ask for more, and building them would take hours
# NaN holds no comparison; no setting needs a whole number that int64 cannot add to.
POSITIVE = Rule("a positive integer", Integral, lambda x: 1 <= x < 2**62)
NATURAL = Rule("an integer of at least 0", Integral, lambda x: 0 <= x < 2**62)
LAYERS = Rule(f"an integer from 0 to {MOST_LAYERS:,}", Integral, lambda x: 0 <= x <= MOST_LAYERS)
ABOVE_0 = Rule("a number above 0", Real, lambda x: 0 < x <= LARGEST)
FROM_0 = Rule("a number of at least 0", Real, lambda x: 0 <= x <= LARGEST)
SHARE = Rule("a share in [0, 1)", Real, lambda x: 0 <= x < 1)


def fields(config: object, rule: Rule, *names: str) -> None:
    """That fields of a config keep to a rule, or an error that names the first that does not."""
    for name in names:
        keeps(name, rule, getattr(config, name))


def keeps(name: str, rule: Rule, value: object) -> None:
    """That a number keeps to a rule, or an error."""
    require(
        isinstance(value, rule.kind) and not isinstance(value, bool) and rule.holds(value), name, rule.expected, value
    )


def short(value: object) -> str:
    """What was given, for a message: its repr in one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python cares to write
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def count(name: str, value: int, at_most: int | None = None) -> int:
    """A whole number from one to `at_most`, or an error."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a positive integer, got {short(value)}")
    if not 1 <= value <= (2**62 if at_most is None else at_most):
        limit = "" if at_most is None else f" to {at_most}"
        raise ValueError(f"{name}: expected an integer from 1{limit}, got {short(value)}")
    return int(value)


def choice(name: str, value: str, choices: Iterable[str]) -> str:
    """One of the given names, or an error that lists them."""
    options = list(choices)
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(options)}; got {short(value)}")
    return value


def scores(value: Tensor, name: str = "scores") -> None:
    """A floating matrix [queries, candidates] without an empty axis, or an error."""
    floating(name, instance(name, value, Tensor), "scores")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name}: expected a non-empty matrix [queries, candidates], got {shape(value)}")


def square(value: Tensor, remedy: str = "pass a pair of ids (of the queries, of the candidates) otherwise") -> None:
    """Row i belongs to column i, or an error that says what to pass otherwise."""
    if value.shape[0] != value.shape[1]:
        raise ValueError(f"scores: expected a square matrix (row i belongs to column i), got {shape(value)}; {remedy}")


def targets(value: Tensor, scores: Tensor, axis: int) -> None:
    """Weights from 0 of the shape of scores [q, c], with one above 0 along `axis`, or an error."""
    floating("targets", instance("targets", value, Tensor), "weights")
    require(value.device == scores.device, "targets", f"device {scores.device} as scores", str(value.device))
    if value.shape != scores.shape:
        raise ValueError(f"targets: expected the shape of scores, {shape(scores)}, got {shape(value)}")
    if readable(value):
        first_bad("targets", "finite weights from 0", value, (value >= 0) & (value < math.inf))
        lonely = ~(value > 0).any(axis)
        if lonely.any():
            raise ValueError(
                f"targets: expected a weight above 0 in every {'row' if axis else 'column'}, got none in "
                f"{int(lonely.nonzero()[0])}"
            )


def labels(name: str, value: Tensor, length: int) -> None:
    """A one-dimensional integer tensor of the given length, or an error."""
    instance(name, value, Tensor)
    if value.shape != (length,):
        raise ValueError(f"{name}: expected shape [{length}], got {shape(value)}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")


def shaped(name: str, value: Tensor, expected: tuple[int, ...]) -> Tensor:
    """What a part that may be the caller's own has returned, a tensor of that shape, or an error."""
    if instance(name, value, Tensor).shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {shape(value)}")
    return value


def shape(value: Tensor) -> str:
    """The shape as text."""
    return str(list(value.shape))


def positives(value: Tensor) -> None:
    """Every row and column of a bool matrix has a positive, or an error that names the first without."""
    for axis, name in ((1, "query"), (0, "candidate")):
        lonely = ~value.any(axis)
        if lonely.any():
            raise ValueError(
                f"ids: expected a positive for every {name}, got none for {name} {int(lonely.nonzero()[0])}"
            )


def indices(name: str, value: Tensor, size: int) -> None:
    """Indices from 0 to size - 1, or an error that names the first other one."""
    outside = (value < 0) | (value >= size)
    if outside.any():
        i = int(outside.nonzero()[0])
        raise ValueError(f"{name}: expected indices from 0 to {size - 1}, got {int(value[i])} at position {i}")


def not_nan(value: Tensor, first_row: int = 0, columns: Tensor | None = None) -> None:
    """No NaN among scores, or an error that names the first.

    Args:
        columns: of the shape of value, what to call the columns; None: by their places.
    """
    first_bad("scores", "numbers", value, ~value.isnan(), first_row, columns)


def comparable(name: str, value: Tensor) -> None:
    """Finite scores that fp32 can add up, or an error that names the first other one."""
    if not torch.compiler.is_compiling() and not transformed():
        first_bad(name, f"finite numbers up to {LARGEST:g}", value, value.abs() <= LARGEST)


def first_bad(
    name: str,
    expected: str,
    value: Tensor,
    good: Tensor,
    first_row: int = 0,
    columns: Tensor | None = None,
    kind: type[BadEntry] = BadEntry,
) -> None:
    """That all values of a matrix are good, or an error that names the first other one, its row and its column."""
    present(name, value)
    if not good.all():
        row, column = (int(i) for i in (~good).nonzero()[0])
        place = column if columns is None else int(columns[row, column])
        got = float(value[row, column])
        got = "NaN" if math.isnan(got) else f"{got:g}"
        error = kind(f"{name}: expected {expected}, got {got} at row {first_row + row}, column {place}")
        error.row, error.column = first_row + row, place
        raise error


def contrasted(value: Tensor, positives: Tensor | None = None, name: str = "scores") -> None:
    """Scores of which a loss is finite, or an error that names the first other one; read where that costs nothing.

    Args:
        positives: bool, or weights: where those must be that -inf cannot leave out.
    """
    if not readable(value):
        return
    x = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    good = x <= LARGEST
    if positives is not None:
        good &= (x >= -LARGEST) | (positives <= 0)
    first_bad(
        name,
        f"numbers up to {LARGEST:g} (-inf leaves out a pair that does not belong together)",
        x,
        good,
        kind=NotFinite,
    )


def readable(value: Tensor) -> bool:
    """Whether a look at values holds nothing up: on the CPU, outside of compilation and of function transforms."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def transformed() -> bool:
    """Under torch.func or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0  # pyright: ignore


def width(what: str, size: int, got: int) -> None:
    """Features as wide as the layers that read them."""
    if got != size:
        raise ValueError(f"{what}: expected features of width {size}, got {got}")


def instance(name: str, value: object, kind: type[T]) -> T:
    """An object of a class, or an error."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(f"{name}: expected {article} {kind.__name__}, got {named(value)}")
    if isinstance(value, Tensor):
        dense(name, value)
    return value


def dense(name: str, value: Tensor) -> None:
    """A tensor that holds all its numbers, or an error."""
    if value.is_nested or value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if value.is_nested else value.layout}")


def instances(kind: type, **values: object) -> None:
    """Objects of one class by name, or an error that names the first other one."""
    for name, value in values.items():
        instance(name, value, kind)


def scorer(name: str, value: T, but: type | None = None) -> T:
    """What can be called with two Features, but is no object of a class `but`, or an error."""
    wrong = (but is not None and isinstance(value, but)) or reads(value) in (None, "sim", "scores")
    if wrong or not takes(value, 2):
        raise TypeError(f"{name}: expected a scorer of two Features, such as MultiGrain, got {named(value)}")
    return value


def reads(value: object) -> str | None:
    """The name of what a function, or a module's `forward`, takes first; None: it is none, or a class."""
    if isinstance(value, type) or not callable(value):
        return None
    return next(iter(inspect.signature(getattr(value, "forward", value)).parameters), "")


def takes(value: object, count: int) -> bool:
    """Whether a function, or a module's `forward`, can be called with so many arguments."""
    try:
        inspect.signature(getattr(value, "forward", value)).bind(*range(count))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # ValueError: of one in C, which does not tell
        return False
    return True


def origin(value: type | Callable[..., object]) -> tuple[str, str]:
    """Where a class or function is written."""
    return value.__module__, value.__qualname__


def whole_text(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which JSON may hold and no encoding does."""
    return _HALF_PAIR.sub("\ufffd", text)


def printable(text: object) -> str:
    """A line of text as a terminal may show it: whatever would act on the terminal as its escape, a newline too."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def named(value: object) -> str:
    """What an object is, for a message; a class itself is called one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
