"""Videos as frames for a tower: the choice of frames, and their reading. The extra ``data`` is needed.

    frames = read_video("clip.mp4", Sampling(fps=1, max_frames=12))      # uint8 [n, 3, 224, 224], n <= 12
    frames, mask = batch([frames, read_video("other.mp4")])              # [2, F, 3, 224, 224], [2, F]

Candidates are frames at a steady rate: candidate k is the frame on the screen at start + k / fps seconds, the last
one with a timestamp of at most that time (to 0.5 ms: many containers round to milliseconds). Time runs from the
first frame of the video stream, whatever its timestamp. There is a candidate for each such time before the end, and
at least one, however short the clip. `sample` then takes at most max_frames of them.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from ... import checks
from .container import VideoError, unreadable
from .decode import TOLERANCE, read_file, read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STRATEGIES = ("uniform", "head", "random", "segment")
BACKENDS = ("auto", "torchcodec", "pyav")

VideoSource: TypeAlias = "str | os.PathLike[str] | Tensor | NDArray[np.uint8]"

_IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".webp"])
_LONGEST = 8  # times the shorter side
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Sampling:
    """Settings that choose the frames of a video.

    Args:
        fps: candidates per second; 1 as published.
        max_frames: the most frames taken.
        strategy: how they are chosen among more candidates, see `sample`.

    Raises:
        TypeError, ValueError: a value out of range.
    """

    fps: float = 1.0
    max_frames: int = 12
    strategy: str = "uniform"

    def __post_init__(self) -> None:
        checks.positive("fps", self.fps)
        checks.count("max_frames", self.max_frames)
        checks.choice("strategy", self.strategy, STRATEGIES)


def sample(total: int, sampling: Sampling, generator: torch.Generator | None = None) -> list[int]:
    """Choose among `total` candidate frames, in order: all, if they are at most max_frames, else by strategy.

    - uniform: the integer part of max_frames even steps from the first to the last, like CLIP4Clip's
      ``slice_framepos 2`` and X-CLIP (max_frames=1: the first).
    - head: the first ones.
    - random: any, without repetition, by `generator` or else by torch's own.
    - segment: one frame of each of max_frames equal parts (TSN, arXiv 1608.00859), drawn by `generator`; without
      one, the middle frame of each part.

    Raises:
        TypeError, ValueError: total is no positive integer.
    """
    checks.count("total", total)
    n = min(total, sampling.max_frames)
    match sampling.strategy:
        case "uniform" if 1 < n < total:
            # Rounded like numpy.linspace(0, total - 1, n, dtype=int), with a step in floats.
            step = (total - 1) / (n - 1)
            return [int(i * step) for i in range(n - 1)] + [total - 1]
        case "random" if n < total:
            return _random_rows(n, total, generator)
        case "segment":
            parts = itertools.pairwise(i * total // n for i in range(n + 1))
            if generator is None:
                return [(a + b - 1) // 2 for a, b in parts]
            return [int(torch.randint(a, b, (), generator=generator)) for a, b in parts]
        case _:
            return list(range(n))


def _random_rows(n: int, total: int, generator: torch.Generator | None) -> list[int]:
    """Draw n of total numbers, in order, each set as likely as any other; memory for n alone (Floyd's algorithm)."""
    drawn: set[int] = set()
    for last in range(total - n, total):
        number = int(torch.randint(last + 1, (), generator=generator))
        drawn.add(last if number in drawn else number)
    return sorted(drawn)


def read_video(
    source: VideoSource,
    sampling: Sampling = Sampling(),
    size: int = 224,
    start: float | None = None,
    end: float | None = None,
    seed: int | None = None,
    backend: str = "auto",
    frame_rate: float | None = None,
) -> UInt8[Tensor, "n 3 size size"]:
    """Read the sampled frames of a video, upright, for a tower.

    CLIP's preparation of images: the shorter side is resized (bicubic, antialiased), and the centre cut out.

    Args:
        source: a video file; a folder of images, in natural order of their names (2.png before 10.png); or frames
            uint8 [N, H, W, 3] or [N, 3, H, W], an array or a tensor.
        size: the side of the frames, in pixels.
        start, end: the part of the video that is meant, in seconds; an end after the video's own stands for that.
        seed: of the strategies random and segment.
        backend: "pyav"; "torchcodec", faster, for mp4, mov, mkv and webm alone; or "auto", torchcodec where it
            loads and serves. Both take the same frames.
        frame_rate: frames per second of a folder or an array; None = each of its frames is a candidate.

    Raises:
        ImportError: PyAV (or the backend asked for) is not installed.
        TypeError, ValueError: an argument out of range; for an array, a wrong dtype or shape.
        VideoError: the video is missing, empty, damaged or cut off, has no frames or too large ones, ends before
            `start`, or cannot be read for any other reason; the message is one line that begins with its name.
    """
    checks.count("size", size)
    checks.choice("backend", backend, BACKENDS)
    _check_span(start, end)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    is_path = isinstance(source, (str, os.PathLike))
    name = os.fspath(source) if is_path else "array of frames"

    def times(seconds: float) -> list[float]:
        return _times(name, seconds, sampling, start or 0.0, end, generator)

    def rows(frames: int) -> list[int]:
        if frame_rate is not None:
            rate = checks.positive("frame_rate", frame_rate)
            return [min(int((time + TOLERANCE) * rate), frames - 1) for time in times(frames / rate)]
        if start is not None or end is not None:
            raise VideoError(
                f"{name}: frame_rate: expected frames per second, to find start and end in seconds; got None"
            )
        return sample(frames, sampling, generator)

    if not is_path:
        array = _channels_first(source)
        return torch.stack([_fit(array[i], size) for i in rows(len(array))])
    if frame_rate is not None and not os.path.isdir(source):
        raise ValueError(f"frame_rate: expected None for a video file, which has its own, got {frame_rate}")
    try:
        return _read_path(Path(source), size, backend, times, rows)
    except (VideoError, ImportError):
        raise
    except Exception as error:  # a file, a name or too little memory makes the libraries raise many kinds
        raise unreadable(name, f"cannot be read: {type(error).__name__}: {error}") from error


def _read_path(
    path: Path, size: int, backend: str, times: Callable[[float], list[float]], rows: Callable[[int], list[int]]
) -> Tensor:
    """Read the frames of a file at these times, or of a folder in these rows."""
    if os.path.isdir(path):
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES), key=_natural)
        if not files:
            raise unreadable(path, "no images in the folder")
        return torch.stack([_fit(read_image(files[i]), size) for i in rows(len(files))])
    return torch.stack(read_file(path, backend, times, lambda frame: _fit(frame, size)))


def batch(
    videos: Sequence[UInt8[Tensor, "n 3 h w"]], length: int | None = None
) -> tuple[UInt8[Tensor, "b f 3 h w"], Bool[Tensor, "b f"]]:
    """Pad videos of different lengths with zeros to one tensor; return it and its mask (True = a real frame).

    Args:
        length: F; None = the longest.

    Raises:
        ValueError: no video, frames that differ in size, or a video longer than F.
    """
    if not videos:
        raise ValueError("videos: expected at least one, got none")
    for i, video in enumerate(videos):
        if video.ndim != 4 or 0 in video.shape or video.shape[1:] != videos[0].shape[1:]:
            raise ValueError(
                f"videos[{i}]: expected frames [n, 3, H, W] of one size, got {list(video.shape)} "
                f"beside {list(videos[0].shape)}"
            )
    longest = max(map(len, videos))
    if length is not None and longest > length:
        raise ValueError(f"length: expected at least the {longest} frames of the longest video, got {length}")
    slots = longest if length is None else length
    frames = videos[0].new_zeros(len(videos), slots, *videos[0].shape[1:])
    for i, video in enumerate(videos):
        frames[i, : len(video)] = video
    lengths = torch.tensor([[len(video)] for video in videos], device=frames.device)
    return frames, torch.arange(slots, device=frames.device) < lengths


def _times(
    name: str, seconds: float, sampling: Sampling, start: float, end: float | None, generator: torch.Generator | None
) -> list[float]:
    """Return when the chosen frames are shown, in seconds from the beginning."""
    if start > 0 and start >= seconds:
        raise unreadable(name, f"it ends at {seconds:.2f} s, before the start of the clip at {start:.2f} s")
    stop = seconds if end is None else min(end, seconds)
    # Floats do not tell more candidates apart.
    total = max(1, math.ceil(min((stop - start - TOLERANCE) * sampling.fps, 2.0**53)))
    return [start + k / sampling.fps for k in sample(total, sampling, generator)]


def _channels_first(source: object) -> Tensor:
    """Convert an array or a tensor to frames uint8 [N, 3, H, W]."""
    try:
        frames = torch.as_tensor(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"source: expected a path, or frames as an array, got {type(source).__name__}") from error
    if frames.dtype != torch.uint8:
        raise TypeError(f"source: expected frames uint8, got {frames.dtype}")
    if frames.ndim != 4 or 0 in frames.shape or 3 not in (frames.shape[1], frames.shape[3]):
        raise ValueError(f"source: expected frames [N, H, W, 3] or [N, 3, H, W], got {list(frames.shape)}")
    return frames.permute(0, 3, 1, 2) if frames.shape[3] == 3 else frames


def _fit(frame: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 size size"]:
    """Resize a frame by its shorter side and cut out the centre."""
    short = min(frame.shape[1:])
    # Only the middle of a narrow strip is enlarged: all of it might be larger than the memory.
    for dim in (1, 2):
        spare = max(0, frame.shape[dim] - _LONGEST * short) // 2
        frame = frame.narrow(dim, spare, frame.shape[dim] - 2 * spare)
    height, width = frame.shape[1:]
    new = size * height // short, size * width // short
    if new != (height, width):
        frame = functional.interpolate(frame[None], new, mode="bicubic", antialias=True)[0]
    top, left = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return frame[:, top : top + size, left : left + size].contiguous()


def _check_span(start: float | None, end: float | None) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected seconds or None, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected seconds from 0 on, got {value!r}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end: expected a time after the start at {start or 0} s, got {end}")


def _natural(path: Path) -> list[str | int]:
    """Return the sort key that puts 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part.lower() for part in _DIGITS.split(path.name)]
