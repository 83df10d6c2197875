"""Raw features as encoders give them, small and random, for every recipe."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import multigrain as mg
from multigrain import recipes

DIM, WORDS, FRAMES = 8, 5, 4
SMALL = {"max_frames": FRAMES, "depth": 1, "heads": 2}


def masks(items: int, length: int) -> Tensor:
    """[items, length]: real prefixes of different lengths, at least 2 tokens, the first item whole."""
    lengths = length - torch.arange(items) % (length - 1)
    return torch.arange(length) < lengths[:, None]


def raw(
    texts: int = 4, videos: int | None = None, seed: int = 0, poison: float = 0.0, dtype: torch.dtype = torch.float32
) -> tuple[mg.Features, mg.Features]:
    """sentence, word and the given word_weight; frame. `poison` fills what is behind the masks."""
    generator = torch.Generator().manual_seed(seed)
    videos = texts if videos is None else videos

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def padded(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = masks(*x.shape[:2])
        return x.masked_fill(~mask[..., None], poison), mask

    sentence, word = random(texts, DIM), padded(random(texts, WORDS, DIM))
    weight = padded(random(texts, WORDS, 1).abs() + 0.1)
    return mg.Features(sentence=sentence, word=word, word_weight=weight), mg.Features(
        frame=padded(random(videos, FRAMES, DIM))
    )


def small(name: str, **settings: Any) -> recipes.Recipe:
    """The recipe of a name at the sizes of `raw`, its random numbers fixed."""
    torch.manual_seed(0)
    parameters = inspect.signature(getattr(recipes, name)).parameters
    sizes = {key: value for key, value in SMALL.items() if key in parameters}
    return recipes.build(name, DIM, **sizes | settings)
