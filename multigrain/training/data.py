"""What the loop needs of its data, and the order of the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .config import DataConfig

if TYPE_CHECKING:
    from ..data.babyai import BabyAI


class Batch(Protocol):
    """Distinct frames once, and where they go."""

    @property
    def frames(self) -> Tensor:
        """[U, 3, H, W] distinct frames, uint8 or floating in [0, 1]."""
        ...

    @property
    def index(self) -> Tensor:
        """[B, N] the row of `frames` of each frame of each video."""
        ...

    @property
    def mask(self) -> Tensor:
        """[B, N] True = a real frame."""
        ...

    @property
    def sentences(self) -> list[str]:
        """[B]."""
        ...


class Pairs(Protocol):
    """Video-sentence pairs, such as multigrain.data.babyai.Rollouts."""

    @property
    def sentences(self) -> list[str]:
        """The sentence of each pair."""
        ...

    def batch(self, indices: Sequence[int], max_frames: int = 12) -> Batch:
        """These pairs; max_frames=1 takes the last frame alone."""
        ...


class Data(Protocol):
    """The splits of a run, such as multigrain.data.babyai.BabyAI."""

    @property
    def train(self) -> Pairs:
        """For stages with task "videos"."""
        ...

    @property
    def single(self) -> Pairs:
        """For stages with task "frames"."""
        ...

    @property
    def val(self) -> Pairs:
        """Scored after each epoch, to choose settings by."""
        ...

    @property
    def test(self) -> Pairs:
        """Never seen by the loop."""
        ...


def load_data(config: DataConfig, progress: bool = True, workers: int | None = None) -> BabyAI:
    """The BabyAI pairs, from the cache or generated into it (see multigrain.data.babyai.load)."""
    from ..data import babyai

    return babyai.load(
        config.cache,
        pairs=config.pairs,
        single=config.single,
        val=config.val,
        test=config.test,
        seed=config.seed,
        workers=workers,
        progress=progress,
    )


def sentence_ids(sentences: Sequence[str]) -> Tensor:
    """[N] the same integer for the same sentence: its videos are positives of each other."""
    ids: dict[str, int] = {}
    return torch.tensor([ids.setdefault(sentence, len(ids)) for sentence in sentences])


def batches(sentences: Sequence[str], size: int, bucket: int, seed: int) -> list[list[int]]:
    """The batches of one epoch, a function of the arguments alone.

    A shuffle, cut into batches of `size` pairs; within `bucket` batches at a time, sentences are first sorted by
    length (their order of lengths that are equal stays random), and the batches shuffled again. What does not
    fill a batch is left out, unless there is no more than that.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(sentences), generator=generator).tolist()
    if len(order) <= size:
        return [order]
    if bucket > 1:
        lengths = [sentence.count(" ") for sentence in sentences]
        parts = [order[i : i + bucket * size] for i in range(0, len(order), bucket * size)]
        order = [i for part in parts for i in sorted(part, key=lengths.__getitem__)]
    cut = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
