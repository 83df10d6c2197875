"""Features of the texts and the videos of pairs, from a model in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..data.pairs import Batch, Pairs, loading
from ..models.protocol import Encoder, check_encoded, check_encoder, device_of, evaluating, takes_index
from ..scoring import ProgressCallback
from ..tokens import Features


class Unreadable(ValueError):
    """No video that is needed could be read; `broken` names each with the reason."""

    def __init__(self, message: str, broken: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.broken = broken


def first_rows(pairs: Pairs, rows: Sequence[int]) -> list[int]:
    """List the first one of these pairs for each id."""
    first: dict[int, int] = {}
    for row, i in zip(rows, pairs.ids[list(rows)].tolist(), strict=True):
        first.setdefault(i, row)
    return list(first.values())


def encode(
    model: Encoder,
    pairs: Pairs,
    indices: Sequence[int] | None = None,
    max_frames: int = 12,
    batch_size: int = 100,
    progress: ProgressCallback | None = None,
) -> tuple[Features, Features]:
    """Compute (text, video) features of pairs whose videos can all be read, on the CPU, with the model in eval mode.

    Args:
        indices: which pairs; None = all.
        progress: called with (pairs done, pairs in all).
    """
    check_encoder(model)
    rows = list(range(len(pairs.sentences)) if indices is None else indices)
    text = encode_texts(model, [pairs.sentences[row] for row in rows], batch_size)
    video, _, broken = join_parts([encode_rows(model, pairs, rows, max_frames, batch_size, progress=progress)])
    if broken:
        raise Unreadable(f"expected videos that can be read; {broken[0]}", broken)
    return text, video


def encode_texts(model: Encoder, sentences: Sequence[str], batch_size: int = 100) -> Features:
    """Compute the features of sentences, on the CPU, with the model in eval mode."""
    parts = [list(sentences[i : i + batch_size]) for i in range(0, len(sentences), batch_size)]
    with evaluating(model):
        found = [check_encoded("encode_text", model.encode_text(part), len(part)).to("cpu") for part in parts]
    return Features.cat(found)


def encode_batch(model: Encoder, batch: Batch) -> Features:
    """Compute the features of a batch's videos on the device of the model, which may take each distinct frame once."""
    device = device_of(model)
    frames, index, mask = (x.to(device) for x in (batch.frames, batch.index, batch.mask))
    if takes_index(model):
        found = model.encode_video(frames, mask, index=index)  # pyright: ignore[reportCallIssue]
    else:
        found = model.encode_video(frames[index], mask)
    return check_encoded("encode_video", found, len(mask))


EncodedVideos = tuple[Features | None, list[int], tuple[str, ...]]


def encode_rows(
    model: Encoder,
    pairs: Pairs,
    rows: Sequence[int],
    max_frames: int = 12,
    batch_size: int = 100,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> EncodedVideos:
    """Compute the features of the videos of pairs, on the CPU, with the model in eval mode.

    Returns (features, or None where no video could be read; the pairs whose videos could be read; the name of each
    other video, with the reason).
    """
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
                parts.append(encode_batch(model, batch).to("cpu"))
            done += len(group)
            if progress is not None:
                progress(done, len(rows))
    return Features.cat(parts) if parts else None, kept, tuple(broken)


def join_parts(parts: Sequence[EncodedVideos]) -> tuple[Features, list[int], tuple[str, ...]]:
    """Concatenate what several calls of `encode_rows` returned.

    Raises:
        Unreadable: no video could be read.
    """
    features = [found for found, _, _ in parts if found is not None]
    broken = tuple(line for _, _, lines in parts for line in lines)
    if not features:
        raise Unreadable(f"no video could be read; the first: {next(iter(broken), 'there is none')}", broken)
    return Features.cat(features), [row for _, kept, _ in parts for row in kept], broken
