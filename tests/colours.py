"""A model without anything to learn: videos are their mean colours, words are names of colours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import multigrain as mg
from multigrain.models import XCLIP
from multigrain.models.recipe import own_recipe

RGB = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1), "purple": (1, -1, 1)}


class ColourFrames(nn.Module):
    dim, size = 3, 16

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, frames: Tensor) -> Tensor:
        return self.gain * (frames.float().mean((2, 3)) / 255 - 0.5)

    def blank(self, frames: Tensor) -> Tensor:
        return frames.new_full((1, *frames.shape[1:]), 128)


class ColourWords(nn.Module):
    dim, max_words = 3, 8

    def forward(self, sentences: list[str], _: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        split = [self.words(sentence) for sentence in sentences]
        words = torch.zeros(len(split), max(map(len, split)), 3)
        mask = torch.zeros(words.shape[:2], dtype=torch.bool)
        for i, names in enumerate(split):
            words[i, : len(names)] = torch.tensor([RGB[name] for name in names])
            mask[i, : len(names)] = True
        return words.sum(1) / mask.sum(1, keepdim=True), words, mask

    def words(self, sentence: str) -> list[str]:
        return [word for word in sentence.split() if word in RGB]


def colour_model(masked: bool = True, max_frames: int = 4) -> XCLIP:
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord(), weights=[4, 1, 2, 1])
    return XCLIP(ColourFrames(), ColourWords(), own_recipe(scorer), masked=masked, max_frames=max_frames)
