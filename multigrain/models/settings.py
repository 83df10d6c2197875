"""Build a dataclass of settings from the plain values of JSON or YAML, by the types of its fields.

Nothing is imported, opened or called because a value says so: a class path stays a string.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .. import checks

T = TypeVar("T")


def build(cls: type[T], values: Any, name: str = "") -> T:
    """Build a dataclass of settings from values by name.

    Args:
        name: how messages call the settings.

    Raises:
        ValueError: an unknown or missing setting, or a value of another type or out of range; it is named.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name or 'settings'}: expected settings by name, got {checks.short(values)}")
    hints, fields = get_type_hints(cls), dataclasses.fields(cast(Any, cls))
    if unknown := [key for key in values if key not in hints]:
        raise ValueError(f"{_place(name, unknown[0])}: no such setting; there are {', '.join(hints)}")
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"{_place(name, missing[0])}: expected a setting, got none")
    return cls(**{key: _value(hints[key], value, _place(name, key)) for key, value in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    """Convert a value to the type of a field."""
    if kind is Any:
        return value
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    kind = next((each for each in kinds if _fits(each, value)), None)
    if kind is None:
        named = " or ".join(map(_named, kinds))
        raise ValueError(f"{name}: expected {named}, got {checks.short(value)}")
    inner = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(cast("type[Any]", kind), value, name)
    if get_origin(kind) is list:
        return [_value(inner[0], each, f"{name}.{i}") for i, each in enumerate(value)]
    if get_origin(kind) is tuple:
        return tuple(_value(each, part, f"{name}.{i}") for i, (each, part) in enumerate(zip(inner, value, strict=True)))
    return float(value) if kind is float and isinstance(value, str) else value


def _fits(kind: Any, value: Any) -> bool:
    """Tell whether a value is of a type; items of lists and settings by name are checked later."""
    outer = get_origin(kind) or kind
    if dataclasses.is_dataclass(kind) or outer is dict:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if outer is tuple:
        return isinstance(value, list | tuple) and len(value) == len(get_args(kind))
    if outer is float:
        return _is_number(value)
    return type(value) is outer


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, perhaps as a string: YAML reads 1e-3 as one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (OverflowError, TypeError, ValueError):
        return False


def _named(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "settings by name"
    return "nothing" if kind is types.NoneType else str(kind if get_origin(kind) else kind.__name__)


def _place(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
