"""The annotation files of five data sets, in the layouts of their authors and of CLIP4Clip, which X-CLIP reads.

A reader takes the folder of the files and a variant, and returns for each split the captions of each video by its id,
in the order of the files. A video that is listed without a caption has an empty list.
"""

from __future__ import annotations

import csv
import io
import pickle
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..files import PlainUnpickler, parse_json

T = TypeVar("T")
Captions = dict[str, list[str]]
"""video id -> its captions"""


@dataclass(frozen=True)
class DataSet:
    """The annotations of one data set.

    Args:
        read: (folder, variant) -> split -> captions by video.
        files: the names of the files that `read` needs; {} stands for the variant.
        protocol: the one of multigrain.metrics.retrieval_metrics under which results are published.
        variants: name -> the second at which clips end, None = at the video's end; the first is the default.
    """

    read: Callable[[Path, str], dict[str, Captions]]
    files: tuple[str, ...]
    protocol: str = "diagonal"
    variants: Mapping[str, float | None] = field(default_factory=lambda: {"": None})


def _msrvtt(folder: Path, variant: str) -> dict[str, Captions]:
    """MSR-VTT: about 20 captions to each of 9,000 or 7,010 training videos; the test is 1k-A, one to a video."""
    names = folder / f"MSRVTT_train.{variant}.csv"
    train = _listed(names, [video for (video,) in _columns(names, "video_id")])
    path = folder / "MSRVTT_data.json"
    for i, item in enumerate(_get(_json(path, dict), "sentences", list, str(path))):
        where = f"{path}: sentences[{i}]"
        if (video := _get(item, "video_id", str, where)) in train:
            train[video].append(_get(item, "caption", str, where))
    path = folder / "MSRVTT_JSFUSION_test.csv"
    rows = list(_columns(path, "video_id", "sentence"))
    test = _listed(path, [video for video, _ in rows])
    return {"train": train, "test": test | {video: [sentence] for video, sentence in rows}}


def _msvd(folder: Path, _: str) -> dict[str, Captions]:
    """MSVD: about 40 captions to a video, all of them in every split."""
    captions = _pickled_captions(folder / "raw-captions.pkl")
    splits = {split: _lines(folder / f"{split}_list.txt") for split in ("train", "val", "test")}
    return {split: {video: captions.get(video, []) for video in videos} for split, videos in splits.items()}


def _lsmdc(folder: Path, _: str) -> dict[str, Captions]:
    """LSMDC: clip id, start and end aligned, start and end extracted, sentence between tabs; clips may repeat."""
    splits: dict[str, Captions] = {}
    for split, name in _LSMDC.items():
        path, captions = folder / name, Captions()
        for number, line in enumerate(_text(path).split("\n"), 1):
            values = line.strip().split("\t")
            if len(values) == 6:
                captions.setdefault(values[0], []).append(values[-1])
            elif line.strip():
                raise ValueError(f"{path}:{number}: expected 6 columns between tabs, got {len(values)}")
        splits[split] = captions
    if several := [video for video, sentences in splits["test"].items() if len(sentences) > 1]:
        raise ValueError(f"{folder / _LSMDC['test']}: expected every clip once, got {several[0]!r} more than once")
    return splits


def _didemo(folder: Path, _: str) -> dict[str, Captions]:
    """DiDeMo: one paragraph to a video, all descriptions in the order of the file, whatever moments they describe."""
    splits: dict[str, Captions] = {}
    for split in ("train", "val", "test"):
        descriptions = _lines(folder / f"{split}_list.txt")
        path = folder / f"{split}_data.json"
        for i, item in enumerate(_json(path, list)):
            if (video := _get(item, "video", str, f"{path}: [{i}]")) in descriptions:
                descriptions[video].append(_get(item, "description", str, f"{path}: [{i}]"))
        splits[split] = _paragraphs(descriptions)
    return splits


def _activitynet(folder: Path, _: str) -> dict[str, Captions]:
    """ActivityNet: one paragraph of all sentences to a video; the test is val_1, the first annotation of two."""
    splits: dict[str, Captions] = {}
    for split, name, ids in (("train", "train.json", "train_ids.json"), ("test", "val_1.json", "val_ids.json")):
        sentences = _listed(folder / ids, _strings(_json(folder / ids, list), str(folder / ids)))
        path = folder / name
        for video, item in _json(path, dict).items():
            if video in sentences:
                where = f"{path}: {video}"
                sentences[video] = _strings(_get(item, "sentences", list, where), f"{where}: sentences")
        splits[split] = _paragraphs(sentences)
    return splits


_LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")
_LSMDC = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}

SOURCES = {
    "msrvtt": DataSet(
        _msrvtt,
        ("MSRVTT_train.{}.csv", "MSRVTT_JSFUSION_test.csv", "MSRVTT_data.json"),
        variants={"9k": None, "7k": None},
    ),
    "msvd": DataSet(_msvd, (*_LISTS, "raw-captions.pkl"), protocol="group_max"),
    "lsmdc": DataSet(_lsmdc, tuple(_LSMDC.values())),
    # Descriptions were written of the first 30 s. CLIP4Clip and X-CLIP stop at 31 s, past what annotators saw.
    "didemo": DataSet(
        _didemo,
        (*_LISTS, "train_data.json", "val_data.json", "test_data.json"),
        variants={"30s": 30.0, "31s": 31.0},
    ),
    "activitynet": DataSet(_activitynet, ("train.json", "val_1.json", "train_ids.json", "val_ids.json")),
}


# A damaged pickle raises any of these.
_DAMAGED = (
    pickle.UnpicklingError, AttributeError, EOFError, LookupError, MemoryError, OverflowError, TypeError, ValueError,
)  # fmt: skip


def _pickled_captions(path: Path) -> Captions:
    expected = f"{path}: expected a pickled dict: video id -> lists of words"
    try:
        captions: Any = PlainUnpickler(path.read_bytes(), "utf-8").load()
    except _DAMAGED as error:
        refused = str(error) or type(error).__name__
        raise ValueError(f"{expected}, of builtin types alone; refused: {refused}") from error
    if not isinstance(captions, dict):
        raise ValueError(f"{expected}, got {type(captions).__name__}")
    for video, sentences in captions.items():
        fits = isinstance(video, str) and isinstance(sentences, list | tuple)
        if not fits or not all(isinstance(words, list | tuple) for words in sentences):
            raise ValueError(f"{expected}, got {reprlib.repr(video)}: {reprlib.repr(sentences)}")
    return {
        video: [" ".join(_strings(words, f"{path}: {video}")) for words in sentences]
        for video, sentences in captions.items()
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from error


def _columns(path: Path, *names: str) -> Iterator[list[str]]:
    """Yield the values of these columns, row by row, of a CSV file with a head."""
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    head = list(rows.fieldnames or ())
    for name in names:
        if name not in head:
            raise ValueError(f"{path}: expected a column {name!r}, got {', '.join(head) or 'none'}")
    for row in _readable(rows, path):
        # DictReader fills short rows with None and puts surplus values under the key None.
        if None in row or None in row.values():
            raise ValueError(f"{path}:{rows.line_num}: expected {len(head)} columns, got more or fewer")
        yield [row[name] for name in names]


def _readable(rows: csv.DictReader[str], path: Path) -> Iterator[dict[Any, Any]]:
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: expected comma-separated values, got {error}") from error


def _lines(path: Path) -> Captions:
    """Read ids, one to a line, and give each an empty list of captions."""
    return _listed(path, [line.strip() for line in _text(path).split("\n") if line.strip()])


def _listed(path: Path, videos: Sequence[str]) -> Captions:
    """Give each video an empty list of captions; refuse a video that is listed twice."""
    if repeated := [video for video, count in Counter(videos).items() if count > 1]:
        raise ValueError(f"{path}: expected every video once, got {repeated[0]!r} more than once")
    return {video: [] for video in videos}


def _paragraphs(sentences: Captions) -> Captions:
    return {video: [" ".join(parts)] if parts else [] for video, parts in sentences.items()}


def _json(path: Path, kind: type[T]) -> T:
    try:
        value = parse_json(_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def _get(item: Any, name: str, kind: type[T], where: str) -> T:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected a field {name!r} ({kind.__name__}), got {str(item)[:80]}")
    return value


def _strings(values: Iterable[Any], where: str) -> list[str]:
    strings = list(values)
    for value in strings:
        if not isinstance(value, str):
            raise ValueError(f"{where}: expected strings, got {value!r}")
    return strings
