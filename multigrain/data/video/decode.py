"""Frames of a video file at given times, by PyAV or torchcodec.

Time runs from the first frame of the video stream. The frame at time t is the one on the screen: the last with a
timestamp of at most t + 0.5 ms, since many containers round timestamps to milliseconds.

A first pass reads packets without decoding them: how long the video is, where its keyframes are, whether the file
is cut off. The second pass decodes in the order of time, and converts only the frames that are asked for.
"""

from __future__ import annotations

import bisect
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .container import Opened, VideoError, open_video, pyav, unreadable

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

Choose = Callable[[float], Sequence[float]]
"""Length of a video in seconds -> times in it, ascending."""
Prepare = Callable[[Tensor], Tensor]
"""A frame [3, H, W] uint8 -> the tensor that is kept of it."""

TOLERANCE = 5e-4
"""Seconds by which a frame may be late."""
_CUT_OFF = 1.0  # seconds that the streams may end before what the header promises
_INDEXED = ("mov", "matroska")  # containers that mark keyframes and seek by an index
_SEALED = ("mov", "matroska", "avi")  # containers whose header says how long the file is
_CHUNK = 8  # frames that torchcodec holds at full size


@dataclass(frozen=True)
class _Index:
    """The times of a video stream's frames, from its packets, in ticks of its clock."""

    tick: Fraction
    """seconds"""
    times: list[int]
    """timestamps of the frames, ascending"""
    end: int
    """when the last frame ends"""
    rate: Fraction
    """frames per second, on average"""
    indexed: bool = False
    """the container knows the time of each frame"""
    keys: list[int] = field(default_factory=list[int])
    """keyframes from which decoding may start"""
    counted: bool = False
    """there are no usable timestamps: frame i is at i / rate"""

    @property
    def seconds(self) -> float:
        return float((self.end - self.times[0]) * self.tick)

    def due(self, time: float) -> int:
        """Return the latest timestamp, in ticks, that a frame shown at a time in seconds may have."""
        return self.times[0] + int((Fraction(time) + Fraction(TOLERANCE)) / self.tick)


def _by_count(frames: int, rate: Fraction) -> _Index:
    return _Index(1 / rate, list(range(frames)), frames, rate, counted=True)


class _Retry(Exception):
    """Reading must start again with this index, because the first one was wrong."""

    def __init__(self, index: _Index) -> None:
        super().__init__()
        self.index = index


def read_file(path: Path, backend: str, choose: Choose, prepare: Prepare) -> list[Tensor]:
    """Return the prepared frames of a file at the chosen times.

    Raises:
        ImportError: PyAV, or the backend asked for, does not load.
        VideoError: the file cannot be read to the last of these frames.
    """
    index = _scan(path)
    if backend == "torchcodec" or (backend == "auto" and torchcodec_loads()):
        try:
            return _read_torchcodec(path, index, choose(index.seconds), prepare)
        except VideoError:
            if backend == "torchcodec":
                raise
    while True:
        try:
            return list(_prepared(path, index, [index.due(t) for t in choose(index.seconds)], prepare))
        except _Retry as retry:
            index = retry.index


def _read_torchcodec(path: Path, index: _Index, times: Sequence[float], prepare: Prepare) -> list[Tensor]:
    """Read the frames that PyAV would give, or raise a VideoError."""
    if not index.indexed:
        raise unreadable(path, "torchcodec finds exact frames in mp4, mov, mkv and webm alone; use pyav")
    decoders = _torchcodec()
    expected = [index.times[bisect.bisect_right(index.times, index.due(t)) - 1] for t in times]
    frames: list[Tensor] = []
    try:
        decoder = decoders.VideoDecoder(str(path.absolute()), seek_mode="exact", num_ffmpeg_threads=1)
        for i in range(0, len(expected), _CHUNK):
            # A hair after the timestamp, which torchcodec rounds to a float.
            asked = [float((time + Fraction(1, 8)) * index.tick) for time in expected[i : i + _CHUNK]]
            got = decoder.get_frames_played_at(asked)
            if any(not -0.5 < (b - a) / float(index.tick) < 0.5 for a, b in zip(asked, got.pts_seconds, strict=True)):
                raise unreadable(path, "torchcodec gives other frames than those asked for; use pyav")
            frames += map(prepare, got.data)
    except (RuntimeError, IndexError) as error:
        raise unreadable(path, f"torchcodec cannot decode it: {error}") from error
    return frames


@functools.cache
def torchcodec_loads() -> bool:
    """Tell whether torchcodec is installed and decodes a picture: it needs FFmpeg's libraries and its own torch."""
    try:
        picture = b"YUV4MPEG2 W16 H16 F1:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(16 * 16 * 3 // 2)
        return tuple(_torchcodec().VideoDecoder(picture)[0].shape) == (3, 16, 16)
    except Exception:  # a library that does not load fails in many ways
        return False


def read_image(path: Path) -> Tensor:
    """Read one picture [3, H, W] uint8.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: it cannot be read.
    """
    with open_video(path) as opened:
        frame = next(opened.frames(), None)
        if frame is None:
            raise unreadable(path, "no picture in it")
        return _rgb(frame)


def _scan(path: Path) -> _Index:
    """Read all packets, and refuse a file that is cut off."""
    spans: dict[int, tuple[Fraction, int, int]] = {}  # stream -> tick, begin, end
    shown: list[tuple[int, bool]] = []
    packets = last = 0
    with open_video(path) as opened:
        container, stream, size = opened.container, opened.stream, path.stat().st_size
        for packet in opened.packets():
            if packet.size == 0 or packet.is_discard:
                continue
            duration = packet.duration or 0
            if packet.pts is not None:
                _, begin, end = spans.get(packet.stream.index, (None, packet.pts, packet.pts))
                span = min(begin, packet.pts), max(end, packet.pts + duration)
                spans[packet.stream.index] = packet.time_base, *span
            if packet.stream.index != stream.index:
                continue
            if packet.is_corrupt and container.format.name.startswith(_SEALED):
                raise unreadable(path, "truncated or damaged: a packet is cut off")
            # Of frames that are stored out of order, mp4 knows how far apart they are decoded, not how long each is
            # shown; the last one stored says what comes after the last one shown.
            packets, last = packets + 1, duration
            if packets > size:
                raise unreadable(path, "damaged: it promises more frames than it has bytes")
            if packet.pts is not None:
                shown.append((packet.pts, packet.is_keyframe))
        if packets == 0:
            raise unreadable(path, "no frames in its video stream")
        bare = _check_whole(path, container, list(spans.values()))
        indexed = container.format.name.startswith(_INDEXED)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)  # FFmpeg's own guess
        if bare or stream.time_base is None or len(shown) < packets:
            return _by_count(packets, rate)
        shown.sort()
        times = [time for time, _ in shown]
        keys = [time for time, is_key in shown if is_key] if indexed else []
        return _Index(stream.time_base, times, times[-1] + last, rate, indexed, keys)


def _check_whole(path: Path, container: InputContainer, spans: Sequence[tuple[Fraction, int, int]]) -> bool:
    """Refuse a file of which a part is missing; return True for a bare stream without times.

    Args:
        spans: tick, begin and end of each stream.
    """
    layout, promised = container.format, (container.duration or 0) / 1e6
    begin = min([begin * tick for tick, begin, _ in spans], default=Fraction(0))
    length = float(max([end * tick for tick, _, end in spans], default=Fraction(0)) - min(begin, 0))
    if layout.name.startswith(_SEALED) and promised > length + _CUT_OFF:
        raise unreadable(path, f"truncated: ends after {length:.1f} of {promised:.1f} s")
    bare = bool(layout.flags & pyav().format.Flags.no_timestamps.value)
    suffix = path.suffix.lower()[1:]
    if bare and suffix and suffix not in layout.extensions:  # FFmpeg finds frames even in the middle of a file
        raise unreadable(path, f"damaged: a bare {layout.name} stream in place of a {suffix} file")
    return bare


def _prepared(path: Path, index: _Index, targets: Sequence[int], prepare: Prepare) -> Iterator[Tensor]:
    """Yield a prepared frame for each target; targets on one frame share one tensor."""
    before: VideoFrame | None = None
    prepared = torch.empty(0)
    for frame in _at(path, index, targets):
        if frame is not before:
            before, prepared = frame, prepare(_rgb(frame))
        yield prepared


def _at(path: Path, index: _Index, targets: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield the frame on the screen at each target, in ticks."""
    with open_video(path) as opened:
        frames = _timed(opened, index)
        on, (time, ahead) = None, next(frames, (0, None))
        if ahead is None:
            raise unreadable(path, "no frame of it can be decoded")
        for target in targets:
            key = bisect.bisect_right(index.keys, target) - 1
            if key > 0 and ahead is not None and time < index.keys[key]:
                frames = _timed_from(opened, index, index.keys[key])
                on, (time, ahead) = None, next(frames, (0, None))
                # Some keyframes are marked and yet no decoder can start there (H.264's intra refresh).
                if ahead is None or time > target or ahead.is_corrupt:
                    raise _Retry(replace(index, keys=[]))
            while ahead is not None and time <= target:
                on, shown_at = ahead, time
                time, ahead = next(frames, (0, None))
                if ahead is None and (index.times[-1] - shown_at) * index.tick > _CUT_OFF:
                    seconds = float((shown_at - index.times[0]) * index.tick)
                    raise unreadable(path, f"truncated or damaged: no frame after {seconds:.1f} s")
            # A stream cut out of a longer one may begin with frames that lack what they refer to.
            frame = on or ahead
            assert frame is not None
            yield frame


def _timed_from(opened: Opened, index: _Index, key: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frames from a keyframe on, with their times."""
    try:
        opened.container.seek(key, stream=opened.stream)
    except pyav().error.FFmpegError as error:
        raise _Retry(replace(index, keys=[])) from error
    return _timed(opened, index)


def _timed(opened: Opened, index: _Index) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frames from here on with their times in ticks, which must not run backwards."""
    before: int | None = None
    for i, frame in enumerate(opened.frames()):
        time = i if index.counted else frame.pts
        if time is None or (before is not None and time < before):
            raise _Retry(_by_count(len(index.times), index.rate))
        before = time
        yield time, frame


def _rgb(frame: VideoFrame) -> Tensor:
    """Convert a frame to [3, H, W] uint8, upright."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(pixels, frame.rotation // 90, (1, 2)) if frame.rotation % 360 else pixels


def _torchcodec() -> Any:
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f'torchcodec does not load: pip install "multigrain[data-fast]", which needs FFmpeg ({error})'
        ) from error
