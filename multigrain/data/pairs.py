"""Pairs of videos and sentences: the protocols that a data set keeps, and a reader that prepares batches ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Video-sentence pairs: every frame once, and where it goes."""

    frames: UInt8[Tensor, "u 3 h w"] | Float[Tensor, "u 3 h w"]
    """the distinct frames of all videos, uint8 or floating in [0, 1]"""
    index: Int[Tensor, "b n"]
    """the row of `frames` for each frame of each pair; any row where padded"""
    mask: Bool[Tensor, "b n"]
    """True = a real frame"""
    sentences: list[str]
    ids: Int[Tensor, "b"]
    """pairs with the same integer are positives of each other"""
    broken: Sequence[str] = ()
    """the name of each video that could not be read, and why; its pairs are left out"""


def equal_ids(values: Sequence[str]) -> Int[Tensor, "n"]:
    """Number values from 0 in the order of their first appearance; equal values get one number."""
    ids: dict[str, int] = {}
    return torch.tensor([ids.setdefault(value, len(ids)) for value in values])


class Pairs(Protocol):
    """Video-sentence pairs, such as multigrain.data.babyai.Rollouts or multigrain.data.clips.Clips."""

    @property
    def sentences(self) -> list[str]:
        """The sentence of each pair."""
        ...

    @property
    def ids(self) -> Tensor:
        """[N] pairs with the same integer are positives of each other; in evaluation, they have the same video."""
        ...

    @property
    def names(self) -> list[str]:
        """The name of each pair's video."""
        ...

    def batch(self, indices: Sequence[int], max_frames: int = 12, seed: int | None = None) -> Batch:
        """Read a batch of pairs; `seed` is for frames that are sampled at random, None samples as in evaluation."""
        ...


class Data(Protocol):
    """The splits of a run, such as multigrain.data.babyai.BabyAI or multigrain.data.clips.Splits."""

    @property
    def train(self) -> Pairs:
        """Pairs of stages with task "videos"."""
        ...

    @property
    def single(self) -> Pairs:
        """Pairs of stages with task "frames"."""
        ...

    @property
    def val(self) -> Pairs:
        """Pairs that are scored after each epoch, to choose settings by."""
        ...

    @property
    def test(self) -> Pairs:
        """Pairs that training never sees."""
        ...


class _Fetch(Dataset["Item | Exception"], Generic[Item]):
    """The data set of a DataLoader: an item is a batch, or the error of reading it."""

    def __init__(self, fetch: Callable[[list[int]], Item]) -> None:
        self.fetch = fetch

    def __getitem__(self, rows: list[int]) -> Item | Exception:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.fetch(rows)
        except Exception as error:  # raised again in the process that asked, without the trace of the worker
            return error


def loading(fetch: Callable[[list[int]], Item], batches: Sequence[list[int]], workers: int) -> Iterator[Item]:
    """Yield fetch(rows) of each batch, in order; `workers` processes (at most one a core) run ahead.

    The global random numbers are not touched.
    """
    # A DataLoader without a generator of its own draws from the global random numbers.
    loader: Iterable[Item | Exception] = DataLoader(
        _Fetch(fetch),
        sampler=batches,
        batch_size=None,
        num_workers=min(workers, cores()),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_termination,
        generator=torch.Generator(),
    )
    with _without_terminations():
        others = set(active_children())
        items = iter(loader)
        readers = set(active_children()) - others
    at_exit = Finalize(None, _kill, (readers,), exitpriority=0)
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        del items  # the trace of an error would keep it, and the readers with it
        at_exit.cancel()


@contextmanager
def _without_terminations() -> Generator[None]:
    """Hold SIGTERM back until the block is over, and in processes started within it until `_ignore_termination`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_termination(_: int) -> None:
    """Ignore SIGTERM: launchers send it to readers too, but the trainer needs them until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill(readers: Iterable[BaseProcess]) -> None:
    """End readers that a program leaves behind as it exits: they ignore the SIGTERM that it would wait for."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report each of them as lost
    for reader in readers:
        reader.kill()


def _as_it_is(item: Item) -> Item:
    return item


def cores() -> int:
    """Count the cores that this process may use: a container or a batch system may grant fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def frames_of(pairs: Pairs, row: int, max_frames: int) -> NDArray[np.uint8]:
    """Return the frames [n, height, width, 3] of one pair's video that the model sees.

    Raises:
        ValueError: the video cannot be read.
    """
    batch = pairs.batch([row], max_frames)
    if not len(batch.index):
        raise ValueError(next(iter(batch.broken), f"pair {row}: its video cannot be read"))
    return batch.frames[batch.index[0][batch.mask[0]]].movedim(1, -1).numpy()
