"""Which queries to show: the surest, some at random and the worst, with what they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..metrics import ranks
from .page import Example, Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Frames = Callable[[int], "NDArray[np.uint8]"]
"""Index of a video -> its frames [n, height, width, 3]."""


def choose(
    scores: Float[Tensor, "n n"], sentences: Sequence[str], frames: Frames, each: int = 4, hits: int = 4, seed: int = 0
) -> dict[str, list[Example]]:
    """Examples by heading, no query twice.

    Args:
        scores: [texts, videos]; text i belongs to video i.
        sentences: of the texts.
        each: queries of each kind.
        hits: retrieved videos of each query; its own is added where it is not among them.
        seed: of the random ones.
    """
    rank, margin = ranks(scores), margins(scores)
    by_margin: list[int] = margin.argsort(descending=True).tolist()
    by_rank: list[int] = rank.argsort(descending=True, stable=True).tolist()
    shuffled: list[int] = torch.randperm(len(rank), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: set[int] = set()
    groups: dict[str, list[Example]] = {}
    for heading, order in (
        ("Furthest ahead of every other video", by_margin),
        ("At random", shuffled),
        ("Furthest behind", by_rank),
    ):
        chosen = [i for i in order if i not in taken][:each]
        taken.update(chosen)
        groups[heading] = [_example(i, scores[i], float(rank[i]), sentences, frames, hits) for i in chosen]
    return groups


def margins(scores: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """How far each text's own video is ahead of the best other one (negative: behind)."""
    own = scores.diag()
    others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return own - others.amax(1)


def clearest(scores: Float[Tensor, "n n"], sizes: Sequence[tuple[int, int]]) -> int:
    """The pair to picture: first both ways, of a size that reads well, ahead by the largest margin.

    Args:
        sizes: (words, frames) of every pair; 8 to 14 words and at least 8 frames read well.
    """
    fits = torch.tensor([8 <= words <= 14 and frames >= 8 for words, frames in sizes])
    first = (ranks(scores) == 1) & (ranks(scores.T) == 1)
    for wanted in (fits & first, first, fits):
        if wanted.any():
            return int(margins(scores).masked_fill(~wanted, -torch.inf).argmax())
    return int(margins(scores).argmax())


def _example(query: int, scores: Tensor, rank: float, sentences: Sequence[str], frames: Frames, hits: int) -> Example:
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    shown = order[:hits] + [query] * (query not in order[:hits])
    found = [
        Hit(frames(video), sentences[video], float(scores[video]), order.index(video) + 1, video == query)
        for video in shown
    ]
    return Example(sentences[query], round(rank), found)
