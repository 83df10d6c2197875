"""Collection: a folder of features of many videos, in shards, written by extract and read by search.

    manifest.jsonl    what made the features; then a line for each shard: its file, the file's digest, its videos in the
                      order of its rows, and those that could not be read, with the reason; last, how many videos that
                      makes
    shard-00000.pt    Features.save of the videos of a shard
    broken.txt        the videos that could not be read, one a line, a tab before the reason; only if there are any

A shard is complete on disk before its line is written, and a line counts once it ends: a writer may be killed at any
time. Readers refuse a shard that is missing or damaged, and the next extraction makes it again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..checks import printable, require
from ..tokens import Features

FORMAT = 2
MANIFEST, BROKEN = "manifest.jsonl", "broken.txt"

_OURS = re.compile(r"shard-\d+\.pt|manifest\.jsonl|broken\.txt")


@dataclass(frozen=True)
class Shard:
    """Videos of a collection whose features share a file."""

    file: str | None
    """Name of the file of their features; None: no video could be read."""
    videos: list[str]
    """Paths, in the order of the rows."""
    broken: dict[str, str] = field(default_factory=dict[str, str])
    """Paths of videos that could not be read -> why."""
    sha256: str | None = None
    """Digest of the file."""


@dataclass
class Collection:
    """Features of many videos on disk."""

    folder: Path
    settings: dict[str, Any]
    """Settings that made the features."""
    shards: list[Shard] = field(default_factory=list[Shard])
    complete: bool = False
    """True where the last extraction came to its end."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Collection:
        """Open the collection in a folder.

        Raises:
            FileNotFoundError: no features there, or a shard is missing; it is named.
            ValueError: a damaged manifest; the line is named.
        """
        collection = cls._read(Path(folder))
        for shard in collection.shards:
            if shard.file is not None and not (collection.folder / shard.file).is_file():
                lost = f"the shard {shard.file} is missing ({len(shard.videos)} videos)"
                raise FileNotFoundError(f"{collection.folder}: {lost}; extract them again")
        return collection

    @classmethod
    def _read(cls, folder: Path) -> Collection:
        """Read the manifest, whether the shards are there or not."""
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"features: expected a folder that `extract` wrote, found no {path}")
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was being written
        collection = None
        for number, line in enumerate(lines, 1):
            try:
                values = files.parse_json(line)
                require(isinstance(values, dict), "line", "a JSON object", type(values).__name__)
                if collection is None:
                    collection = cls(folder, values)
                    continue
                collection.complete = values.keys() == {"videos"}
                if not collection.complete:
                    collection.shards.append(_shard(values, len(collection.shards)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not a line of a manifest of features: {error}") from error
        if collection is None or collection.settings.get("format") != FORMAT:
            raise ValueError(f"{path}:1: expected the settings of features of format {FORMAT}")
        return collection

    @classmethod
    def start(
        cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], resume: bool, model_path: str | None = None
    ) -> Collection:
        """Open a collection to add to: the one in the folder, if resume is set and there is one, or else an empty one.

        The caller holds the lock of the folder. Shards of the collection may be damaged (see `damaged`).

        Raises:
            FileNotFoundError, ValueError: see `open`; or the features there were made otherwise.
        """
        path, settings = Path(folder), json.loads(json.dumps({"format": FORMAT, **settings}))
        manifest = path / MANIFEST
        if resume and manifest.is_file() and b"\n" in manifest.read_bytes():
            collection = cls._read(path)
            collection.check(settings, f'pass resume=False to start anew, or another folder than "{path}"')
            complete, _, rest = manifest.read_bytes().rpartition(b"\n")
            if rest:
                files.write_bytes(manifest, complete + b"\n")
        else:
            collection = cls(path, {**settings, "model_path": model_path})
            # The manifest first: without it, the shards are nothing.
            for file in sorted(path.iterdir(), key=lambda file: file.name != MANIFEST):
                if not resume and _OURS.fullmatch(file.name):
                    file.unlink()
            collection._rewrite()
        collection._list_broken()
        return collection

    @property
    def model_path(self) -> str | None:
        """Path of the model that made the features, if it was noted."""
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
        """Check that the features were made with these settings; further settings of theirs do not matter.

        Raises:
            ValueError: they were not; the first difference is named.
        """
        for name, value in _flat(settings):
            was = dict(_flat(self.settings)).get(name)
            if was != value:
                raise ValueError(f"{self.folder}: features made otherwise: {name} was {was!r}, is {value!r}; {remedy}")

    def load(self, shard: Shard, device: torch.device | str = "cpu") -> Features:
        """Load the features of a shard that has a file.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: a damaged file, or one with other rows than the manifest says.
        """
        assert shard.file is not None
        features = Features.load(self.folder / shard.file, device, shard.sha256)
        if len(features) != len(shard.videos):
            raise ValueError(
                f"{self.folder / shard.file}: expected {len(shard.videos)} rows, as the manifest says, "
                f"got {len(features)}"
            )
        return features

    def damaged(self) -> list[Shard]:
        """List the shards whose file is missing, or is another than was written."""
        return [shard for shard in self.shards if shard.file is not None and not self._is_intact(shard)]

    def _is_intact(self, shard: Shard) -> bool:
        try:
            return files.digest(files.check_file(self.folder / str(shard.file))) == shard.sha256
        except (OSError, ValueError):
            return False

    def append(self, features: Features | None, videos: list[str], broken: dict[str, str]) -> None:
        """Write another shard; features None where no video could be read."""
        shard = self._save(len(self.shards), features, videos, broken)
        self._write(asdict(shard))
        self.shards.append(shard)
        self.complete = False
        if broken:
            self._list_broken()

    def repair(self, shard: Shard, features: Features | None, videos: list[str], broken: dict[str, str]) -> None:
        """Write a shard again; `videos` and `broken` are what became of its videos."""
        number = self.shards.index(shard)
        again = self._save(number, features, videos, {**shard.broken, **broken})
        if again != shard:  # else the manifest is right
            self.shards[number], self.complete = again, False
            self._rewrite()
            self._list_broken()

    def _save(self, number: int, features: Features | None, videos: list[str], broken: dict[str, str]) -> Shard:
        if features is None:
            return Shard(None, videos, broken)
        path = self.folder / _name(number)
        features.save(path)
        return Shard(path.name, videos, broken, files.digest(path))

    def finish(self) -> None:
        """Note in the manifest that nothing is missing."""
        if not self.complete:
            self._write({"videos": len(self.videos)})
            self.complete = True

    def _write(self, values: Mapping[str, Any]) -> None:
        files.append_lines(self.folder / MANIFEST, [json.dumps(values)])

    def _rewrite(self) -> None:
        lines = [self.settings, *map(asdict, self.shards)]
        files.write_lines(self.folder / MANIFEST, map(json.dumps, lines))

    def _list_broken(self) -> None:
        if self.broken:
            lines = [f"{printable(video)}\t{printable(reason)}" for video, reason in self.broken.items()]
            files.write_lines(self.folder / BROKEN, lines)


def _name(number: int) -> str:
    return f"shard-{number:05}.pt"


def _shard(values: dict[str, Any], number: int) -> Shard:
    """Read the shard of a line of the manifest, as `append` wrote it."""
    shard = Shard(**values)
    named = shard.file is not None
    require(shard.file in (None, _name(number)), "file", f"{_name(number)} or null", shard.file)
    require((type(shard.sha256) is str) == named, "sha256", "a digest, for a file", shard.sha256)
    paths = isinstance(shard.videos, list) and _texts(shard.videos) and bool(shard.videos) == named
    require(paths, "videos", "paths, for a file", shard.videos)
    reasons = isinstance(shard.broken, dict) and _texts(shard.broken.values())
    require(reasons, "broken", "reasons by path", shard.broken)
    return shard


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as dotted names and values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
