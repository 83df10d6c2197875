"""XCLIP: two towers and a recipe, by default X-CLIP's own (Ma et al. 2022, arXiv 2207.07285; see recipe.py).

    sentences -> text tower  -> sentence [B,D], word [B,M,D] -> text head  -+-> scorer -> scores
    frames    -> frame tower -> frame [B,N,D]                -> video head -+-> loss

Three unrelated models are called X-CLIP; this is the one for video-text retrieval, neither Microsoft's video
recogniser nor the package `x-clip`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import checks
from ..data.video import Sampling
from ..losses import InfoNCE
from ..losses.infonce import Ids
from ..recipes import Recipe
from ..tokens import Features
from .build import freeze, is_timm_clip
from .config import ModelConfig
from .encoding import encode_videos
from .loading import PretrainedMixin
from .protocol import digest
from .towers import FeatureTower, FrameTower, TextTower, WordTower


class XCLIP(PretrainedMixin):
    """Encodes sentences and videos into Features, scores and trains on them.

    Args:
        vision: frames [U, 3, H, W] -> features [U, D] (FrameTower).
        text: sentences -> sentence and word features and a mask (TextTower), of the same width D.
        recipe: heads, scorer and loss above the towers: X-CLIP's (see own_recipe), or another system's.
        criterion: the loss of the towers' pretraining on single frames; default InfoNCE(). X-CLIP's own recipe
            shares it.
        masked: keep padded words and frames out of the fine grains. False matches models trained that way.
        max_frames: the most frames of a video, for those who sample them.
        word_weights: give the recipe the grain word_weight (see RecipeConfig).

    Raises:
        ValueError: towers of different widths.
    """

    idf: Tensor | None

    def __init__(
        self,
        vision: FrameTower,
        text: TextTower,
        recipe: Recipe,
        criterion: InfoNCE | None = None,
        *,
        masked: bool = True,
        max_frames: int = 12,
        word_weights: bool = False,
    ) -> None:
        super().__init__()
        if vision.dim != text.dim:
            raise ValueError(f"towers: expected features of one width, got vision {vision.dim} and text {text.dim}")
        self.vision, self.text, self.recipe = vision, text, recipe
        self.criterion = InfoNCE() if criterion is None else criterion
        self.masked, self.max_frames = masked, max_frames
        # By word id, 1 for all until `weigh_words`; 0 for padding and for unknown words.
        known = torch.ones(len(text.vocabulary)) if word_weights and isinstance(text, WordTower) else None
        self.register_buffer("idf", None if known is None else nn.functional.pad(known, (1, 0)))
        self.config: ModelConfig | None = None

    @property
    def scorer(self) -> nn.Module:
        """The recipe's scorer: Features x Features -> scores [texts, videos]."""
        return self.recipe.scorer

    @property
    def temporal(self) -> nn.Module | None:
        """The temporal encoder of X-CLIP's own recipe; None where there is none."""
        return getattr(self.recipe.video_head, "temporal", None)

    @property
    def frame_source(self) -> str:
        """The frames that the fine grains of X-CLIP's own recipe see; "raw" for another recipe."""
        return getattr(self.recipe.video_head, "frame_source", "raw")

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the multiplier of the scores, a parameter.

        It is the first one in the recipe's loss; for a loss that has none, the one of the towers' pretraining.
        """
        found = (p for name, p in self.recipe.loss.named_parameters() if _is_scale(name))
        return next(found, self.criterion.logit_scale)

    @property
    def frame_size(self) -> int:
        """Height and width of the frames that the frame tower wants, in pixels."""
        return self.vision.size

    def words(self, sentence: str) -> list[str]:
        """List the words of a sentence as its word features see them, one for each."""
        return self.text.words(sentence)

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that change whenever the video features do: settings and a digest of weights."""
        config: dict[str, Any] = {} if self.config is None else dataclasses.asdict(self.config)
        parts = {"vision": self.vision, "recipe": self.recipe.video_head}
        tensors = (
            (f"{part}.{name}", value)
            for part, module in parts.items()
            if isinstance(module, nn.Module)
            for name, value in itertools.chain(module.named_parameters(), module.named_buffers())
        )
        described = {
            **{name: config.get(name) for name in ("vision", "temporal", "clip", "recipe")},
            "size": self.vision.size,
            "dim": self.vision.dim,
            "frame_source": self.frame_source,
            "masked": self.masked,
            "max_frames": self.max_frames,
            "weights": digest(tensors),
        }
        return json.loads(json.dumps(described, default=str))

    @property
    def max_words(self) -> int:
        """The most words of a sentence; the text tower cuts longer ones."""
        return self.text.max_words

    def tower_parameters(self, logit_scale: bool = True) -> set[str]:
        """Return the names of the parameters that come from CLIP, to be trained at a lower rate than the rest.

        In X-CLIP's code that is all of CLIP: both towers and, with `logit_scale`, the logit scale. Parameters that
        start from random numbers belong to the rest: a timm tower that is not CLIP's and has no weights of its own,
        its projection in any case, and towers trained from scratch.
        """
        if self.config is None or self.config.clip is None:
            return set()
        names = {name for name, _ in self.named_parameters() if name.startswith(("vision.", "text."))}
        vision = self.config.clip.vision
        if vision is not None and not is_timm_clip(vision.name):
            new = "vision.projection" if vision.kwargs.get("pretrained") else "vision."
            names = {name for name in names if not name.startswith(new)}
        return names | {name for name, _ in self.named_parameters() if logit_scale and _is_scale(name)}

    def train(self, mode: bool = True) -> XCLIP:
        """Set the mode like any module, but keep frozen towers in eval mode, with the statistics that they have."""
        super().train(mode)
        if self.config is not None and self.config.clip is not None and self.config.clip.frozen:
            for tower in (self.vision, self.text):
                if isinstance(tower, nn.Module):
                    tower.eval()
        return self

    def freeze_vision(self, frozen: bool) -> None:
        """Keep the frame tower as it is, or let it train (again) as far as its settings do."""
        if not isinstance(self.vision, nn.Module):
            return
        self.vision.requires_grad_(not frozen)
        if not frozen and self.config is not None and self.config.clip is not None:
            freeze(self.vision, self.config.clip)

    def encode_text(self, sentences: Any) -> Features:
        """Return Features(sentence [B, D], word [B, M, D] with its mask), or the grains that a recipe makes of them.

        Args:
            sentences: a list of strings; for CLIP's tower also token ids [B, W], torch.long, or (ids, mask), see
                ClipText.tokenize; for a FeatureTower (sentence, words, mask).

        Raises:
            TypeError, ValueError: something else, or a sentence without a word.
        """
        sentence, words, real = self.text(sentences)
        text = Features(sentence=sentence, word=(words, real if self.masked else None))
        if self.idf is not None and isinstance(self.text, WordTower):
            weights = self.idf[self.text.tokenize(sentences)[0]][..., None]
            text = Features(sentence=text["sentence"], word=text["word"], word_weight=(weights, real))
        return self.recipe.text_head(text)

    def weigh_words(self, sentences: Iterable[str]) -> None:
        """Learn the word weights of a recipe that wants them: log(N / n) of a word in n of these N sentences."""
        if self.idf is None or not isinstance(self.text, WordTower):
            return
        found, total = Counter[str](), 0
        for sentence in sentences:
            found.update(set(self.text.words(sentence)))
            total += 1
        weights = [math.log(total / found[word]) if found[word] else 0.0 for word in self.text.vocabulary]
        self.idf.copy_(torch.tensor([0.0, *weights]))

    def encode_video(
        self,
        frames: Tensor | str | os.PathLike[str],
        mask: Bool[Tensor, "b n"] | None = None,
        index: Int[Tensor, "b n"] | None = None,
    ) -> Features:
        """Return Features(video [B, D], frame [B, N, D] with its mask), or the grains that a recipe makes of frames.

        Args:
            frames: a video file (see encode_videos); [B, N, 3, H, W], uint8 or floating in [0, 1]; or, with
                `index`, the distinct frames [U, 3, H, W] of all videos, each encoded once. For a FeatureTower,
                [B, N, D] or [U, D].
            mask: [B, N], True = a real frame; None = all. What padded frames hold is never read. Where masks are
                off, videos are padded to max_frames with frames of the mean colour, as in the original: a score
                would otherwise depend on the other videos of the batch.
            index: [B, N], the row of `frames` of each frame.

        Raises:
            TypeError: frames, mask or index of another dtype.
            ValueError: shapes that do not fit, an index outside the frames, frames that are not finite or not in
                [0, 1], or a file that cannot be read.
        """
        if not isinstance(frames, Tensor):
            return self.encode_videos([frames])
        axes = ["D"] if isinstance(self.vision, FeatureTower) else ["3", "H", "W"]
        one, ndim = ", ".join(axes), len(axes)
        if index is None:
            _expect("frames", frames, f"[B, N, {one}] (or [U, {one}] with index)", 2 + ndim)
            videos, frames = len(frames), rearrange(frames, "b n ... -> (b n) ...")
            index = rearrange(torch.arange(len(frames), device=frames.device), "(b n) -> b n", b=videos)
        _expect("frames", frames, f"[U, {one}] with index", 1 + ndim)
        if not frames.is_floating_point() and (axes == ["D"] or frames.dtype != torch.uint8):
            raise TypeError(f"frames: expected floating numbers{' or uint8' * (ndim > 1)}, got {frames.dtype}")
        _expect("index", index, "[B, N]", 2)
        if index.dtype not in (torch.long, torch.int):
            raise TypeError(f"index: expected whole numbers, got {index.dtype}")
        if mask is not None and mask.shape != index.shape:
            raise ValueError(f"mask: expected shape {list(index.shape)}, got {list(mask.shape)}")
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype torch.bool (True = a real frame), got {mask.dtype}")
        index = index.long() if mask is None else torch.where(mask, index, 0)
        checks.indices("index", index.flatten(), len(frames))
        if not self.masked and (missing := self.max_frames - index.shape[1]) > 0:
            mask = nn.functional.pad(torch.ones_like(index, dtype=torch.bool) if mask is None else mask, (0, missing))
            index = nn.functional.pad(index, (0, missing))
        if mask is None:
            return self.video_features(self.vision(frames)[index])
        if not mask.any():
            raise ValueError("mask: expected a real frame in at least one video, got none")
        used, index = _compact(index, mask, len(frames))
        features = self.vision(frames[used])
        if not self.masked:
            features = torch.cat([features, self.vision(self.vision.blank(frames))])
            index = torch.where(mask, index, len(features) - 1)
        return self.video_features(features[index], mask)

    def encode_videos(
        self, paths: Iterable[str | os.PathLike[str]], *, sampling: Sampling | None = None, batch_size: int = 16
    ) -> Features:
        """Encode video files in their order, in eval mode and without a graph; decoding runs ahead.

        Args:
            paths: files; a folder stands for the videos in it.
            sampling: which frames; default one a second, at most max_frames, uniform.
            batch_size: videos at a time.

        Raises:
            ImportError: PyAV is not installed.
            ValueError: a video that cannot be read; its name and the reason are given.
        """
        return encode_videos(self, paths, sampling=sampling, batch_size=batch_size)

    def video_features(self, frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Features:
        """Make the grains of videos from the frame tower's features, like encode_video."""
        video = self.recipe.video_head(Features(frame=(frames, mask)))
        if self.masked:
            return video
        return Features(**{name: video[name] for name in video.names} | {"frame": video["frame"].features})

    def forward(
        self,
        sentences: Any,
        frames: Tensor,
        mask: Bool[Tensor, "b n"] | None = None,
        index: Int[Tensor, "b n"] | None = None,
        ids: Ids | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch of pairs: sentence i belongs to video i (and to all videos with its id).

        Where torch.distributed has several ranks, it is the loss of all their batches (see RetrievalLoss).

        Args:
            sentences: see encode_text.
            frames, mask, index: see encode_video.
            ids: see RetrievalLoss.
        """
        return self.loss(self.encode_text(sentences), self.encode_video(frames, mask, index), ids)

    def loss(self, text: Features, video: Features, ids: Ids | None = None, **settings: Any) -> Float[Tensor, ""]:
        """Compute the loss of a batch of pairs from the features that encode_text and encode_video make.

        Args:
            settings: see Recipe.loss_of.
        """
        return self.recipe.loss_of(text, video, ids, **settings)


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] == "logit_scale"


def _compact(index: Tensor, mask: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return the rows that real frames use, and the index into these rows (0 where padded)."""
    used = torch.zeros(total, dtype=torch.bool, device=index.device)
    used[index[mask]] = True
    new = torch.where(used, used.cumsum(0) - 1, 0)
    return used.nonzero()[:, 0], torch.where(mask, new[index], 0)


def _expect(name: str, value: Tensor, shape: str, ndim: int) -> None:
    if value.ndim != ndim or 0 in value.shape:
        raise ValueError(f"{name}: expected shape {shape}, got {list(value.shape)}")
