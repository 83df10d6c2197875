"""A folder of features of many videos, in shards: written by extract, read by search.

    manifest.jsonl    what made the features; then a line for each shard: its file, its videos in the order of its
                      rows, and those that could not be read, with the reason; last, how many videos that makes
    shard-00000.pt    Features.save of the videos of a shard
    broken.txt        the videos that could not be read, one a line, a tab before the reason; only if there are any

A shard is written, whole, before its line, and a line counts once it ends: a writer may be killed at any time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .tokens import Features

FORMAT = 1
MANIFEST, BROKEN = "manifest.jsonl", "broken.txt"

_OURS = re.compile(r"shard-\d+\.pt(\.\d+\.tmp)?|(manifest\.jsonl|broken\.txt)(\.tmp)?")


@dataclass(frozen=True)
class Shard:
    """Some videos of a collection."""

    file: str | None
    """name of the file of their features; None: none of them could be read"""
    videos: list[str]
    """paths, in the order of the rows"""
    broken: dict[str, str] = field(default_factory=dict[str, str])
    """paths of those that could not be read -> why"""


@dataclass
class Collection:
    """The features of many videos on disk."""

    folder: Path
    settings: dict[str, Any]
    """what made the features"""
    shards: list[Shard] = field(default_factory=list[Shard])
    complete: bool = False
    """whether the last extraction came to its end"""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Collection:
        """What lies in a folder.

        Raises:
            FileNotFoundError: no features there, or a shard is missing; it is named.
            ValueError: a damaged manifest; the line is named.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"features: expected a folder that `extract` wrote, found no {path}")
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was being written
        collection = None
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                if collection is None:
                    collection = cls(Path(folder), dict(values))
                    continue
                collection.complete = "videos" in values and "file" not in values
                if not collection.complete:
                    collection.shards.append(Shard(**values))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not a line of a manifest of features: {error}") from error
        if collection is None or collection.settings.get("format") != FORMAT:
            raise ValueError(f"{path}:1: expected the settings of features of format {FORMAT}")
        for shard in collection.shards:
            if shard.file is not None and not (collection.folder / shard.file).is_file():
                raise FileNotFoundError(f"{path}: the shard {shard.file} is missing ({len(shard.videos)} videos)")
        return collection

    @classmethod
    def start(
        cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], resume: bool, model_path: str | None = None
    ) -> Collection:
        """A collection to add to: the one in the folder, if resume is set and there is one, or else an empty one.

        Raises:
            FileNotFoundError, ValueError: see `open`; or the features there were made otherwise.
        """
        path, settings = Path(folder), json.loads(json.dumps({"format": FORMAT, **settings}))
        path.mkdir(parents=True, exist_ok=True)
        manifest = path / MANIFEST
        if resume and manifest.is_file() and b"\n" in manifest.read_bytes():
            collection = cls.open(path)
            collection.check(settings, f'pass resume=False to start anew, or another folder than "{path}"')
            whole, _, rest = manifest.read_bytes().rpartition(b"\n")
            if rest:
                _replace(manifest, whole + b"\n")
        else:
            collection = cls(path, {**settings, "model_path": model_path})
            # The manifest first: without it, the shards are nothing.
            for file in sorted(path.iterdir(), key=lambda file: file.name != MANIFEST):
                if not resume and _OURS.fullmatch(file.name):
                    file.unlink()
            _replace(manifest, _line(collection.settings))
        for file in path.iterdir():
            if file.suffix == ".tmp" and _OURS.fullmatch(file.name):
                file.unlink()
        collection._list_broken()
        return collection

    @property
    def model_path(self) -> str | None:
        """Where the model lay that made the features, if they were told."""
        return self.settings.get("model_path")

    @property
    def videos(self) -> list[str]:
        """Paths of all videos with features, in order."""
        return [video for shard in self.shards for video in shard.videos]

    @property
    def broken(self) -> dict[str, str]:
        """Paths of the videos that could not be read -> why."""
        return {video: reason for shard in self.shards for video, reason in shard.broken.items()}

    def check(self, settings: Mapping[str, Any], remedy: str) -> None:
        """The features were made with these settings (others of theirs do not matter).

        Raises:
            ValueError: they were not; the first difference is named.
        """
        for name, value in _flat(settings):
            was = dict(_flat(self.settings)).get(name)
            if was != value:
                raise ValueError(f"{self.folder}: features made otherwise: {name} was {was!r}, is {value!r}; {remedy}")

    def load(self, shard: Shard, device: torch.device | str = "cpu") -> Features:
        """The features of a shard that has a file.

        Raises:
            ValueError: a damaged file, or one with other rows than the manifest says.
        """
        assert shard.file is not None
        features = Features.load(self.folder / shard.file, device)
        if len(features) != len(shard.videos):
            raise ValueError(
                f"{self.folder / shard.file}: expected {len(shard.videos)} rows, as the manifest says, "
                f"got {len(features)}"
            )
        return features

    def append(self, features: Features | None, videos: list[str], broken: dict[str, str]) -> None:
        """Write another shard; features None where no video could be read."""
        file = None if features is None else f"shard-{len(self.shards):05}.pt"
        if features is not None and file is not None:
            features.save(self.folder / file)
        shard = Shard(file, videos, broken)
        self._write(asdict(shard))
        self.shards.append(shard)
        self.complete = False
        if broken:
            self._list_broken()

    def finish(self) -> None:
        """Say that nothing is missing."""
        if not self.complete:
            self._write({"videos": len(self.videos)})
            self.complete = True

    def _write(self, values: Mapping[str, Any]) -> None:
        with (self.folder / MANIFEST).open("ab") as file:
            file.write(_line(values))
            file.flush()
            os.fsync(file.fileno())

    def _list_broken(self) -> None:
        if self.broken:
            lines = [f"{video}\t{reason}\n" for video, reason in self.broken.items()]
            _replace(self.folder / BROKEN, "".join(lines).encode(errors="surrogateescape"))


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_bytes(content)
    partial.replace(path)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
