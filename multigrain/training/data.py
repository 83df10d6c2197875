"""Order of the batches, and digests of the pairs, which a resumed run compares."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import torch

from ..data.pairs import Data, Pairs


def fingerprint(data: Data) -> dict[str, dict[str, str]]:
    """Compute digests of the pairs of each split, by attribute, for a resumed run to compare."""
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


def batches(
    sentences: Sequence[str], size: int, bucket: int, seed: int, ids: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Make the batches of one epoch, a function of the arguments alone.

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
    """Put every pair into the first batch that has room and no other of its id; some batches stay short."""
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
