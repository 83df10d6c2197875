"""Small video files whose frames tell their own number: frame i is one flat colour."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

STEP, DIGITS = 40, 6  # a colour is a number of three digits to base 6: codecs blur it by less than half a step
X264 = "libx264" in av.codecs_available
VP9 = "libvpx-vp9" in av.codecs_available


def colour(number: int) -> tuple[int, int, int]:
    r, g, b = (number // DIGITS**k % DIGITS * STEP for k in range(3))
    return r, g, b


def numbers(frames: Tensor) -> list[int]:
    """Which frames of a clip these are [n, 3, H, W]."""
    middle = frames[:, :, frames.shape[2] // 2, frames.shape[3] // 2].float()
    digits = (middle / STEP).round().int().tolist()
    return [r + g * DIGITS + b * DIGITS**2 for r, g, b in digits]


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), colour(number), np.uint8)


def write_clip(
    path: Path,
    frames: Iterable[int] | Sequence[np.ndarray] = range(50),
    times: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """Encode frames (their numbers, or pictures) at times in units of 1 / rate; by default one after the other."""
    best = {"flags": "qscale", "global_quality": "236"} if codec.startswith("mpeg") else {}
    pictures = [picture(f, *size) if isinstance(f, int) else f for f in frames]
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(codec, rate=rate, options={**best, **(options or {})})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        for time, pixels in zip(times or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate(path: Path) -> None:
    """Tell players of an mp4 to turn it by a quarter, clockwise."""
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
