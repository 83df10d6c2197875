"""Choice of the queries that a page shows: the surest, some at random and the worst, and the list of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..metrics import ranks
from .content import Example, Hit, Query
from .images import figure_image
from .scored_pairs import ScoredPairs

BEST, RANDOM, WORST = "Best", "At random", "Worst"
FOUND = 5  # videos of each query in the list of all


def choose(pairs: ScoredPairs, each: int = 4, hits: int = 4, seed: int = 0) -> dict[str, list[Example]]:
    """Choose examples by heading, no query twice; the surest and the worst have heat maps if pairs have pictures.

    Args:
        each: queries of each kind; if there are few, a third of them.
        hits: retrieved videos of each query; its own is added if it is not among them.
        seed: chooses the random ones.
    """
    scores, targets = pairs.scores, pairs.targets
    rank = ranks(scores, targets)
    ahead = margins(scores, targets)
    by_margin: list[int] = ahead.argsort(descending=True).tolist()
    by_rank = sorted(range(len(rank)), key=lambda query: (-float(rank[query]), float(ahead[query])))
    shuffled: list[int] = torch.randperm(len(rank), generator=torch.Generator().manual_seed(seed)).tolist()
    each = min(each, -(-len(rank) // 3))
    taken: set[int] = set()
    groups: dict[str, list[Example]] = {}
    for heading, order in ((BEST, by_margin), (RANDOM, shuffled), (WORST, by_rank)):
        chosen = [i for i in order if i not in taken][:each]
        taken.update(chosen)
        groups[heading] = [_example(pairs, i, float(rank[i]), hits, heading != RANDOM) for i in chosen]
    return groups


def queries(pairs: ScoredPairs, most: int) -> list[Query]:
    """List the first texts, at most so many, each with the rank of its video and the videos that come first."""
    scores, targets = pairs.scores[:most], pairs.targets[:most]
    rank: list[float] = ranks(scores, targets).tolist()
    best = scores.topk(min(FOUND, len(pairs.videos)), 1)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Query(text, round(place), own, list(zip(columns, values, strict=True)))
        for text, place, own, (columns, values) in zip(pairs.texts[:most], rank, targets.tolist(), found, strict=True)
    ]


def margins(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"]) -> Float[Tensor, "t"]:
    """Subtract the best other video's score from that of each text's own video."""
    own = scores.gather(1, targets[:, None])
    others = scores.scatter(1, targets[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def rival(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], text: int) -> int:
    """Find the best video that is not the text's own."""
    return int(scores[text].index_fill(0, targets[text].cpu(), -torch.inf).argmax())


def clearest(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], sizes: Sequence[tuple[int, int]]) -> int:
    """Find the text to draw with its video: first in both directions, easy to read, ahead by the largest margin.

    Args:
        sizes: (words, frames) of every text and its video; 8 to 14 words and at least 8 frames read well.
    """
    fits = torch.tensor([8 <= words <= 14 and frames >= 8 for words, frames in sizes])
    own = scores.gather(1, targets[:, None])[:, 0]
    first = (ranks(scores, targets) == 1) & (own >= scores.amax(0)[targets])
    ahead = margins(scores, targets)
    for wanted in (fits & first, first, fits):
        if wanted.any():
            return int(ahead.masked_fill(~wanted, -torch.inf).argmax())
    return int(ahead.argmax())


def _example(pairs: ScoredPairs, query: int, rank: float, hits: int, pictured: bool) -> Example:
    scores, own = pairs.scores[query], int(pairs.targets[query])
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    shown = order[:hits] + [own] * (own not in order[:hits])
    found = [
        Hit(pairs.strip(video), pairs.videos[video], float(scores[video]), order.index(video) + 1, video == own)
        for video in shown
    ]
    pictures: list[tuple[bytes, str]] = []
    if pictured and pairs.picture is not None:
        for video in dict.fromkeys([own, order[0]]):
            whose = "Its own video" if video == own else f"What came first instead: {pairs.videos[video]}"
            place = f"rank {order.index(video) + 1:,}"
            figure = pairs.picture(query, video, f"score {float(scores[video]):.3f}, {place}", False)
            pictures.append((figure_image(figure), f"{whose}, {place}"))
    return Example(pairs.texts[query], round(rank), found, pictures)
