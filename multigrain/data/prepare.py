"""Write the manifest of a published data set from its annotation files and a folder of videos (see manifest.py).

    report = prepare("msrvtt", "annotations", "videos", "msrvtt.jsonl")
    print(report)

Validation is never the test set. MSR-VTT and ActivityNet come without a validation split of their own, and CLIP4Clip
and X-CLIP choose the best epoch on the test; here it is cut from the training videos instead.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..checks import printable
from ..files import lock, open_folder
from .annotations import SOURCES, Captions, DataSet
from .manifest import SPLITS, Clip, write_manifest
from .video.files import VIDEO_SUFFIXES

VALIDATION = 500
"""Training videos that become the validation of a data set that has none."""
_NAMED = 10  # of the videos left out, in the table
_ROW = "{:<6}{:>8}{:>10}{:>9}{:>13}"


@dataclass(frozen=True)
class SplitReport:
    """The clips of a split, and the videos that were left out."""

    clips: int
    captions: int
    missing: tuple[str, ...]
    """listed and captioned, without a file: left out"""
    uncaptioned: tuple[str, ...]
    """listed without a caption: left out"""


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`; str() is a table."""

    name: str
    out: Path
    splits: dict[str, SplitReport]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.out}", _ROW.format("split", "clips", "captions", "missing", "uncaptioned")]
        for split, part in self.splits.items():
            lines.append(_ROW.format(split, part.clips, part.captions, len(part.missing), len(part.uncaptioned)))
        for split, part in self.splits.items():
            for what, videos in (("without a file", part.missing), ("without a caption", part.uncaptioned)):
                more = f" and {len(videos) - _NAMED} more" if len(videos) > _NAMED else ""
                lines += [f"{split}, {what}: {', '.join(videos[:_NAMED])}{more}"] if videos else []
        return "\n".join(map(printable, lines))


def prepare(
    name: str,
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    val: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    strict: bool = False,
) -> PrepareReport:
    """Write the manifest of a data set. Blank captions are dropped, and of spaces between words one is kept.

    Args:
        name: "msrvtt", "msvd", "lsmdc", "didemo" or "activitynet".
        annotations: folder of its annotation files (see annotations.SOURCES).
        videos: folder of its videos, in any subfolders: a file is named by the video's id with any of `VIDEO_SUFFIXES`
            added or in place of its own; in ActivityNet, the "v_" before the id may be absent. None is opened.
        out: the manifest; its folder is made, a file of that name replaced.
        val: for MSR-VTT and ActivityNet, how many training videos become the validation (default `VALIDATION`;
            0 = none). The choice depends on the seed and the annotations alone, not on the files that are there.
        seed: of that choice.
        variant: "9k" (default) or "7k" training videos of MSR-VTT; clips of DiDeMo end at "30s" (default), which is
            as far as its annotators saw, or at "31s", as in CLIP4Clip and X-CLIP.
        strict: raise on the first video without a file, instead of leaving it out and reporting it.

    Raises:
        FileNotFoundError: an annotation file or the folder of videos is absent, or (strict) a video is.
        OSError: `out` cannot be written, or another process is at it.
        ValueError: annotations that are not in their format, a video in two splits or in two files, no file for any
            video, or an argument out of range; each is named.
    """
    variants = _data_set(name).variants
    variant = variant if variant is not None else next(iter(variants))
    if variant not in variants:
        choices = " or ".join(repr(choice) for choice in variants if choice) or None
        raise ValueError(f"variant: expected {choices} for {name}, got {variant!r}")
    manifest = Path(out)
    with lock(open_folder(manifest.parent, "out") / manifest.name):
        splits = _read_splits(name, _folder("annotations", annotations), variant)
        if "val" not in splits:
            splits["train"], splits["val"] = _cut(splits["train"], VALIDATION if val is None else val, seed)
        elif val is not None:
            raise ValueError(f"val: expected None, because {name} has a validation split of its own; got {val!r}")
        index = _index(_folder("videos", videos))
        clips: list[Clip] = []
        reports: dict[str, SplitReport] = {}
        for split in SPLITS:
            found, reports[split] = _match(splits[split], split, index, variants[variant])
            if strict and (missing := reports[split].missing):
                absent = f"{missing[0]!r} ({split})"
                raise FileNotFoundError(f"videos: expected a file for {absent} under {videos}, got none")
            clips += found
        if not clips:
            raise ValueError(
                f"videos: expected files named by ids such as {next(iter(splits['test']), '')!r} under {videos}, "
                f"got names such as {next(iter(index))!r}"
            )
        write_manifest(manifest, clips)
        return PrepareReport(f"{name} {variant}".strip(), manifest, reports)


def protocol_of(name: str) -> str:
    """Return the protocol of `retrieval_metrics` under which results on the test of a data set are published."""
    return _data_set(name).protocol


def _data_set(name: str) -> DataSet:
    if name not in SOURCES:
        raise ValueError(f"name: expected one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]


def _folder(name: str, path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{name}: expected a folder, got {path}")
    return Path(path)


def _read_splits(name: str, folder: Path, variant: str) -> dict[str, Captions]:
    """Read the splits of a data set: no video in two of them, one space between words, no blank captions."""
    files = [file.format(variant) for file in SOURCES[name].files]
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"annotations: expected {', '.join(files)} in {folder} for {name}; absent: {', '.join(absent)}"
        )
    splits = SOURCES[name].read(folder, variant)
    for one, other in combinations(splits, 2):
        if shared := sorted(splits[one].keys() & splits[other].keys()):
            raise ValueError(
                f"annotations: expected no video in two splits, got {len(shared)} in both {one} and {other}, "
                f"such as {shared[0]!r}"
            )
    return {
        split: {
            video: [clean for sentence in sentences if (clean := " ".join(sentence.split()))]
            for video, sentences in captions.items()
        }
        for split, captions in splits.items()
    }


def _cut(train: Captions, val: int, seed: int) -> tuple[Captions, Captions]:
    """Cut `val` videos from the training, ranked by a hash: they stay the same when others come or go."""
    captioned = [video for video, captions in train.items() if captions]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed: expected an integer, got {seed!r}")
    if isinstance(val, bool) or not isinstance(val, int) or not 0 <= val < max(len(captioned), 1):
        raise ValueError(f"val: expected 0 to {len(captioned) - 1} of the training videos, got {val!r}")

    def rank(video: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{video}".encode(errors="surrogatepass")).digest()

    chosen = set(sorted(captioned, key=rank)[:val])
    return (
        {video: captions for video, captions in train.items() if video not in chosen},
        {video: captions for video, captions in train.items() if video in chosen},
    )


def _match(
    captions: Captions, split: str, index: dict[str, list[Path]], end: float | None
) -> tuple[list[Clip], SplitReport]:
    clips, missing, uncaptioned = list[Clip](), list[str](), list[str]()
    for video, sentences in captions.items():
        if not sentences:
            uncaptioned.append(video)
        elif (path := _find(video, index)) is None:
            missing.append(video)
        else:
            clips.append(Clip(video, path, tuple(sentences), split, end=end))
    count = sum(len(clip.captions) for clip in clips)
    return clips, SplitReport(len(clips), count, tuple(missing), tuple(uncaptioned))


def _index(root: Path) -> dict[str, list[Path]]:
    """Find the video files below a folder, by name with and without suffix; links are followed, each folder once."""
    index: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in VIDEO_SUFFIXES:
                path = Path(folder, file)
                for name in (file, stem):
                    index.setdefault(name, []).append(path)
    if not index:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        raise FileNotFoundError(f"videos: expected files ending in {suffixes} under {root}, got none")
    return index


def _raise(error: OSError) -> None:
    raise error


def _find(video: str, index: dict[str, list[Path]]) -> Path | None:
    """Find the file of a video; None where there is none."""
    stem, suffix = os.path.splitext(video)
    names = (video, stem if suffix.lower() in VIDEO_SUFFIXES else video, video.removeprefix("v_"))
    paths = next((index[name] for name in names if name in index), [])
    if len(paths) > 1:
        raise ValueError(f"videos: expected one file for {video!r}, got {paths[0]} and {paths[1]}")
    return paths[0] if paths else None
