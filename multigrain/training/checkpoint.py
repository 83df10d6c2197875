"""Checkpoints of a run, and metrics.jsonl, the log of its training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import files
from .config import TrainConfig

# Settings that may change between a run and its resumption.
_PLACE_ONLY, _PLACES = ("device", "checkpoint_seconds", "keep", "workers", "timeout"), ("cache", "manifest")


class Position(NamedTuple):
    """The next step to take: stage and epoch from 0, and how many steps of that epoch are done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


def save_checkpoint(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write tensors and plain values in place of the last checkpoint.

    The keep - 1 checkpoints before it stay: checkpoint.1.pt is the one before checkpoint.pt, and so on. Whenever the
    process is killed, checkpoint.pt is complete.

    Raises:
        OSError: it cannot be written; the earlier ones stay complete.
    """
    with files.writing(path) as file:
        torch.save(state, file)
        for age in range(keep - 1, 0, -1):
            if (younger := _earlier(path, age - 1)).is_file():
                files.duplicate(younger, _earlier(path, age))


def checkpoints(path: Path) -> list[Path]:
    """List the checkpoint and the earlier ones that stayed, the newest first."""
    names = (file.name.split(".")[-2] for file in path.parent.glob(f"{path.stem}.*{path.suffix}"))
    ages = [0, *sorted(int(name) for name in names if name.isdecimal())]
    return [file for age in ages if (file := _earlier(path, age)).exists()]


def _earlier(path: Path, age: int) -> Path:
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def load_checkpoint(
    path: Path, settings: dict[str, Any], use: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Load the newest checkpoint that is complete and that `use` takes without an error.

    Raises:
        OSError: none can be read.
        ValueError: all are damaged, or the newest is of a run with other settings or data (the difference is named).

    Warns:
        UserWarning: a checkpoint is damaged, and the one before makes up for it.
    """
    remedy = "pass resume=False to start anew, or another out_dir"
    places = checkpoints(path)
    for place, before in zip(places, [*places[1:], None], strict=True):
        try:
            state: dict[str, Any] = files.load_tensors(place)
            difference = _difference(files.parse_json(state["settings"]), json.loads(json.dumps(settings)))
            if not difference:
                use(state)
                return state
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the contents run into
            reason = " ".join(str(error).removeprefix(f"{place}: ").split())[:200]
            problem = f"{place}: not a checkpoint of this version, or a damaged one ({reason})"
            if before is None:
                raise ValueError(f"{problem}; {remedy}") from error
            warnings.warn(f"{problem}; going on from the one before, {before.name}", stacklevel=2)
        else:
            raise ValueError(f"{place}: the checkpoint of another run: {difference}; {remedy}")
    raise FileNotFoundError(f"{path}: expected a checkpoint, there is none")


def comparable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a resumed run must share."""
    values = {name: value for name, value in asdict(config).items() if name not in _PLACE_ONLY}
    return {**values, "data": {name: value for name, value in values["data"].items() if name not in _PLACES}}


@dataclass
class MetricsLog:
    """Log of a training: one JSON object a line, in the order of training, each with its position."""

    path: Path

    def keep_until(self, position: Position) -> None:
        """Drop the lines that a resumed run will write again."""
        files.write_lines(self.path, (json.dumps(line) for line in self.read() if tuple(line["position"]) <= position))

    def read(self) -> list[dict[str, Any]]:
        """Read all lines; a damaged one, such as half a line, is left out."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        lines = (_parsed(line) for line in content.split(b"\n"))
        return [line for line in lines if line is not None]

    def write(self, position: Position, values: dict[str, Any]) -> None:
        """Append one line."""
        files.append_lines(self.path, [json.dumps({**values, "position": position})])


_NUMBERS = ("epoch", "epochs", "step", "steps", "loss", "seconds")  # what the curves and the clock read of a line


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = files.parse_json(line)
        valid = {"kind", "stage"} <= values.keys() and all(isinstance(values[name], int | float) for name in _NUMBERS)
        valid = valid and [type(number) for number in values["position"]] == [int] * 3
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return values if valid else None


def _difference(old: object, new: object, name: str = "settings") -> str:
    """Tell the first difference between two nested values; empty where there is none."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        differences = (_difference(old[key], new[key], f"{name}.{key}") for key in old)
        return next((text for text in differences if text), "")
    if isinstance(old, dict) and isinstance(new, dict):
        return f"{name} has other settings: {', '.join(sorted(map(str, old.keys() ^ new.keys())))}"
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        differences = (_difference(a, b, f"{name}.{i}") for i, (a, b) in enumerate(zip(old, new, strict=True)))
        return next((text for text in differences if text), "")
    return "" if old == new else f"{name} was {old!r}, is {new!r}"
