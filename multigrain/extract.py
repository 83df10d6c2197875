"""From video files to Features: a few at once, or a whole collection on disk. Needs the extra ``data``.

    features = encode_videos(model, ["a.mp4", "b.mp4"])          # Features(video [2, D], frame [2, N, D])
    report = extract(model, ["videos/"], "features/")            # resumable, in shards (see Collection)
    report.videos, report.broken                                 # 9987, {"/videos/x.mp4": "no such file"}

Decoding runs ahead in threads while the model computes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from . import checks, files
from .collection import Collection
from .data.files import Location, list_videos
from .data.video import Sampling, VideoError, batch, read_video
from .models.evaluating import evaluating
from .scoring import Progress
from .tokens import Features

if TYPE_CHECKING:
    from .models import XCLIP

Decoded: TypeAlias = "tuple[str, Tensor | VideoError]"

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Report:
    """What an extraction ended with."""

    folder: Path
    videos: int
    """videos with features, those of earlier calls included"""
    encoded: int
    """those that this call encoded"""
    broken: dict[str, str]
    """videos that could not be read -> why; also in broken.txt"""
    repeated: int
    """how often a video was named again; it counts once"""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.videos:,} videos, {self.encoded:,} of them new"]
        if self.repeated:
            lines.append(f"{self.repeated:,} were named more than once")
        if self.broken:
            lines.append(f"{len(self.broken):,} could not be read (nor will be tried again, unless all is done anew):")
            lines += [f"  {video}: {reason}" for video, reason in self.broken.items()]
        return "\n".join(map(checks.printable, lines))


def extract(
    model: XCLIP,
    videos: Iterable[Location],
    out: Location,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    workers: int = 2,
    shard_size: int = 1024,
    dtype: str = "fp16",
    strict: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    model_path: Location | None = None,
) -> Report:
    """Encode videos into a folder of features (see Collection). Killed at any time, the next call goes on.

    A video that the folder already has is not read again, nor is one that could not be read. Resumed, the same call
    ends with the same files as if it had never stopped. A shard that is missing or damaged is made again. One call at a
    time may write to a folder: another one is refused.

    Args:
        videos: files, or folders, which are searched with their subfolders for files that are named like videos.
        sampling: which frames; default one a second, at most the model's max_frames, uniform.
        batch_size: videos in a batch of the model.
        workers: threads that decode.
        shard_size: videos in a file of features.
        dtype: of the features on disk, "fp16" or "fp32".
        strict: stop at the first video that cannot be read; without it they are listed in the report.
        resume: go on with what the folder holds; False deletes the features in it.
        progress: called with (videos done, videos in all).
        model_path: noted in the manifest, for whoever searches without naming a model.

    Raises:
        ImportError: PyAV is not installed.
        TypeError, ValueError: an argument out of range; a folder without videos; features in `out` that were made
            otherwise, or are damaged.
        OSError: `out` cannot be written to, or another process is writing there.
        VideoError: with strict, a video cannot be read.

    Warns:
        UserWarning: a shard was missing or damaged, and is made again.
    """
    checks.count("shard_size", shard_size)
    checks.choice("dtype", dtype, DTYPES)
    sampling = _checked(model, sampling, batch_size, workers)
    if sampling.strategy == "random":
        raise ValueError("sampling: expected frames that a resumed call takes again, got the strategy random")
    named = list_videos(videos)
    paths = list(dict.fromkeys(named))
    settings = {"model": describe(model), "sampling": asdict(sampling), "dtype": dtype}
    note = None if model_path is None else os.path.abspath(model_path)
    with files.lock(files.open_folder(out, "out")):
        collection = Collection.start(out, settings, resume, note)
        if strict:
            for path, reason in collection.broken.items():
                raise VideoError(f"{path}: {reason}")
        known = {*collection.videos, *collection.broken}
        todo, lost = [path for path in paths if path not in known], collection.damaged()
        again = [video for shard in lost for video in shard.videos]
        if lost:
            names = ", ".join(str(shard.file) for shard in lost)
            said = f"{collection.folder}: missing or damaged: {names}; the {len(again)} videos are encoded again"
            warnings.warn(said, stacklevel=2)
        before = len(collection.videos) - len(again)
        tick = _ticks(progress, len(paths) - len(todo), len(paths) + len(again))
        with _decoding(model, [*again, *todo], sampling, batch_size, workers) as stream, evaluating(model):

            def encode(count: int) -> tuple[Features | None, list[str], dict[str, str]]:
                return _encode(model, itertools.islice(stream, count), batch_size, strict, DTYPES[dtype], tick)

            for shard in lost:
                collection.repair(shard, *encode(len(shard.videos)))
            for first in range(0, len(todo), shard_size):
                collection.append(*encode(min(shard_size, len(todo) - first)))
        collection.finish()
        return Report(
            collection.folder,
            len(collection.videos),
            len(collection.videos) - before,
            collection.broken,
            len(named) - len(paths),
        )


def encode_videos(
    model: XCLIP,
    videos: Iterable[Location],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    workers: int = 2,
    progress: Progress | None = None,
) -> Features:
    """Features of videos, in their order, on the device of the model; the arguments are those of `extract`.

    Raises:
        ImportError, TypeError, ValueError: see `extract`; no video.
        VideoError: a video cannot be read.
    """
    sampling = _checked(model, sampling, batch_size, workers)
    paths = list_videos(videos)
    tick = _ticks(progress, 0, len(paths))
    with _decoding(model, paths, sampling, batch_size, workers) as stream, evaluating(model):
        features, _, _ = _encode(model, stream, batch_size, True, None, tick)
    assert features is not None  # strict, and there is a video
    return features.to(model.logit_scale.device)


def describe(model: XCLIP) -> dict[str, Any]:
    """What decides the video features of a model: the settings of its video side and a digest of its weights."""
    config: dict[str, Any] = {} if model.config is None else asdict(model.config)
    head = None if model.recipe is None else model.recipe.video_head
    parts = (("vision", model.vision), ("temporal", model.temporal), ("recipe", head))
    digest = hashlib.sha256()
    for part, module in parts:
        if isinstance(module, nn.Module):
            for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
                digest.update(f"{part}.{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    described = {
        **{name: config.get(name) for name in ("vision", "temporal", "clip")},
        "size": model.vision.size,
        "dim": model.vision.dim,
        "frame_source": model.frame_source,
        "masked": model.masked,
        "max_frames": model.max_frames,
        "weights": digest.hexdigest(),
        # Without a recipe, nothing: features of before there were any remain what they are.
        **({} if model.recipe is None else {"recipe": config.get("recipe")}),
    }
    return json.loads(json.dumps(described, default=str))


def _encode(
    model: XCLIP,
    stream: Iterable[Decoded],
    batch_size: int,
    strict: bool,
    dtype: torch.dtype | None,
    tick: Callable[[], None],
) -> tuple[Features | None, list[str], dict[str, str]]:
    """(features, their videos, broken videos -> why); with a dtype, features of it on the CPU."""
    parts: list[Features] = []
    paths: list[str] = []
    broken: dict[str, str] = {}
    waiting: list[Tensor] = []

    def flush() -> None:
        # Without masks, padding takes part: always as much of it as in training.
        frames, mask = batch(waiting, None if model.masked else model.max_frames)
        device = model.logit_scale.device
        features = model.encode_video(frames.to(device), mask.to(device))
        parts.append(features if dtype is None else features.to("cpu", dtype))
        for name in features.names:
            checks.finite(name, parts[-1][name])
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
def _decoding(
    model: XCLIP, paths: Sequence[str], sampling: Sampling, batch_size: int, workers: int
) -> Generator[Iterator[Decoded]]:
    """Frames of videos, or why there are none, in order; a batch ahead of whoever asks."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    size = model.vision.size

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


def _checked(model: XCLIP, sampling: Sampling | None, batch_size: int, workers: int) -> Sampling:
    """The sampling, once it and the other arguments fit the model."""
    checks.count("batch_size", batch_size)
    checks.count("workers", workers)
    if model.vision.size < 1:
        raise ValueError("model: expected a vision tower that takes frames, got one that takes features")
    sampling = Sampling(max_frames=model.max_frames) if sampling is None else sampling
    if sampling.max_frames > model.max_frames:
        raise ValueError(
            f"sampling: expected at most the {model.max_frames} frames of the model, got {sampling.max_frames}"
        )
    return sampling


def _ticks(progress: Progress | None, done: int, total: int) -> Callable[[], None]:
    """A function that reports one more each time; at once it reports those done before."""
    count = itertools.count(done)

    def tick() -> None:
        if progress is not None:
            progress(next(count), total)

    tick()
    return tick
