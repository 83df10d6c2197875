"""Extraction: from video files to a folder of features. Needs the extra ``data``.

report = extract(model, ["videos/"], "features/")            # resumable, in shards (see Collection)
report.videos, report.broken                                 # 9987, {"/videos/x.mp4": "no such file"}
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import checks, files
from ..data.video import Sampling, VideoError
from ..data.video.files import Location, list_videos
from ..models.encoding import Encoded, check_sampling, decoding, encode_decoded, ticks
from ..models.protocol import Encoder, evaluating, fingerprint
from ..scoring import ProgressCallback
from .collection import Collection

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class ExtractionReport:
    """Result of an extraction."""

    folder: Path
    videos: int
    """Videos with features, including those of earlier calls."""
    encoded: int
    """Videos that this call encoded."""
    broken: dict[str, str]
    """Videos that could not be read -> why; also in broken.txt."""
    repeated: int
    """Number of times that a video was named again; it counts once."""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.videos:,} videos, {self.encoded:,} of them new"]
        if self.repeated:
            lines.append(f"{self.repeated:,} were named more than once")
        if self.broken:
            lines.append(f"{len(self.broken):,} could not be read (nor will be tried again, unless all is done anew):")
            lines += [f"  {video}: {reason}" for video, reason in self.broken.items()]
        return "\n".join(map(checks.printable, lines))


def extract(
    model: Encoder,
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
    progress: ProgressCallback | None = None,
    model_path: Location | None = None,
) -> ExtractionReport:
    """Encode videos into a folder of features (see Collection). After a kill, the next call goes on.

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
    sampling = check_sampling(model, sampling, batch_size, workers)
    if sampling.strategy == "random":
        raise ValueError("sampling: expected frames that a resumed call takes again, got the strategy random")
    named = list_videos(videos)
    paths = list(dict.fromkeys(named))
    settings = {"model": fingerprint(model), "sampling": asdict(sampling), "dtype": dtype}
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
        tick = ticks(progress, len(paths) - len(todo), len(paths) + len(again))
        with decoding(model, [*again, *todo], sampling, batch_size, workers) as stream, evaluating(model):

            def encode(count: int) -> Encoded:
                return encode_decoded(model, itertools.islice(stream, count), batch_size, strict, DTYPES[dtype], tick)

            for shard in lost:
                collection.repair(shard, *encode(len(shard.videos)))
            for first in range(0, len(todo), shard_size):
                collection.append(*encode(min(shard_size, len(todo) - first)))
        collection.finish()
        encoded, repeated = len(collection.videos) - before, len(named) - len(paths)
        return ExtractionReport(collection.folder, len(collection.videos), encoded, collection.broken, repeated)
