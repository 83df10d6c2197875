"""Files of a run: the checkpoint, the metrics and what it ran on. Everything is written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..distributed import world
from .config import TrainConfig

# Settings that may change between a run and its resumption.
_PLACE_ONLY, _PLACES = ("device", "checkpoint_seconds", "keep", "workers"), ("cache", "manifest")


class Position(NamedTuple):
    """The next step to take: stage and epoch from 0, and how many steps of that epoch are done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


def open_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # a process of the same id on another machine may have been faster
    except OSError as error:
        raise OSError(f"out_dir: expected a folder that can be written to, got {folder}: {error}") from error
    return folder


def write_json(path: Path, values: object) -> None:
    """Indented JSON, in place of what was there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def rounded(values: Any) -> Any:
    """Nested values with every float to six decimals: a share of a million is told apart, 64.70000000000001 is not."""
    if isinstance(values, Mapping):
        return {name: rounded(value) for name, value in values.items()}
    return round(values, 6) if isinstance(values, float) else values


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """One line each, in place of what was there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    partial.replace(path)


def add_lines(path: Path, lines: Sequence[str]) -> None:
    """Append those lines that the file does not have."""
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if new := [line for line in lines if line not in known]:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in new)


def save_checkpoint(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Tensors and plain values, in place of the checkpoint before.

    Of the earlier ones, keep - 1 stay: checkpoint.1.pt is the one before checkpoint.pt, and so on. Whenever the process
    is killed, checkpoint.pt is whole.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, partial)
    for age in range(keep - 1, 0, -1):
        younger = _earlier(path, age - 1)
        if younger.is_file():
            linked = path.with_name(f"{path.name}.{os.getpid()}.link.tmp")
            try:
                os.link(younger, linked)
            except OSError:  # a file system without links
                shutil.copyfile(younger, linked)
            linked.replace(_earlier(path, age))
    partial.replace(path)


def remove_checkpoints(path: Path) -> None:
    """The checkpoint and the earlier ones."""
    path.unlink(missing_ok=True)
    for earlier in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        earlier.unlink()


def remove_partial(path: Path) -> None:
    """What processes left that were killed while they wrote a file."""
    for partial in path.parent.glob(f"{path.name}.*.tmp"):
        partial.unlink(missing_ok=True)


def _earlier(path: Path, age: int) -> Path:
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What save_checkpoint wrote; nothing but tensors and plain values is unpickled.

    Raises:
        ValueError: the file is damaged, or of a run with other settings or data (the first difference is named).
    """
    remedy = "pass resume=False to start anew, or another out_dir"
    if (before := _earlier(path, 1)).is_file():
        remedy += f", or put {before.name} in its place"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved: dict[str, Any] = json.loads(state["settings"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a checkpoint of this version, or a damaged one; {remedy}") from error
    if difference := _difference(saved, json.loads(json.dumps(settings))):
        raise ValueError(f"{path}: the checkpoint of another run: {difference}; {remedy}")
    return state


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    values = {name: value for name, value in asdict(config).items() if name not in _PLACE_ONLY}
    return {**values, "data": {name: value for name, value in values["data"].items() if name not in _PLACES}}


def environment() -> dict[str, Any]:
    """What the figures of a run depend on beside its settings."""
    versions = {name: _version(name) for name in ("multigrain", "torch", "timm", "minigrid", "numpy")}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": world()[1],
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


@dataclass
class MetricsLog:
    """metrics.jsonl: one JSON object a line, in the order of training, each with its position."""

    path: Path

    def keep_until(self, position: Position) -> None:
        """Drop the lines that a resumed run will write again."""
        write_lines(self.path, (json.dumps(line) for line in self.read() if tuple(line["position"]) <= position))

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that was not written to its end is left out."""
        lines: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def write(self, position: Position, values: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "position": position}) + "\n")


def _difference(old: object, new: object, name: str = "settings") -> str:
    """The first difference between two nested values in words; empty where there is none."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        differences = (_difference(old[key], new[key], f"{name}.{key}") for key in old)
        return next((text for text in differences if text), "")
    if isinstance(old, dict) and isinstance(new, dict):
        return f"{name} has other settings: {', '.join(sorted(map(str, old.keys() ^ new.keys())))}"
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        differences = (_difference(a, b, f"{name}.{i}") for i, (a, b) in enumerate(zip(old, new, strict=True)))
        return next((text for text in differences if text), "")
    return "" if old == new else f"{name} was {old!r}, is {new!r}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
