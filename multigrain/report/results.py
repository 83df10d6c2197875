"""The files of an evaluation: metrics.json, and rankings.jsonl with what was found for each query."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..checks import printable
from ..metrics import ranks
from ..training import Evaluation, checkpoint, parallel
from ..training.merging import video_ranks
from . import tables
from .console import print_table

RANKINGS = "rankings.jsonl"
RANKED = 10  # results of each query in rankings.jsonl


def write_report(
    out: Path, evaluation: Evaluation, protocol: str, texts: Sequence[str], videos: Sequence[str], **about: Any
) -> None:
    """Print the table of an evaluation of texts and videos of these names; write the two files, with `about` in the
    first. Collective; rank 0 prints and writes.
    """
    count = sum(parallel.exchange(len(texts)))
    lines = list(rankings(evaluation, texts, videos))
    if not parallel.first():
        return
    print_table(evaluation.metrics, len(videos), tables.title(count, len(videos), evaluation.hubness))
    if protocol == "diagonal":
        print(tables.verdict(evaluation.metrics, len(videos)))
    else:
        print(f"Protocol {protocol}: see multigrain.retrieval_metrics")
    if evaluation.broken:
        print(f"multigrain: {len(evaluation.broken)} videos could not be read and were left out:", file=sys.stderr)
        print(*map(printable, evaluation.broken), sep="\n", file=sys.stderr)
    values = {
        "metrics": checkpoint.rounded(evaluation.metrics),
        "chance": checkpoint.rounded(tables.chance(len(videos), protocol)),
        "texts": count,
        "candidates": len(videos),
        "broken": evaluation.broken,
        "hubness": None if evaluation.hubness is None else {"correction": evaluation.hubness, "transductive": True},
        "mean_recall_at_1": checkpoint.rounded(tables.recall_at_1(evaluation.metrics["all"])),
        **about,
        "environment": checkpoint.environment(),
    }
    ranked = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    values["sha256"] = {RANKINGS: hashlib.sha256(ranked).hexdigest()}  # metrics.json comes last: they belong together
    written = {RANKINGS: ranked, "metrics.json": json.dumps(values, indent=2).encode() + b"\n"}
    files.write_together(files.open_folder(out), written)


def rankings(
    evaluation: Evaluation, texts: Sequence[str], videos: Sequence[str], k: int = RANKED
) -> Iterator[dict[str, Any]]:
    """For each text and then for each video: itself, the rank of its best own item among all items of the other side
    (for a video, as under "all_captions"), and its k best with their scores.

    Collective: each rank ranks its texts, and finds the k best of them for each video.

    Args:
        texts, videos: the names of those of the evaluation.
    """
    scores, targets = evaluation.scores["all"], evaluation.targets
    own = targets[:, None] == torch.arange(len(videos))
    by_text = list(zip(evaluation.texts, _best(scores, own, k), strict=True)) if texts else []
    text_ranks = ranks(scores, targets).tolist() if texts else []
    asked = [
        (row, _line("t2v", text, rank, best, videos))
        for (row, best), text, rank in zip(by_text, texts, text_ranks, strict=True)
    ]
    yield from (line for _, line in sorted(chain(*parallel.exchange(asked)), key=itemgetter(0)))
    scores = scores if evaluation.reverse is None else evaluation.reverse
    by_video = [[(score, texts[i], mine) for score, i, mine in best] for best in _best(scores.T, own.T, k)]
    found = parallel.exchange(by_video)
    for video, rank, *parts in zip(videos, video_ranks(scores, targets).tolist(), *found, strict=True):
        best = sorted(chain(*parts), key=itemgetter(0), reverse=True)[:k]
        yield _line(
            "v2t", video, rank, [(score, i, mine) for i, (score, _, mine) in enumerate(best)], [b[1] for b in best]
        )


def _best(scores: Tensor, own: Tensor, k: int) -> list[list[tuple[float, int, bool]]]:
    """Of each row, the k best columns as (score, column, whether it is its own), best first."""
    best = scores.topk(min(k, scores.shape[1]))
    mine = own.gather(1, best.indices)
    return [
        list(zip(*row, strict=True))
        for row in zip(best.values.tolist(), best.indices.tolist(), mine.tolist(), strict=True)
    ]


def _line(
    direction: str, query: str, rank: float, best: Sequence[tuple[float, int, bool]], candidates: Sequence[str]
) -> dict[str, Any]:
    found = [{"item": candidates[i], "score": round(score, 6), "own": own} for score, i, own in best]
    return {"direction": direction, "query": query, "rank": rank, "found": found}
