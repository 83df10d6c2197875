"""Settings from a YAML or JSON file and a command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..checks import require
from .config import BabyAIConfig, ClipsConfig, TrainConfig


def load_config(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """The settings of a YAML (or JSON) file.

    A key `base` names another config, whose settings the file's own replace, one by one; stages are matched by their
    place, and are as many as in the file.

    Args:
        name: a path, or the name of a file in multigrain/configs, without its suffix: "demo", "recipes/filip".
        overrides: as on a command line, applied to the file before it is read: ["--seed=1",
            "--model.aggregator.init_args.temperature=0.03", "--model.grains.3.aggregator=max_max",
            "--stages.1.epochs=3"]. Numbers count from 0; a value is YAML.

    Raises:
        FileNotFoundError: no such file; the message lists the configs that come with the package.
        ImportError: jsonargparse is not installed.
        ValueError: unknown settings, or values out of range; the message names them.
    """
    path = _find(name)
    try:
        import yaml
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError('reading a config needs jsonargparse: pip install "multigrain[cli]"') from error

    def parsed(cls: type, values: Any, skip: set[str | int]) -> dict[str, Any]:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, skip=skip)
        return vars(parser.instantiate(parser.parse_object(values)))

    try:
        values: Any = _read(path, yaml.safe_load)
        for override in overrides:
            place, separator, value = override.removeprefix("--").partition("=")
            require(override.startswith("--") and bool(separator), "override", "--name=value", override)
            _set(values, place, yaml.safe_load(value))
        data = dict(values.pop("data", None) or {})
        data_class = ClipsConfig if "manifest" in data else BabyAIConfig  # a union would hide which setting is wrong
        return TrainConfig(**parsed(TrainConfig, values, {"data"}), data=data_class(**parsed(data_class, data, set())))
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"config {path}: {error}") from error


def _read(path: Path, parse: Callable[[str], Any], above: tuple[Path, ...] = ()) -> Any:
    """The values of a file over those of its base."""
    # JSON as such: YAML reads its 1e-05 as a word.
    text = path.read_text(encoding="utf-8")
    values = (json.loads(text) if path.suffix == ".json" else parse(text)) or {}
    require(isinstance(values, dict), "config", "settings by name", values)
    base: object = values.pop("base", None)
    if base is None:
        return values
    found, above = _find(str(base)), (*above, path)
    require(found not in above, "base", "the name or path of another config", base)
    return _over(_read(found, parse, above), values)


def _over(old: Any, new: Any) -> Any:
    """Nested settings, the new ones over the old ones; a class path replaces the class with its arguments."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or "class_path" in new:
        return new
    merged = {**old, **{name: _over(old[name], value) if name in old else value for name, value in new.items()}}
    if isinstance(old.get("stages"), list) and isinstance(new.get("stages"), list):
        merged["stages"] = [*map(_over, old["stages"], new["stages"]), *new["stages"][len(old["stages"]) :]]
    return merged


def _set(values: Any, place: str, value: object) -> None:
    """Put a value at a dotted place of nested mappings and lists, making mappings on the way."""
    *path, last = place.split(".")
    for name in path:
        key = _key(values, name, place)
        if isinstance(values, dict):
            values.setdefault(key, {})
        values = values[key]
    values[_key(values, last, place)] = value


def _key(values: Any, name: str, place: str) -> Any:
    """The key of a name in a mapping, or its index in a list."""
    if isinstance(values, list):
        require(name.isdigit() and int(name) < len(values), place, f"a number below {len(values)}", name)
        return int(name)
    require(isinstance(values, dict), place, "settings to choose from", values)
    return name


def _find(name: str | os.PathLike[str]) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(resources.files("multigrain"))) / "configs"
    if (shipped := folder / f"{path}.yaml").is_file():
        return shipped
    names = ", ".join(sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")))
    raise FileNotFoundError(f"config: expected a YAML file or one of {names}; got {os.fspath(name)}")
