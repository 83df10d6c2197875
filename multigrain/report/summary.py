"""Contents of the page of an evaluation: a table, the ranks, the best and the worst queries, the hubs, all queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation import tables
from ..metrics import RetrievalMetrics, ranks, ranks_of_videos
from ..training import Evaluation
from . import examples
from .content import Chart, Hub, Hubs, Page
from .hubs import FIRST, distribution, hubness
from .scored_pairs import ScoredPairs

RANKS = (1, 5, 10, 20, 50, 100)  # upper ends of the bins of ranks
COUNTS = (0, 2, 5, 10, 20, 50, 100)  # upper ends of the bins of how many queries find a video
SHOWN = 5  # hubs
LISTED = 5000  # queries in the list of all

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


def summarize(pairs: ScoredPairs, evaluation: Evaluation, lead: Sequence[str] = (), **more: Any) -> Page:
    """Return the page of an evaluation; `more` are further fields of `Page`."""
    metrics, videos = evaluation.metrics, len(pairs.videos)
    rows = tables.rows(metrics, videos)
    note = _TABLE + _GRAINS * (len(metrics) > 2) + _CHANCE * any(row.kind == "chance" for row in rows)
    said = [_CORRECTED.format(evaluation.hubness)] if evaluation.hubness else []
    said += [_NO_MAPS] if pairs.picture is None else []
    return Page(
        verdict=_verdict(evaluation, len(pairs.texts), videos),
        lead=[*lead, *said],
        rows=rows,
        table_note=note,
        charts=_ranks(pairs, metrics["all"]),
        examples=examples.choose(pairs),
        hubs=_hubs(pairs) if videos > FIRST else None,  # each query finds all of so few videos
        queries=examples.queries(pairs, LISTED),
        videos=pairs.videos,
        **more,
    )


def _verdict(evaluation: Evaluation, texts: int, videos: int) -> str:
    """State the result in one sentence."""
    found = evaluation.metrics["all"]
    if found["protocol"] == "diagonal":
        return tables.verdict(evaluation.metrics, videos)
    recalls = ", ".join(f"{name} {found[side]['R@1']:.1f} %" for side, name in tables.DIRECTION_NAMES)
    return f"R@1 {recalls}; {texts:,} sentences, {videos:,} videos, protocol {found['protocol']}"


def _ranks(pairs: ScoredPairs, metrics: RetrievalMetrics) -> list[Chart]:
    """Return the distributions of the ranks that the table sums up."""
    protocol, ties = metrics["protocol"], metrics["ties"]
    by_video = ranks_of_videos(pairs.reverse, pairs.targets, protocol, ties)
    found = {"t2v": ranks(pairs.scores, pairs.targets, ties), "v2t": by_video}
    axis = {"t2v": "rank of the own video", "v2t": "rank of the best own sentence"}
    if protocol == "group_max":
        axis["v2t"] = "rank of the video itself, among all videos by the best sentence of each"
    return [Chart(name, distribution(found[side], RANKS), axis[side]) for side, name in tables.DIRECTION_NAMES]


def _hubs(pairs: ScoredPairs) -> Hubs:
    found = hubness(pairs.scores)
    mean, never = found.queries * found.k / len(found.counts), int((found.counts == 0).sum())
    note = (
        f"A hub is a video that many queries find, whatever they ask for. Each of {found.queries:,} queries has "
        f"{found.k} first videos, so that a video is among them for {mean:.1f} queries on average; the greatest hub is "
        f"for {int(found.counts.max()):,}, and {never:,} videos never are. Skewness of this distribution: "
        f"{found.skewness:.2f} (random orders: {found.chance:.2f}; the larger, the more the hubs crowd out)."
    )
    bars = distribution(found.counts, COUNTS)
    chart = Chart("Videos by how often they are found", bars, f"queries, of {found.queries:,}")
    first = [Hub(pairs.strip(video), pairs.videos[video], int(found.counts[video])) for video in found.hubs[:SHOWN]]
    return Hubs(note, chart, first)
