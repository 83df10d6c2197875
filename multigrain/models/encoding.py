"""Encode video files as Features, with any Encoder. The extra ``data`` is needed.

    features = encode_videos(model, ["a.mp4", "b.mp4"])          # Features(video [2, D], frame [2, N, D])

Decoding runs ahead in threads while the model computes.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from .. import checks
from ..data.video import Sampling, VideoError, batch, read_video
from ..data.video.files import Location, list_videos
from ..scoring import ProgressCallback
from ..tokens import Features, check_finite
from .protocol import Encoder, check_encoded, check_encoder, device_of, evaluating, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Decoded: TypeAlias = "tuple[str, Tensor | VideoError]"
Encoded: TypeAlias = "tuple[Features | None, list[str], dict[str, str]]"


def encode_videos(
    model: Encoder,
    videos: Iterable[Location],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> Features:
    """Encode videos in their order, with the model in eval mode, on its device, without a graph.

    Args:
        videos: files, or folders, which are searched with their subfolders for files that are named like videos.
        sampling: which frames; default one a second, at most the model's max_frames, uniform.
        batch_size: videos in a batch of the model.
        workers: threads that decode.
        progress: called with (videos done, videos in all).

    Raises:
        ImportError: PyAV is not installed.
        TypeError, ValueError: an argument out of range; no video.
        VideoError: a video cannot be read; its name and the reason are given.
    """
    sampling = check_sampling(model, sampling, batch_size, workers)
    paths = list_videos(videos)
    tick = ticks(progress, 0, len(paths))
    with decoding(model, paths, sampling, batch_size, workers) as stream, evaluating(model):
        features, _, _ = encode_decoded(model, stream, batch_size, True, None, tick)
    assert features is not None  # strict, and there is a video
    return features.to(device_of(model))


def encode_pair(
    model: Encoder,
    sentence: str,
    video: str | os.PathLike[str] | Tensor | NDArray[np.uint8],
    sampling: Sampling | None = None,
) -> tuple[Features, Features, list[str], NDArray[np.uint8]]:
    """Encode a sentence and a video; return both features, the words and the frames [n, height, width, 3].

    Args:
        video, sampling: see multigrain.data.read_video; default one frame a second, at most the model's.

    Raises:
        ImportError, TypeError, ValueError: see viz.explain.
    """
    check_encoder(model)
    frames = read_video(video, sampling or Sampling(max_frames=model.max_frames), model.frame_size)
    mask = torch.ones(1, len(frames), dtype=torch.bool)
    device = device_of(model)
    with evaluating(model):
        text = check_encoded("encode_text", model.encode_text([sentence]), 1)
        features = check_encoded("encode_video", model.encode_video(frames[None].to(device), mask.to(device)), 1)
    words = words_of(model, sentence, text["word"]) if "word" in text else []
    return text, features, words, frames.movedim(1, -1).numpy()


def encode_decoded(
    model: Encoder,
    stream: Iterable[Decoded],
    batch_size: int,
    strict: bool,
    dtype: torch.dtype | None,
    tick: Callable[[], None],
) -> Encoded:
    """Encode decoded frames; return (features, their videos, broken videos -> why).

    Args:
        strict: raise where a video could not be read.
        dtype: of the features, which are then moved to the CPU; None: as they come.
        tick: called after each video.
    """
    parts: list[Features] = []
    paths: list[str] = []
    broken: dict[str, str] = {}
    waiting: list[Tensor] = []
    device = device_of(model)

    def flush() -> None:
        frames, mask = batch(waiting)
        features = check_encoded("encode_video", model.encode_video(frames.to(device), mask.to(device)), len(mask))
        parts.append(features if dtype is None else features.to("cpu", dtype))
        for name in features.names:
            check_finite(name, parts[-1][name])
        waiting.clear()

    for path, frames in stream:
        if isinstance(frames, Tensor):
            paths.append(path)
            waiting.append(frames)
        elif strict:
            raise frames
        else:
            broken[path] = str(frames).removeprefix(f"{path}: ")
        if len(waiting) == batch_size:
            flush()
        tick()
    if waiting:
        flush()
    return Features.cat(parts) if parts else None, paths, broken


@contextmanager
def decoding(
    model: Encoder, paths: Sequence[str], sampling: Sampling, batch_size: int, workers: int
) -> Generator[Iterator[Decoded]]:
    """Decode videos in order, a batch ahead of the reader; a video that cannot be read gives its error."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    size = model.frame_size

    def read(path: str) -> Tensor | VideoError:
        try:
            return read_video(path, sampling, size)
        except VideoError as error:
            return error

    def ahead() -> Iterator[Decoded]:
        waiting: deque[tuple[str, Future[Tensor | VideoError]]] = deque()
        for path in paths:
            waiting.append((path, pool.submit(read, path)))
            if len(waiting) > batch_size + workers:
                first, frames = waiting.popleft()
                yield first, frames.result()
        for path, frames in waiting:
            yield path, frames.result()

    try:
        yield ahead()
    finally:
        pool.shutdown(cancel_futures=True)


def check_sampling(model: Encoder, sampling: Sampling | None, batch_size: int, workers: int) -> Sampling:
    """Return the sampling that is given, or the model's default.

    Raises:
        TypeError, ValueError: an argument that does not fit the model.
    """
    check_encoder(model)
    checks.count("batch_size", batch_size)
    checks.count("workers", workers)
    if model.frame_size < 1:
        raise ValueError("model: expected a vision tower that takes frames, got one that takes features")
    sampling = Sampling(max_frames=model.max_frames) if sampling is None else sampling
    if sampling.max_frames > model.max_frames:
        raise ValueError(
            f"sampling: expected at most the {model.max_frames} frames of the model, got {sampling.max_frames}"
        )
    return sampling


def ticks(progress: ProgressCallback | None, done: int, total: int) -> Callable[[], None]:
    """Make a function that reports one more item at each call; the `done` ones are reported at once."""
    count = itertools.count(done)

    def tick() -> None:
        if progress is not None:
            progress(next(count), total)

    tick()
    return tick
