"""Real video-sentence pairs that anyone can generate: a bot solves BabyAI missions.

The mission is the sentence ("put the red ball next to a green key, then go to the blue box"), the agent's
egocentric views from start to success are the video. Every object in a sentence carries its colour. World,
language and bot are Minigrid's (BabyAI, Chevalier-Boisvert et al., ICLR 2019). Needs the extra ``demo``.

    data = babyai.load("cache")
    batch = data.train.batch(range(64))
    batch.frames[batch.index]        # [64, 12, 3, 56, 56] uint8; padded where not batch.mask
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as error:
    raise ImportError('the BabyAI pairs need NumPy and Minigrid: pip install "multigrain[demo]"') from error

from ..pairs import Batch, cores, equal_ids
from .cache import RolloutShard, ShardId, Stream, load_shards, shards_for
from .render import render


@dataclass(frozen=True)
class Rollouts:
    """Videos as views, each with its sentence. Slicing shares the table of views."""

    sentences: list[str]
    views: NDArray[np.uint8]
    """[V, 7, 7, 3] distinct observations: object type, colour, state of every tile"""
    steps: NDArray[np.int64]
    """[total_steps] row of ``views`` at every step, one rollout after another"""
    offsets: NDArray[np.int64]
    """[N + 1] rollout i is ``steps[offsets[i] : offsets[i + 1]]``"""
    ids: Tensor = field(init=False)
    """[N] the same integer for the same sentence: its videos are positives of each other"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", equal_ids(self.sentences))

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def names(self) -> list[str]:
        """[N] the number of each rollout, counted from 0: rollouts have no other name."""
        return [str(i) for i in range(len(self))]

    @property
    def sources(self) -> list[str]:
        """[N] a digest of the views of every rollout."""
        parts = (self.views[self.steps[i:j]] for i, j in pairwise(self.offsets))
        return [hashlib.blake2b(part.tobytes(), digest_size=8).hexdigest() for part in parts]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] steps of every rollout, the first view included."""
        return np.diff(self.offsets)

    def subset(self, indices: Sequence[int]) -> Rollouts:
        """Return the rollouts at ``indices``, in that order."""
        parts = [self.steps[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        offsets = np.cumsum([0, *map(len, parts)])
        steps = np.concatenate(parts) if parts else self.steps[:0]
        return Rollouts([self.sentences[i] for i in indices], self.views, steps, offsets)

    def sample(self, indices: Sequence[int], max_frames: int = 12) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return rows of ``views`` and mask, both [B, F]: frames sampled uniformly, the first and the last included.

        A rollout of at most ``max_frames`` steps keeps all of them; its padded slots repeat the last view
        under a False. ``max_frames=1`` takes the last view, which shows the outcome.
        """
        _positive("max_frames", max_frames)
        rows = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[rows][:, None]
        taken = np.minimum(lengths, max_frames)
        slot = np.arange(min(max_frames, int(taken.max(initial=1))))
        gaps = np.maximum(taken - 1, 1)
        # round(slot * (length - 1) / (taken - 1)) in integers, halves up
        position = np.minimum((2 * slot * (lengths - 1) + gaps) // (2 * gaps), lengths - 1)
        if max_frames == 1:
            position = lengths - 1
        return self.steps[self.offsets[rows][:, None] + position], slot < taken

    def batch(self, indices: Sequence[int], max_frames: int = 12, seed: int | None = None) -> Batch:
        """Return the rollouts at ``indices`` for an encoder, sampled by `sample`; ``seed`` is not used.

        A padded slot repeats the item's last view.
        """
        rows, mask = self.sample(indices, max_frames)
        distinct, index = np.unique(rows, return_inverse=True)
        return Batch(
            torch.from_numpy(render(self.views[distinct])),
            torch.from_numpy(index.reshape(rows.shape)),
            torch.from_numpy(mask),
            [self.sentences[i] for i in indices],
            self.ids[list(indices)],
        )


@dataclass(frozen=True)
class BabyAI:
    """The pairs, split by sentence, and the single-action pairs for pretraining towers."""

    train: Rollouts
    val: Rollouts
    test: Rollouts
    single: Rollouts
    metadata: dict[str, Any]
    """settings, counts, and the seeds that were skipped, by reason"""


def load(
    cache_dir: str | os.PathLike[str],
    *,
    pairs: int = 9500,
    single: int = 8000,
    val: int = 1000,
    test: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    quick: bool = False,
    progress: bool = True,
) -> BabyAI:
    """Load the pairs of ``seed`` from ``cache_dir``, or generate them into it.

    The result depends on the sizes and the seed alone, not on ``workers`` nor on earlier interrupted calls.

    Args:
        cache_dir: the folder that keeps the generated rollouts; made if it does not exist.
        pairs: rollouts of two to four actions, to be split into train, val and test.
        single: rollouts of one action.
        val: distinct sentences for validation, one video each; none of them is in train or test.
        test: distinct sentences for the test, likewise.
        seed: of the worlds and of the split.
        workers: processes; None = one per available core.
        quick: a tenth of every size.
        progress: show it on stderr.

    Raises:
        ImportError: minigrid is not installed.
        TypeError, ValueError: a size that is no positive integer, or a split larger than the pairs' sentences.
        OSError: ``cache_dir`` cannot be written.
    """
    if importlib.util.find_spec("minigrid") is None:
        raise ImportError('the BabyAI pairs need Minigrid: pip install "multigrain[demo]"')
    sizes = {"pairs": pairs, "single": single, "val": val, "test": test}
    for name, size in sizes.items():
        _positive(name, size)
    if quick:
        sizes = {name: max(1, size // 10) for name, size in sizes.items()}
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed!r}")
    if workers is not None:
        _positive("workers", workers)
    ids = shards_for(sizes["pairs"], sizes["single"])
    shards = load_shards(Path(cache_dir), ids, seed, workers or cores(), progress)
    many = _join([shards[i] for i in ids if i.stream == "many"], sizes["pairs"])
    one = _join([shards[i] for i in ids if i.stream == "one"], sizes["single"])
    parts = split_by_sentence(many.sentences, val=sizes["val"], test=sizes["test"], seed=seed)
    metadata = {
        **sizes,
        "train": len(parts["train"]),
        "seed": seed,
        "minigrid": importlib.metadata.version("minigrid"),
        "distinct_sentences": len(set(many.sentences)),
        "distinct_single_sentences": len(set(one.sentences)),
        "mean_steps": round(float(many.lengths.mean()), 2),
        "skipped": _skipped(shards, "many"),
        "skipped_single": _skipped(shards, "one"),
    }
    return BabyAI(**{name: many.subset(rows) for name, rows in parts.items()}, single=one, metadata=metadata)


def split_by_sentence(sentences: Sequence[str], *, val: int, test: int, seed: int) -> dict[str, list[int]]:
    """Return the indices of train, val and test, so that no sentence is in two of them.

    ``test`` and ``val`` distinct sentences, each with its first rollout; train is every rollout of the other
    sentences. Sentences are ranked by a hash of (seed, sentence), so more pairs move few between splits.
    """
    ranked = sorted(set(sentences), key=lambda s: hashlib.blake2b(f"{seed}:{s}".encode()).digest())
    if val + test >= len(ranked):
        raise ValueError(
            f"val, test: expected fewer than the {len(ranked)} distinct sentences of {len(sentences)} pairs, "
            f"got {val} + {test}"
        )
    first = {sentence: i for i, sentence in reversed(list(enumerate(sentences)))}
    unseen = set(ranked[: test + val])
    return {
        "train": [i for i, sentence in enumerate(sentences) if sentence not in unseen],
        "val": sorted(first[sentence] for sentence in ranked[test : test + val]),
        "test": sorted(first[sentence] for sentence in ranked[:test]),
    }


def _join(shards: Sequence[RolloutShard], count: int) -> Rollouts:
    sentences = [sentence for shard in shards for sentence in shard.sentences][:count]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([shard.lengths for shard in shards])[:count])])
    observations = np.concatenate([shard.observations for shard in shards])[: offsets[-1]]
    # One opaque scalar per view, so that views sort and compare by their bytes.
    as_bytes = np.ascontiguousarray(observations).reshape(len(observations), -1).view(f"V{7 * 7 * 3}")[:, 0]
    _, first, steps = np.unique(as_bytes, return_index=True, return_inverse=True)
    return Rollouts(sentences, observations[first], steps.astype(np.int64), offsets.astype(np.int64))


def _skipped(shards: Mapping[ShardId, RolloutShard], stream: Stream) -> dict[str, int]:
    return dict(sum((shard.skipped for key, shard in shards.items() if key.stream == stream), Counter[str]()))


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value}")
