"""The manifest: the clips of a data set, their captions and their splits. JSON Lines in UTF-8, a clip to a line.

    {"video": "videos/a.mp4", "captions": ["a cat plays"], "split": "train", "start": 1.5, "end": 9.0, "id": "a"}

video       path of a file or of a folder of frames, relative to the manifest's folder or absolute
captions    at least one, none of them blank
split       "train", "val" or "test"
start, end  seconds, optional: the part of the video that is meant, 0 <= start < end
id          unique; optional, by default the video, followed by ":start-end" where there is either

Blank lines are skipped; a field that is not named here is an error. Half of a surrogate pair in a caption, which is
JSON but no text, becomes U+FFFD.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..checks import require, whole_text
from ..files import parse_json, write_bytes

SPLITS = ("train", "val", "test")
_FIELDS = ("video", "captions", "split", "start", "end", "id")


@dataclass(frozen=True)
class Clip:
    """A video, or a part of it, and its captions.

    Args:
        id: names the clip in reports and results.
        video: a file or a folder of frames; a relative path counts from the working directory.
        captions: at least one, none of them blank.
        split: "train", "val" or "test".
        start, end: seconds; None = from the first frame, to the last.

    Raises:
        ValueError: a field is out of range; its name, the expected and the given value are named.
    """

    id: str
    video: Path
    captions: tuple[str, ...]
    split: str
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        require(_is_text(self.id), "id", "a string that is not blank", self.id)
        is_path = (isinstance(self.video, Path) or _is_text(self.video)) and "\0" not in str(self.video)
        require(is_path, "video", "a path", self.video)
        is_list = isinstance(self.captions, list | tuple) and len(self.captions) > 0
        require(is_list, "captions", "a list of at least one string", self.captions)
        for i, caption in enumerate(self.captions):
            require(_is_text(caption), f"captions[{i}]", "a string that is not blank", caption)
        require(self.split in SPLITS, "split", f"one of {', '.join(SPLITS)}", self.split)
        for name in ("start", "end"):
            value = getattr(self, name)
            require(value is None or _is_seconds(value), name, "seconds, a finite number of at least 0", value)
        if self.end is not None:
            start = self.start or 0.0
            require(start < self.end, "end", f"seconds above the start ({start})", self.end)
        object.__setattr__(self, "video", Path(self.video))
        object.__setattr__(self, "captions", tuple(map(whole_text, self.captions)))


def load_manifest(path: str | os.PathLike[str], split: str | None = None) -> list[Clip]:
    """Load the clips of a manifest, in its order, with the paths of their videos absolute.

    Args:
        split: keep the clips of this split, of which there may be none; None = all.

    Raises:
        FileNotFoundError: there is no such manifest.
        ValueError: a line breaks the format at the head of this module; file, line and field are named.
    """
    manifest = Path(path)
    require(split is None or split in SPLITS, "split", f"one of {', '.join(SPLITS)} or None", split)
    if not manifest.is_file():
        raise FileNotFoundError(f"manifest: expected a file, got {manifest}")
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    with manifest.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                clip = _parse(line, manifest.absolute().parent)
                if (first := lines.setdefault(clip.id, number)) != number:
                    raise ValueError(f"id: expected a unique id, got {clip.id!r} as in line {first}")
            except ValueError as error:
                raise ValueError(f"{manifest}:{number}: {error}") from error
            clips.append(clip)
    require(len(clips) > 0, f"manifest {manifest}", "at least one clip", len(clips))
    return [clip for clip in clips if split in (None, clip.split)]


def write_manifest(path: str | os.PathLike[str], clips: Sequence[Clip]) -> None:
    """Write a manifest, whole or not at all.

    A video below the manifest's folder is written relative to it, so that the folder can be moved; any other is
    written absolute.

    Raises:
        ValueError: no clips, or an id twice.
        OSError: the file cannot be written.
    """
    manifest = Path(path)
    require(len(clips) > 0, "clips", "at least one", len(clips))
    ids: set[str] = set()
    for clip in clips:
        require(clip.id not in ids, "clips", "distinct ids", clip.id)
        ids.add(clip.id)
    lines = [_line(clip, manifest.absolute().parent) for clip in clips]
    write_bytes(manifest, b"".join(lines))


def path_in_manifest(video: Path, folder: Path) -> str:
    """Return the path of a video for a manifest in a folder: relative if the video lies below it, else absolute."""
    video = video.absolute()
    return video.relative_to(folder).as_posix() if video.is_relative_to(folder) else str(video)


def missing_videos(clips: Sequence[Clip]) -> list[Clip]:
    """List the clips whose video is neither a file nor a folder."""
    exists = {video: os.path.isfile(video) or os.path.isdir(video) for video in {clip.video for clip in clips}}
    return [clip for clip in clips if not exists[clip.video]]


def texts_and_targets(clips: Sequence[Clip]) -> tuple[list[str], Int[Tensor, "texts"]]:
    """List every caption of every clip, and the index of each caption's clip, for `retrieval_metrics`."""
    sentences = [caption for clip in clips for caption in clip.captions]
    return sentences, torch.tensor([i for i, clip in enumerate(clips) for _ in clip.captions], dtype=torch.long)


def _parse(line: bytes, folder: Path) -> Clip:
    try:
        record: Any = parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"expected a JSON object in UTF-8, got {line[:60]!r} ({error})") from error
    require(isinstance(record, dict), "line", "a JSON object", record)
    unknown = ", ".join(name for name in record if name not in _FIELDS)
    require(not unknown, "fields", f"none but {', '.join(_FIELDS)}", unknown)
    video, start, end = (record.get(name) for name in ("video", "start", "end"))
    default = video if start is end is None else f"{video}:{_seconds(start)}-{_seconds(end)}"
    return Clip(
        id=record.get("id", default if _is_text(video) else "?"),
        video=folder / video if _is_text(video) else video,
        captions=record.get("captions"),
        split=record.get("split"),
        start=start,
        end=end,
    )


def _line(clip: Clip, folder: Path) -> bytes:
    record = {
        "video": path_in_manifest(clip.video, folder),
        "captions": clip.captions,
        "split": clip.split,
        "start": clip.start,
        "end": clip.end,
        "id": clip.id,
    }
    text = json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False)
    # Characters that UTF-8 cannot hold, such as bytes of a file name that are not text, become JSON escapes.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _seconds(value: object) -> object:
    return "" if value is None else value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max  # neither NaN nor infinite
