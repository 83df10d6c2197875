"""Features of the texts and the videos of pairs, from a model in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..models import XCLIP
from ..models.protocol import evaluating
from ..tokens import Features
from .data import Pairs, loading

Count = Callable[[int, int], None]


class Unreadable(ValueError):
    """No video that is needed could be read; `broken` says of each why."""

    def __init__(self, message: str, broken: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.broken = broken


def first_rows(pairs: Pairs, rows: Sequence[int]) -> list[int]:
    """Of these pairs, the first one of each id."""
    first: dict[int, int] = {}
    for row, i in zip(rows, pairs.ids[list(rows)].tolist(), strict=True):
        first.setdefault(i, row)
    return list(first.values())


def encode(
    model: XCLIP,
    pairs: Pairs,
    indices: Sequence[int] | None = None,
    max_frames: int = 12,
    batch_size: int = 100,
    progress: Count | None = None,
) -> tuple[Features, Features]:
    """(text, video) features of pairs whose videos can all be read, on the CPU, from the model in eval mode.

    Args:
        indices: which pairs; None = all.
        progress: called with (pairs done, pairs in all).
    """
    rows = list(range(len(pairs.sentences)) if indices is None else indices)
    text = encode_texts(model, [pairs.sentences[row] for row in rows], batch_size)
    video, _, broken = joined([encode_videos(model, pairs, rows, max_frames, batch_size, progress=progress)])
    if broken:
        raise Unreadable(f"expected videos that can be read; {broken[0]}", broken)
    return text, video


def encode_texts(model: XCLIP, sentences: Sequence[str], batch_size: int = 100) -> Features:
    """Features of sentences, on the CPU, from the model in eval mode."""
    with evaluating(model):
        starts = range(0, len(sentences), batch_size)
        return Features.cat([model.encode_text(sentences[i : i + batch_size]).to("cpu") for i in starts])


EncodedVideos = tuple[Features | None, list[int], tuple[str, ...]]


def encode_videos(
    model: XCLIP,
    pairs: Pairs,
    rows: Sequence[int],
    max_frames: int = 12,
    batch_size: int = 100,
    workers: int = 0,
    progress: Count | None = None,
) -> EncodedVideos:
    """Features of the videos of pairs, on the CPU, from the model in eval mode, None where there is none; the pairs
    whose videos could be read, and of each that could not, its name and why.
    """
    device = model.logit_scale.device
    groups = [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    parts, kept, broken, done = list[Features](), list[int](), dict[str, None](), 0
    with evaluating(model):
        for group, batch in zip(
            groups, loading(partial(pairs.batch, max_frames=max_frames), groups, workers), strict=True
        ):
            broken |= dict.fromkeys(batch.broken)
            found: set[int] = set(batch.ids.tolist())
            kept += [row for row in group if int(pairs.ids[row]) in found]
            if batch.sentences:
                frames, index, mask = (x.to(device) for x in (batch.frames, batch.index, batch.mask))
                parts.append(model.encode_video(frames, mask, index).to("cpu"))
            done += len(group)
            if progress is not None:
                progress(done, len(rows))
    return Features.cat(parts) if parts else None, kept, tuple(broken)


def joined(parts: Sequence[EncodedVideos]) -> tuple[Features, list[int], tuple[str, ...]]:
    """What `encode_videos` found, one after the other.

    Raises:
        Unreadable: no video could be read.
    """
    features = [found for found, _, _ in parts if found is not None]
    broken = tuple(line for _, _, lines in parts for line in lines)
    if not features:
        raise Unreadable(f"no video could be read; the first: {next(iter(broken), 'there is none')}", broken)
    return Features.cat(features), [row for _, kept, _ in parts for row in kept], broken
