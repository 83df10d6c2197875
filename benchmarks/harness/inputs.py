"""Seeded inputs of a shape: tokens and masks of texts and videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import multigrain as mg

from .registry import Shape

# Caption lengths with their start and end token, as of MSR-VTT under CLIP's tokeniser: a log-normal of mean 10.
MEAN_LOG, SD_LOG, SHORTEST = 2.22, 0.4, 4


@dataclass(frozen=True)
class Pair:
    """Tokens of texts [texts, words, D] and of videos [videos, frames, D] with their masks, all frames real."""

    words: Tensor
    word_mask: Tensor
    frames: Tensor
    frame_mask: Tensor
    unit: bool

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """The tensors by which a score is differentiated."""
        return self.words, self.frames

    def text(self, words: Tensor | None = None) -> mg.Features:
        """The texts, or those that other tokens make."""
        return mg.Features(word=mg.Tokens(self.words if words is None else words, self.word_mask, unit=self.unit))

    def video(self, frames: Tensor | None = None) -> mg.Features:
        """The videos, or those that other tokens make."""
        return mg.Features(frame=mg.Tokens(self.frames if frames is None else frames, self.frame_mask, unit=self.unit))


def pair(shape: Shape, device: str, seed: int = 0) -> Pair:
    """The inputs of a shape, on a device."""
    generator = torch.Generator(device).manual_seed(seed)
    words = tokens(shape.texts, shape.words, shape, generator)
    frames = tokens(shape.videos, shape.frames, shape, generator)
    word_mask = torch.ones(shape.texts, shape.words, dtype=torch.bool, device=device)
    if shape.lengths == "msrvtt":
        word_mask = torch.arange(shape.words, device=device) < lengths(shape, seed).to(device)[:, None]
    frame_mask = torch.ones(shape.videos, shape.frames, dtype=torch.bool, device=device)
    return Pair(words, word_mask, frames, frame_mask, shape.unit)


def score_gradient(shape: Shape, device: str) -> Tensor:
    """The gradient [texts, videos] with which a backward pass begins."""
    return torch.randn(shape.texts, shape.videos, generator=torch.Generator().manual_seed(1)).to(device)


def four_grains(shape: Shape, device: str = "cpu") -> tuple[mg.Features, mg.Features]:
    """Texts of words and a sentence, and videos of frames and a video vector."""
    inputs, generator = pair(shape, device), torch.Generator(device).manual_seed(2)
    sentence, video = (tokens(size, 1, shape, generator)[:, 0] for size in (shape.texts, shape.videos))
    text = mg.Features(sentence=mg.Tokens(sentence, unit=shape.unit), word=inputs.text()["word"])
    return text, mg.Features(video=mg.Tokens(video, unit=shape.unit), frame=inputs.video()["frame"])


def as_leaves(features: mg.Features) -> mg.Features:
    """Copy features to leaves that collect gradients."""
    grains = {name: features[name] for name in features.names}
    leaves = {n: mg.Tokens(t.features.detach().requires_grad_(), t.mask, unit=t.unit) for n, t in grains.items()}
    return mg.Features(**leaves)


def tokens(items: int, length: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Random directions [items, length, D]: of length 1, or of lengths between 0.5 and 1.5."""
    x = torch.randn(items, length, shape.dim, generator=generator, device=generator.device)
    x.div_(x.norm(dim=-1, keepdim=True))
    if not shape.unit:
        x.mul_(torch.rand(items, length, 1, generator=generator, device=generator.device).add_(0.5))
    return x.to(shape.torch_dtype)


def lengths(shape: Shape, seed: int = 0) -> Tensor:
    """Words per text [texts], from 4 to all slots."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape.texts, generator=generator).mul_(SD_LOG).add_(MEAN_LOG).exp_().round_()
    return drawn.clamp_(min(SHORTEST, shape.words), shape.words).long()
