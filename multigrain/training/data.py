"""What the loop needs of its data, and the order of the batches."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.batch import Batch
from ..data.cores import cores
from .config import BabyAIConfig, ClipsConfig

Item = TypeVar("Item")


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
        """These pairs; `seed` is for frames that are sampled at random, None samples as in evaluation."""
        ...


class Data(Protocol):
    """The splits of a run, such as multigrain.data.babyai.BabyAI or multigrain.data.clips.Splits."""

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


def load_data(config: BabyAIConfig | ClipsConfig, progress: bool = True, workers: int | None = None) -> Data:
    """The pairs of a config: BabyAI's, from the cache or generated into it, or those of a manifest.

    Args:
        progress, workers: of the generation of BabyAI pairs (see multigrain.data.babyai.load).

    Raises:
        ImportError, OSError, ValueError: see multigrain.data.babyai.load and multigrain.data.clips.load.
    """
    if isinstance(config, ClipsConfig):
        from ..data import clips

        sampling = clips.Sampling(fps=config.fps, strategy=config.strategy)
        return clips.load(config.manifest, sampling, size=config.size, strict=config.strict)
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


def fingerprint(data: Data) -> dict[str, dict[str, str]]:
    """Digests of what the pairs of each split are, by attribute, for a resumed run to compare."""
    found: dict[str, dict[str, str]] = {}
    for split in ("train", "single", "val", "test"):
        pairs: Pairs = getattr(data, split)
        # What no Pairs needs to have: where its videos come from, as Clips.sources and Rollouts.sources say.
        parts = (pairs.sentences, pairs.names, pairs.ids.tolist(), getattr(pairs, "sources", None))
        found[split] = {
            what: hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()
            for what, values in zip(("sentences", "names", "ids", "sources"), parts, strict=True)
        }
    return found


class _Fetch(Dataset["Item | Exception"], Generic[Item]):
    """What a worker of a DataLoader calls."""

    def __init__(self, fetch: Callable[[list[int]], Item]) -> None:
        self.fetch = fetch

    def __getitem__(self, rows: list[int]) -> Item | Exception:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self.fetch(rows)
        except Exception as error:  # raised again in the process that asked, without the trace of the worker
            return error


def loading(fetch: Callable[[list[int]], Item], batches: Sequence[list[int]], workers: int) -> Iterator[Item]:
    """fetch(rows) of each batch, in order; with workers, in so many processes (at most one a core) that run ahead.

    The global random numbers are not touched.
    """
    # A generator of its own: a DataLoader without one draws from the global random numbers.
    loader: Iterable[Item | Exception] = DataLoader(
        _Fetch(fetch),
        sampler=batches,
        batch_size=None,
        num_workers=min(workers, cores()),
        collate_fn=_as_it_is,
        worker_init_fn=_outlive_the_group,
        generator=torch.Generator(),
    )
    with _without_terminations():
        items = iter(loader)
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


@contextmanager
def _without_terminations() -> Generator[None]:
    """SIGTERM waits until the block is over, and in the processes that it starts until `_outlive_the_group`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_the_group(_: int) -> None:
    """Launchers send SIGTERM to readers too; their trainer needs them until it has saved, and ends them itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(item: Item) -> Item:
    return item


def batches(
    sentences: Sequence[str], size: int, bucket: int, seed: int, ids: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """The batches of one epoch, a function of the arguments alone.

    A shuffle, cut into batches of `size` pairs; within `bucket` batches at a time, sentences are first sorted by
    length (their order of lengths that are equal stays random), and the batches shuffled again. What does not
    fill a batch is left out, unless there is no more than that.

    Args:
        ids: of the pairs; a batch then has no two of the same id: a pair goes into the first batch, in the order
            of the shuffle, that has room and no other of its id. Batches are no larger than there are ids.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(sentences), generator=generator).tolist()
    if len(order) <= size and ids is None:
        return [order]
    if bucket > 1:
        lengths = [sentence.count(" ") for sentence in sentences]
        parts = [order[i : i + bucket * size] for i in range(0, len(order), bucket * size)]
        order = [i for part in parts for i in sorted(part, key=lengths.__getitem__)]
    if ids is None:
        cut = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    else:
        size = min(size, len(set(ids)))
        cut = [rows for rows in _distinct(order, size, ids) if len(rows) == size]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def _distinct(order: Iterable[int], size: int, ids: Sequence[Hashable]) -> list[list[int]]:
    """Every pair in the first batch that has room and no other of its id; all batches, also those that stay short."""
    cut: list[list[int]] = []
    first = 0  # batch with room
    following: Counter[Hashable] = Counter()  # the first batch that may have room for an id and does not have it
    for row in order:
        place = max(first, following[ids[row]])
        while place < len(cut) and len(cut[place]) == size:
            place += 1
        if place == len(cut):
            cut.append([])
        cut[place].append(row)
        following[ids[row]] = place + 1
        while first < len(cut) and len(cut[first]) == size:
            first += 1
    return cut
