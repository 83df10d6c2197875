"""Mutated videos: frames, or a VideoError of one line."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import av

from multigrain.data.video import Sampling, VideoError, read_video
from tests.clips import write_clip

from .mutate import mutate

# name, codec, other settings: ten kinds of containers and more
SEEDS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("mpeg4.mp4", "mpeg4", {}),
    ("h264.mp4", "libx264", {"options": {"bf": "2"}}),
    ("av1.mp4", "libsvtav1", {}),
    ("mjpeg.mov", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("h264.mov", "libx264", {}),
    ("mpeg4.mkv", "mpeg4", {}),
    ("h264.mkv", "libx264", {}),
    ("vp9.webm", "libvpx-vp9", {}),
    ("vp8.webm", "libvpx", {}),
    ("mpeg4.avi", "mpeg4", {}),
    ("flv1.flv", "flv", {}),
    ("mpeg2.ts", "mpeg2video", {"rate": 25}),
    ("h264.ts", "libx264", {}),
    ("mpeg1.mpg", "mpeg1video", {"rate": 25}),
    ("vp8.ogv", "libvpx", {}),
    ("small.gif", "gif", {"pix_fmt": "rgb8"}),
    ("raw.y4m", "wrapped_avframe", {"size": (32, 16)}),
    ("wmv2.wmv", "wmv2", {}),
    ("small.apng", "apng", {"pix_fmt": "rgb24"}),
    ("h263.3gp", "h263", {"size": (176, 144)}),
    ("bare.h264", "libx264", {}),
    ("mpeg2.mxf", "mpeg2video", {"rate": 25}),
)
_REASON = 500  # letters of a message beyond the path


@dataclass(frozen=True)
class Videos:
    """Cases by number: seed file, mutation and sampling follow from it alone.

    Args:
        contents: the seeds, by name.
        folder: where the mutated files are written and, where they broke something, kept.
        seed: of all cases.
    """

    contents: dict[str, bytes]
    folder: Path
    seed: int = 0

    def case(self, number: int) -> tuple[str, bytes, Sampling]:
        """Name, content and sampling of a case."""
        rng = random.Random(f"{self.seed}:video:{number}")
        names = list(self.contents)
        name = names[number % len(names)]
        content = mutate(self.contents[name], self.contents[rng.choice(names)], rng)
        strategy = rng.choice(("uniform", "head", "random", "segment"))
        return name, content, Sampling(rng.choice((1.0, 4.0, 1000.0)), 12, strategy)

    def __call__(self, number: int) -> str:
        """Read a case: "frames" or "VideoError"; anything else is raised."""
        name, content, sampling = self.case(number)
        path = self.folder / f"{number}-{name}"
        path.write_bytes(content)
        outcome = self.judge(path, sampling, number)
        path.unlink()
        return outcome

    @staticmethod
    def judge(path: Path, sampling: Sampling, seed: int) -> str:
        """How reading a file ends."""
        try:
            frames = read_video(path, sampling, 32, seed=seed)
        except VideoError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message, message
            assert len(message) < len(str(path)) + _REASON, message
            return "VideoError"
        assert 1 <= len(frames) <= 12 and frames.shape[1:] == (3, 32, 32), frames.shape
        return "frames"


def seeds(folder: Path) -> dict[str, bytes]:
    """Whole videos of two seconds, of the containers and codecs that PyAV here can write."""
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder tells a lot
    return {
        name: write_clip(folder / name, range(20), codec=codec, title="a title", **settings).read_bytes()  # type: ignore[arg-type]
        for name, codec, settings in SEEDS
        if codec in av.codecs_available
    }
