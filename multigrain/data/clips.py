"""Clips: the videos and captions of a manifest as pairs to train and evaluate on. The extra `data` is needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from .manifest import SPLITS, Clip, load_manifest, path_in_manifest, texts_and_targets
from .pairs import Batch
from .video import Sampling, VideoError, read_video


@dataclass(frozen=True)
class Clips:
    """Pairs of a clip and one of its captions; videos are decoded when a batch asks for them.

    Args:
        clips: in order.
        sampling: which frames of a video; each batch gives a max_frames of its own.
        size: side of a frame in pixels.
        strict: raise where a video cannot be read, instead of leaving its pairs out of the batch.
        root: folder of the manifest, which may have been moved together with the videos.
    """

    clips: list[Clip]
    sampling: Sampling
    size: int = 224
    strict: bool = False
    root: Path = Path()

    sentences: list[str] = field(init=False)
    """[N] all captions, clip by clip"""
    names: list[str] = field(init=False)
    """[N] the id of each caption's clip"""
    ids: Int[Tensor, "n"] = field(init=False)
    """[N] the place of each caption's clip: captions of one video are positives of each other"""

    def __post_init__(self) -> None:
        sentences, ids = texts_and_targets(self.clips)
        object.__setattr__(self, "sentences", sentences)
        object.__setattr__(self, "names", [self.clips[i].id for i in ids.tolist()])
        object.__setattr__(self, "ids", ids)

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def sources(self) -> list[str]:
        """[N] the path of each pair's video in the manifest, and the part of it that is meant."""
        sources = [f"{path_in_manifest(clip.video, self.root)}:{clip.start}-{clip.end}" for clip in self.clips]
        return [sources[i] for i in self.ids.tolist()]

    def batch(self, indices: Sequence[int], max_frames: int = 12, seed: int | None = None) -> Batch:
        """Read a batch of pairs; each distinct video is decoded once.

        Args:
            seed: for frames that are sampled at random; None samples uniformly, or the middle of each segment.

        Raises:
            VideoError: with strict, a video that cannot be read.
        """
        rows = list(indices)
        wanted: list[int] = self.ids[rows].tolist()
        frames: dict[int, Tensor] = {}
        broken: list[str] = []
        for number in dict.fromkeys(wanted):
            try:
                frames[number] = self._frames(self.clips[number], max_frames, seed)
            except VideoError as error:
                if self.strict:
                    raise
                broken.append(str(error))
        rows = [row for row, number in zip(rows, wanted, strict=True) if number in frames]
        ends = accumulate(map(len, frames.values()))
        places = {number: range(end - len(frames[number]), end) for number, end in zip(frames, ends, strict=True)}
        index = [places[int(self.ids[row])] for row in rows]
        mask = torch.arange(max(map(len, index), default=0)) < torch.tensor([len(i) for i in index])[:, None]
        return Batch(
            torch.cat(list(frames.values())) if frames else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8),
            torch.tensor([[*i, *[0] * (mask.shape[1] - len(i))] for i in index], dtype=torch.long),
            mask,
            [self.sentences[row] for row in rows],
            self.ids[rows],
            broken,
        )

    def _frames(self, clip: Clip, max_frames: int, seed: int | None) -> Tensor:
        sampling = replace(self.sampling, max_frames=max_frames)
        if seed is None:
            sampling = replace(sampling, strategy="uniform" if sampling.strategy == "random" else sampling.strategy)
        else:
            # The same frames of a clip in any batch and in any process.
            name = f"{seed}:{clip.id}".encode(errors="surrogatepass")
            seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest())
        return read_video(clip.video, sampling, self.size, clip.start, clip.end, seed=seed)


@dataclass(frozen=True)
class Splits:
    """The splits of a manifest."""

    train: Clips
    val: Clips
    test: Clips

    @property
    def single(self) -> Clips:
        """The training clips, for stages that look at one frame."""
        return self.train


def load(
    manifest: str | os.PathLike[str], sampling: Sampling | None = None, *, size: int = 224, strict: bool = False
) -> Splits:
    """Load the pairs of a manifest (see multigrain.data.manifest).

    Args:
        sampling, size, strict: see Clips.

    Raises:
        FileNotFoundError, ValueError: no manifest, or one that is damaged or lacks videos; the line is named.
    """
    clips, sampling = load_manifest(manifest), sampling or Sampling()
    root = Path(manifest).absolute().parent
    return Splits(*(Clips([c for c in clips if c.split == split], sampling, size, strict, root) for split in SPLITS))
