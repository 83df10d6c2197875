"""Settings from a YAML or JSON file and a command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from .. import files
from ..checks import require
from ..models.config import import_trusted
from ..models.settings import build
from .config import BabyAIConfig, ClipsConfig, TrainConfig

_ALIASES = 20  # three to a level make a few thousand values of one


def load_config(name: str | os.PathLike[str], overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> TrainConfig:
    """Load the settings of a YAML (or JSON) file.

    A key `base` names another config, whose settings the file's own replace, one by one; stages are matched by their
    place, and are as many as in the file.

    Args:
        name: a path, or the name of a file in multigrain/configs, without its suffix: "demo", "recipes/filip".
        overrides: as on a command line, applied to the file before it is read: ["--seed=1",
            "--model.aggregator.init_args.temperature=0.03", "--model.grains.3.aggregator=max_max",
            "--stages.1.epochs=3"]. Numbers count from 0; a value is YAML.
        trust: packages of your own whose aggregators the file may name; they are imported (see XCLIP.from_pretrained).

    Raises:
        FileNotFoundError: no such file; the message lists the configs that come with the package.
        ImportError: PyYAML is not installed; or what `trust` has cannot be imported.
        ValueError: unknown settings, values out of range, or classes of others; the message names them.
    """
    path = find_config(name)
    try:
        values: Any = _read(path)
        for override in overrides:
            place, separator, value = override.removeprefix("--").partition("=")
            require(override.startswith("--") and bool(separator), "override", "--name=value", override)
            _set(values, place, _yaml()(value))
        data = {} if (data := values.pop("data", None)) is None else data
        # A union would hide which setting is wrong.
        data_class = ClipsConfig if isinstance(data, dict) and "manifest" in data else BabyAIConfig
        config = dataclasses.replace(build(TrainConfig, values), data=build(data_class, data, "data"))
        import_trusted(config.model, trust)
    except (RecursionError, TypeError, ValueError) as error:
        reason = "settings in too many others" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"config {path}: {reason}") from error
    return config


@cache
def _yaml() -> Callable[[str], Any]:
    """Make the function that turns YAML into plain values.

    Raises:
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('reading a config needs PyYAML: pip install "multigrain[cli]"') from error

    class Loader(yaml.SafeLoader):
        """Loader that refuses a repeated name, of which one would win unseen, and many aliases: few lines could make
        billions of values."""

        aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.aliases += bool(self.check_event(yaml.AliasEvent))
            if self.aliases > _ALIASES:
                raise ValueError(f"expected at most {_ALIASES} aliases, such as *{self.peek_event().anchor}")
            return super().compose_node(parent, index)

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                raise ValueError(f"expected every name once, got {max(names, key=names.count)!r} more than once")
            return node

    def parse(text: str) -> Any:
        try:
            return yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error

    return parse


def _read(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """Read the values of a file, laid over those of its base."""
    # JSON as such: YAML reads its 1e-05 as a word.
    values = (files.read_json(path) if path.suffix == ".json" else _yaml()(files.read_text(path))) or {}
    require(isinstance(values, dict), "config", "settings by name", values)
    base: object = values.pop("base", None)
    if base is None:
        return values
    found, above = find_config(str(base)), (*above, path)
    require(found not in above, "base", "the name or path of another config", base)
    return _over(_read(found, above), values)


def _over(old: Any, new: Any) -> Any:
    """Lay nested settings over older ones; a class path replaces the older class and its arguments."""
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
    """Return the key of a name in a mapping, or its index in a list."""
    if isinstance(values, list):
        require(name.isdecimal() and int(name) < len(values), place, f"a number below {len(values)}", name)
        return int(name)
    require(isinstance(values, dict), place, "settings to choose from", values)
    return name


def find_config(name: str | os.PathLike[str]) -> Path:
    """Find the file of a config, by its path or by its name in multigrain/configs.

    Raises:
        FileNotFoundError: no such file; the message lists the configs that come with the package.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(resources.files("multigrain"))) / "configs"
    if (shipped := folder / f"{path}.yaml").is_file():
        return shipped
    names = ", ".join(sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")))
    raise FileNotFoundError(f"config: expected a YAML file or one of {names}; got {os.fspath(name)}")
