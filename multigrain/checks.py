"""Checks that any module may use; their errors name the argument, what was expected and what was given."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

# The largest score and setting: fp32 holds the sums of such scores in a loss, and the products of both.
LARGEST = 1e30
# The least temperature: fp32 holds a similarity divided by it, and kernels have room for their fill values.
SMALLEST = 1e-20
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Characters that move a cursor, set colours, end a line or turn the direction of writing; halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def floating(name: str, value: Tensor, what: str) -> None:
    """A dense floating-point tensor, or an error."""
    dense(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected floating-point {what} of 16 to 64 bits, got {value.dtype}")


def present(name: str, value: Tensor) -> None:
    """A tensor that has values, or an error."""
    if value.is_meta:
        raise ValueError(f"{name}: expected values, got a tensor on the device meta, which has none")


def mask(name: str, value: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """A bool mask of this size (True = a real token) on the device of its tokens, or an error."""
    if value.shape != size:
        raise ValueError(f"{name}: expected shape {list(size)}, got {shape(value)}")
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool (True = a real token), got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name}: expected device {device} as its tokens, got {value.device}")
    return value


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise a ValueError unless a condition on a setting holds."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {short(got)}")


def few(names: Iterable[str]) -> str:
    """List the first names, for a message."""
    first, *rest = sorted(names)
    shown = [first[:100], *rest[:4]]
    return ", ".join(shown) + (f" and {len(rest) - 4} more" if len(rest) > 4 else "")


def positive(name: str, value: float, least: float = SMALLEST, most: float = 1 / SMALLEST) -> float:
    """A number above 0 that fp32 can divide and multiply similarities by, or an error."""
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
    """A matrix has a forbidden value in this row and column."""

    row: int
    column: int


class NotFinite(BadEntry):
    """Scores have a value that no finite loss can come of."""


class Rule(NamedTuple):
    """A condition on a number of a config, in words and as a test."""

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
    """Fields of a config that keep to a rule, or an error that names the first other one."""
    for name in names:
        keeps(name, rule, getattr(config, name))


def keeps(name: str, rule: Rule, value: object) -> None:
    """A number that keeps to a rule, or an error."""
    holds = isinstance(value, rule.kind) and not isinstance(value, bool) and rule.holds(value)
    require(holds, name, rule.expected, value)


def short(value: object) -> str:
    """Show a value in a message: its repr in one line, cut where it is long."""
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
    """A square matrix, in which row i belongs to column i, or an error that says what to pass otherwise."""
    if value.shape[0] != value.shape[1]:
        raise ValueError(f"scores: expected a square matrix (row i belongs to column i), got {shape(value)}; {remedy}")


def labels(name: str, value: Tensor, length: int) -> None:
    """A one-dimensional integer tensor of the given length, or an error."""
    instance(name, value, Tensor)
    if value.shape != (length,):
        raise ValueError(f"{name}: expected shape [{length}], got {shape(value)}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")


def shaped(name: str, value: Tensor, expected: tuple[int, ...]) -> Tensor:
    """A tensor of this shape, or an error; for results of code that may be the caller's own."""
    if instance(name, value, Tensor).shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {shape(value)}")
    return value


def shape(value: Tensor) -> str:
    """The shape as text."""
    return str(list(value.shape))


def positives(value: Tensor) -> None:
    """A bool matrix with a True in every row and column, or an error that names the first without one."""
    for axis, name in ((1, "query"), (0, "candidate")):
        lonely = ~value.any(axis)
        if lonely.any():
            row = int(lonely.nonzero()[0])
            raise ValueError(f"ids: expected a positive for every {name}, got none for {name} {row}")


def indices(name: str, value: Tensor, size: int) -> None:
    """Indices from 0 to size - 1, or an error that names the first other one."""
    outside = (value < 0) | (value >= size)
    if outside.any():
        i = int(outside.nonzero()[0])
        raise ValueError(f"{name}: expected indices from 0 to {size - 1}, got {int(value[i])} at position {i}")


def not_nan(value: Tensor, first_row: int = 0, columns: Tensor | None = None) -> None:
    """Scores without NaN, or an error that names the first one.

    Args:
        columns: names of the columns, of the shape of value; None: their places.
    """
    first_bad("scores", "numbers", value, ~value.isnan(), first_row, columns)


def first_bad(
    name: str,
    expected: str,
    value: Tensor,
    good: Tensor,
    first_row: int = 0,
    columns: Tensor | None = None,
    kind: type[BadEntry] = BadEntry,
) -> None:
    """A matrix whose values are all good, or an error that names the first other one, its row and its column."""
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
    """Scores that have a finite loss, or an error that names the first other one. Read only where that costs nothing.

    Args:
        positives: bool, or weights; a score of -inf leaves a pair out, which is not allowed where they are above 0.
    """
    if not readable(value):
        return
    x = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    good = x <= LARGEST
    if positives is not None:
        good &= (x >= -LARGEST) | (positives <= 0)
    expected = f"numbers up to {LARGEST:g} (-inf leaves out a pair that does not belong together)"
    first_bad(name, expected, x, good, kind=NotFinite)


def readable(value: Tensor) -> bool:
    """Tell whether reading values costs nothing: on the CPU, outside compilation and function transforms."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def transformed() -> bool:
    """Tell whether torch.func or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0  # pyright: ignore


def width(what: str, size: int, got: int) -> None:
    """Features as wide as the layers that read them, or an error."""
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
    """A module or function of two Features that is no instance of `but`, or an error."""
    wrong = (but is not None and isinstance(value, but)) or reads(value) in (None, "sim", "scores")
    if wrong or not takes(value, 2):
        raise TypeError(f"{name}: expected a scorer of two Features, such as MultiGrain, got {named(value)}")
    return value


def reads(value: object) -> str | None:
    """The name of the first argument of a function or a module's `forward`; None for a class or anything else."""
    if isinstance(value, type) or not callable(value):
        return None
    return next(iter(inspect.signature(getattr(value, "forward", value)).parameters), "")


def takes(value: object, count: int) -> bool:
    """Tell whether a function, or a module's `forward`, can be called with so many arguments."""
    try:
        inspect.signature(getattr(value, "forward", value)).bind(*range(count))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # ValueError: a function in C may not tell its arguments
        return False
    return True


def origin(value: type | Callable[..., object]) -> tuple[str, str]:
    """The module and the name of a class or function."""
    return value.__module__, value.__qualname__


def whole_text(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair: JSON may hold halves, but no encoding does."""
    return _HALF_PAIR.sub("\ufffd", text)


def printable(text: object) -> str:
    """A line of text that is safe for a terminal: characters that would act on it, newlines too, become escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def named(value: object) -> str:
    """The class of an object, for a message; a class itself is called one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
