"""Files of an evaluation: metrics.json, and rankings.jsonl with the results of each query."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..distributed import world
from ..distributed.collectives import all_gather_object, is_rank_zero
from ..metrics import ranks
from . import tables
from .merged import video_ranks
from .retrieval import Evaluation

RANKINGS = "rankings.jsonl"
RANKED = 10  # results of each query in rankings.jsonl
_SORTED = 1 << 20  # scores that are sorted at a time


def write_results(
    out: Path, evaluation: Evaluation, protocol: str, texts: Sequence[str], videos: Sequence[str], **about: Any
) -> None:
    """Write the two files of an evaluation whose texts and videos have these names; metrics.json has `about` too.

    Collective; rank zero writes.
    """
    count = sum(all_gather_object(len(texts)))
    lines = rankings(evaluation, texts, videos)
    if not is_rank_zero():
        return
    values = {
        "metrics": files.rounded(evaluation.metrics),
        "chance": files.rounded(tables.chance(len(videos), protocol)),
        "texts": count,
        "candidates": len(videos),
        "broken": evaluation.broken,
        "hubness": None if evaluation.hubness is None else {"correction": evaluation.hubness, "transductive": True},
        "mean_recall_at_1": files.rounded(tables.recall_at_1(evaluation.metrics["all"])),
        **about,
        "environment": environment(),
    }
    ranked = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    values["sha256"] = {RANKINGS: hashlib.sha256(ranked).hexdigest()}  # metrics.json comes last: they belong together
    written = {RANKINGS: ranked, "metrics.json": json.dumps(values, indent=2).encode() + b"\n"}
    files.write_together(files.open_folder(out), written)


def rankings(
    evaluation: Evaluation, texts: Sequence[str], videos: Sequence[str], k: int = RANKED
) -> Iterator[dict[str, Any]]:
    """Yield a line for each text and then for each video: its name, the rank of its best own item, and its k best.

    An item is ranked among all items of the other side; for a video, as under "all_captions".

    Collective: each rank ranks its texts, and finds the k best of them for each video.

    Args:
        texts, videos: the names of those of the evaluation.
    """
    scores, targets = evaluation.scores["all"], evaluation.targets
    text_ranks = ranks(scores, targets) if texts else targets.double()
    asked = all_gather_object((evaluation.texts, texts, text_ranks, targets, _best(scores, k)))
    scores = scores if evaluation.reverse is None else evaluation.reverse
    best, columns = _best(scores.T, k)
    own = targets[columns] == torch.arange(len(videos))[:, None]
    names = [[texts[int(i)] for i in row] for row in columns]
    return _lines(videos, k, asked, video_ranks(scores, targets), all_gather_object((best, own, names)))


def _lines(
    videos: Sequence[str],
    k: int,
    asked: list[tuple[list[int], Sequence[str], Tensor, Tensor, tuple[Tensor, Tensor]]],
    video_ranks: Tensor,
    found: list[tuple[Tensor, Tensor, list[list[str]]]],
) -> Iterator[dict[str, Any]]:
    """Make the lines from the findings of each rank, one at a time: all together they need many times the room."""
    order = sorted((row, rank, i) for rank, (rows, *_) in enumerate(asked) for i, row in enumerate(rows))
    for _, rank, i in order:
        _, texts, text_ranks, targets, (best, columns) = asked[rank]
        items = [
            (score, videos[int(column)], column == int(targets[i]))
            for score, column in zip(best[i].tolist(), columns[i].tolist(), strict=True)
        ]
        yield _line("t2v", texts[i], float(text_ranks[i]), items)
    for j, video in enumerate(videos):
        parts = (zip(best[j].tolist(), names[j], own[j].tolist(), strict=True) for best, own, names in found)
        items = sorted(chain(*parts), key=itemgetter(0), reverse=True)[:k]
        yield _line("v2t", video, float(video_ranks[j]), items)


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best of each row, and their columns; some rows at a time, since topk copies them."""
    k = min(k, scores.shape[1])
    parts = [part.topk(k) for part in scores.split(max(1, _SORTED // max(1, scores.shape[1])))]
    best, columns = zip(*parts, strict=True)
    return torch.cat(best), torch.cat(columns)


def _line(direction: str, query: str, rank: float, items: Sequence[tuple[float, str, bool]]) -> dict[str, Any]:
    found = [{"item": item, "score": round(score, 6), "own": own} for score, item, own in items]
    return {"direction": direction, "query": query, "rank": rank, "found": found}


def environment() -> dict[str, Any]:
    """Describe the machine, the versions and the command, on which figures depend beside the settings."""
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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
