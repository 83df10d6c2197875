"""Scorers of several grains, what they score, and their outcome: for tests of how kernels are reached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import multigrain as mg
from tests.kernels.problems import Attentive
from tests.strategies import randomise


def features(masked: bool = True, items: tuple[int, int] = (9, 8), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """sentence, word, video, frame and the masks of words and frames."""
    generator = torch.Generator().manual_seed(0)
    q, c = items
    shapes = [(q, 16), (q, 7, 16), (c, 16), (c, 5, 16)]
    x = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    masks = [torch.rand(*x[i].shape[:2], generator=generator) < 0.7 if masked else None for i in (1, 3)]
    return [*x, *masks]


def four_grains(backend: str | None, *more: mg.Grain) -> mg.MultiGrain:
    grains = (mg.VideoSentence(bilinear=16), mg.VideoWord(), mg.SentenceFrame("mean_max"), mg.FrameWord(bilinear=16))
    return randomise(mg.MultiGrain(*grains, *more, weights="learned", backend=backend))


def five_grains(backend: str | None) -> mg.MultiGrain:
    return four_grains(backend, mg.Grain("word", "frame", Attentive(), name="own"))


def scoring(module: mg.MultiGrain) -> Callable[..., Tensor]:
    def call(sentence, word, video, frame, word_mask, frame_mask):
        text = mg.Features(sentence=sentence, word=(word, word_mask))
        return module(text, mg.Features(video=video, frame=(frame, frame_mask)))

    return call


def outcome(module: nn.Module, call: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The scores of a call, and the gradients by features and by the parameters of the module."""
    leaves = [x.detach().clone().requires_grad_() for x in given[:4]]
    scores = call(*leaves, *given[4:])
    module.zero_grad()
    scores.backward(torch.arange(scores.numel()).view(scores.shape).to(scores))
    grads = [x.grad for x in (*leaves, *module.parameters())]
    assert all(x is not None for x in grads)
    return [scores.detach(), *(x.clone() for x in grads)]


def same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max())), rtol=0)


def pair(items: tuple[int, int] = (9, 8)) -> tuple[mg.Features, mg.Features]:
    sentence, word, video, frame, word_mask, frame_mask = features(items=items)
    return mg.Features(sentence=sentence, word=(word, word_mask)), mg.Features(video=video, frame=(frame, frame_mask))
