"""What a page says of scores: the table, the ranks, the best and the worst queries, the hubs, and all queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation import tables
from ..metrics import RetrievalMetrics, ranks, ranks_of_videos
from ..training import Evaluation
from . import examples
from .content import Chart, Hub, Hubs, Page
from .hubs import FIRST, distribution, hubness
from .images import strip
from .subject import Subject

RANKS = (1, 5, 10, 20, 50, 100)  # upper ends of the bins of ranks
COUNTS = (0, 2, 5, 10, 20, 50, 100)  # and of how many queries have a video among their first
SHOWN = 5  # hubs
LISTED = 5000  # queries in the list

_TABLE = (
    "R@K: per cent of the queries whose own item is among the first K; MdR, MnR: median and mean rank (1 is best), "
    "ties counted as a random order would in expectation."
)
_GRAINS = (
    " Each grain alone is a part of the model that was trained on their sum, which says little about what it could do "
    "if it were trained alone."
)
_CHANCE = " Chance is a random order."
_CORRECTED = "The scores were corrected by {} (transductive: by those of the other queries of the test)."
_NO_MAPS = "There are no heat maps: no words and frames whose similarities would add up to these scores."


def summarize(subject: Subject, evaluation: Evaluation, lead: Sequence[str] = (), **more: Any) -> Page:
    """The page of an evaluation, with more of what a `Page` has."""
    metrics, videos = evaluation.metrics, len(subject.videos)
    rows = tables.rows(metrics, videos)
    note = _TABLE + _GRAINS * (len(metrics) > 2) + _CHANCE * any(row.kind == "chance" for row in rows)
    said = [_CORRECTED.format(evaluation.hubness)] if evaluation.hubness else []
    said += [_NO_MAPS] if subject.picture is None else []
    listed = examples.queries(subject, LISTED)
    return Page(
        verdict=_verdict(evaluation, len(subject.texts), videos),
        lead=[*lead, *said],
        rows=rows,
        table_note=note,
        charts=_ranks(subject, metrics["all"]),
        examples=examples.choose(subject),
        hubs=_hubs(subject) if videos > FIRST else None,  # of fewer, each query finds all
        queries=listed,
        videos=subject.videos,
        **more,
    )


def _verdict(evaluation: Evaluation, texts: int, videos: int) -> str:
    """The result in one sentence."""
    found = evaluation.metrics["all"]
    if found["protocol"] == "diagonal":
        return tables.verdict(evaluation.metrics, videos)
    recalls = ", ".join(f"{name} {found[side]['R@1']:.1f} %" for side, name in tables.DIRECTIONS)
    return f"R@1 {recalls}; {texts:,} sentences, {videos:,} videos, protocol {found['protocol']}"


def _ranks(subject: Subject, metrics: RetrievalMetrics) -> list[Chart]:
    """Those that the table sums up."""
    protocol, ties = metrics["protocol"], metrics["ties"]
    by_video = ranks_of_videos(subject.reverse, subject.targets, protocol, ties)
    found = {"t2v": ranks(subject.scores, subject.targets, ties), "v2t": by_video}
    axis = {"t2v": "rank of the own video", "v2t": "rank of the best own sentence"}
    if protocol == "group_max":
        axis["v2t"] = "rank of the video itself, among all videos by the best sentence of each"
    return [Chart(name, distribution(found[side], RANKS), axis[side]) for side, name in tables.DIRECTIONS]


def _hubs(subject: Subject) -> Hubs:
    found = hubness(subject.scores)
    mean, never = found.queries * found.k / len(found.counts), int((found.counts == 0).sum())
    note = (
        f"A hub is a video that many queries find, whatever they ask for. Each of {found.queries:,} queries has "
        f"{found.k} first videos, so that a video is among them for {mean:.1f} queries on average; the greatest hub is "
        f"for {int(found.counts.max()):,}, and {never:,} videos never are. Skewness of this distribution: "
        f"{found.skewness:.2f} (random orders: {found.chance:.2f}; the larger, the more the hubs crowd out)."
    )
    bars = distribution(found.counts, COUNTS)
    chart = Chart("Videos by how often they are found", bars, f"queries, of {found.queries:,}")
    first = [
        Hub(
            None if subject.frames is None else strip(subject.frames(video)),
            subject.videos[video],
            int(found.counts[video]),
        )
        for video in found.hubs[:SHOWN]
    ]
    return Hubs(note, chart, first)
