"""Which queries to show: the surest, some at random and the worst, with what they found; and all of them, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..metrics import ranks
from .content import Example, Hit, Query
from .images import figure_image, strip
from .subject import Subject

BEST, RANDOM, WORST = "Best", "At random", "Worst"
FOUND = 5  # of each query in the list of all


def choose(subject: Subject, each: int = 4, hits: int = 4, seed: int = 0) -> dict[str, list[Example]]:
    """Examples by heading, no query twice; the surest and the worst with heat maps where there is a picture.

    Args:
        each: queries of each kind; of few queries, a third.
        hits: retrieved videos of each query; its own is added where it is not among them.
        seed: of the random ones.
    """
    scores, targets = subject.scores, subject.targets
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
        groups[heading] = [_example(subject, i, float(rank[i]), hits, heading != RANDOM) for i in chosen]
    return groups


def queries(subject: Subject, most: int) -> list[Query]:
    """The first texts, so many at most, each with the rank of its video and the videos that come first."""
    scores, targets = subject.scores[:most], subject.targets[:most]
    rank: list[float] = ranks(scores, targets).tolist()
    best = scores.topk(min(FOUND, len(subject.videos)), 1)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Query(text, round(place), own, list(zip(columns, values, strict=True)))
        for text, place, own, (columns, values) in zip(subject.texts[:most], rank, targets.tolist(), found, strict=True)
    ]


def margins(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"]) -> Float[Tensor, "t"]:
    """How far each text's own video is ahead of the best other one (negative: behind)."""
    own = scores.gather(1, targets[:, None])
    others = scores.scatter(1, targets[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def rival(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], text: int) -> int:
    """The best video that is not the text's own."""
    return int(scores[text].index_fill(0, targets[text].cpu(), -torch.inf).argmax())


def clearest(scores: Float[Tensor, "t v"], targets: Int[Tensor, "t"], sizes: Sequence[tuple[int, int]]) -> int:
    """The text to picture with its video: first both ways, of a size that reads well, ahead by the largest margin.

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


def _example(subject: Subject, query: int, rank: float, hits: int, pictured: bool) -> Example:
    scores, own = subject.scores[query], int(subject.targets[query])
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    shown = order[:hits] + [own] * (own not in order[:hits])
    found = [
        Hit(
            None if subject.frames is None else strip(subject.frames(video)),
            subject.videos[video],
            float(scores[video]),
            order.index(video) + 1,
            video == own,
        )
        for video in shown
    ]
    pictures: list[tuple[bytes, str]] = []
    if pictured and subject.picture is not None:
        for video in dict.fromkeys([own, order[0]]):
            whose = "Its own video" if video == own else f"What came first instead: {subject.videos[video]}"
            place = f"rank {order.index(video) + 1:,}"
            figure = subject.picture(query, video, f"score {float(scores[video]):.3f}, {place}", False)
            pictures.append((figure_image(figure), f"{whose}, {place}"))
    return Example(subject.texts[query], round(rank), found, pictures)
