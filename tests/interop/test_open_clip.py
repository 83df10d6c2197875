"""open_clip's own losses, and ours in their place: the same values and gradients."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor, nn

import multigrain as mg
from multigrain.interop.open_clip import ClipLoss
from tests.worlds import World


def model_output(bias: bool) -> dict[str, Any]:
    """As an open_clip model returns it: unit features, exp(logit scale), and logit_bias where it has one."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2))
    output = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(14.0)}
    if bias:
        output["logit_bias"] = torch.tensor(-3.0)
    return {name: value.requires_grad_() for name, value in output.items()}


@pytest.mark.parametrize(
    ("theirs", "ours", "bias"),
    [
        pytest.param(open_clip.ClipLoss(), ClipLoss(), False, id="ClipLoss"),
        pytest.param(open_clip.ClipLoss(), ClipLoss(), True, id="ClipLoss with a bias"),
        pytest.param(SigLipLoss(), ClipLoss(criterion=mg.Sigmoid(0, 0, learn=False)), True, id="SigLipLoss"),
    ],
)
def test_values_and_gradients_are_open_clips(theirs: nn.Module, ours: nn.Module, bias: bool):
    found = []
    for loss in (theirs, ours):
        inputs = model_output(bias)
        output = loss(**inputs, output_dict=True)
        assert list(output) == ["contrastive_loss"]
        gradients = torch.autograd.grad(output["contrastive_loss"], list(inputs.values()))
        found.append((output["contrastive_loss"], *gradients))
        assert torch.equal(loss(*model_output(bias).values()), output["contrastive_loss"])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_the_signature_is_open_clips():
    def names(loss: type[nn.Module]) -> list[str]:
        return list(inspect.signature(loss.forward).parameters)

    assert names(ClipLoss) == names(open_clip.ClipLoss)


def test_it_trains_an_open_clip_model():
    torch.manual_seed(0)
    tower = {"layers": 1, "width": 32, "heads": 2}
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    clip = open_clip.CLIP(16, vision, tower | {"vocab_size": 50, "context_length": 8}, output_dict=True)
    optimizer = torch.optim.SGD(clip.parameters(), lr=0.1)
    images, texts = torch.rand(4, 3, 16, 16), torch.randint(1, 50, (4, 8))
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ClipLoss()(**clip(images, texts), output_dict=True)["contrastive_loss"]
        torch.testing.assert_close(loss, open_clip.ClipLoss()(**clip(images, texts)), atol=1e-6, rtol=1e-6)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert clip.logit_scale.grad is not None


def test_token_features_and_several_grains():
    generator = torch.Generator().manual_seed(0)
    words, frames = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 4, 8, generator=generator)
    mask = torch.arange(5) < torch.tensor([[2], [5], [1]])
    grain = mg.FrameWord("mean_max")
    scale, criterion = math.exp(2), mg.InfoNCE(init_logit_scale=2.0)
    text, video = mg.Features(word=(words, mask)), mg.Features(frame=frames)
    expected = criterion(grain(text, video))
    torch.testing.assert_close(ClipLoss(grain)(video, text, scale), expected)
    # Tensors count as they are: these are of unit length, as the scorer would make them.
    unit = F.normalize(frames, dim=-1), (F.normalize(words, dim=-1), mask)
    torch.testing.assert_close(ClipLoss(grain)(*unit, scale), expected)
    torch.testing.assert_close(ClipLoss(mg.MultiGrain(grain))(*unit, scale), expected)
    assert not torch.allclose(ClipLoss(grain)(frames, (words, mask), scale), expected)

    scorer = mg.MultiGrain(mg.VideoSentence(), mg.FrameWord("mean_max"))
    text = mg.Features(sentence=words[:, 0], word=(words, mask))
    video = mg.Features(video=frames[:, 0], frame=frames)
    torch.testing.assert_close(ClipLoss(scorer)(video, text, scale), criterion(scorer(text, video)))
    # What it does not read stays where it is: here the words, which no rank has to send.
    read: list[tuple[str, ...]] = []
    coarse = mg.VideoSentence()
    coarse.register_forward_pre_hook(lambda _, sides: read.extend(side.names for side in sides))
    ClipLoss(coarse)(video, text, scale)
    assert read == [("sentence",), ("video",)]


def on_a_rank(rank: int, size: int, gather: str) -> list[Tensor]:
    """The loss, and its gradients by image and text features, logit scale and bias, of this rank's share of a batch."""
    inputs = model_output(bias=True)
    own = torch.arange(6).tensor_split(size)[rank]
    shares = {name: x[own] if x.ndim == 2 else x for name, x in inputs.items()}
    loss = ClipLoss(gather=gather)(**shares)
    return [loss.detach(), *torch.autograd.grad(loss, list(inputs.values()))]


def test_two_ranks_are_one_process(tmp_path: Path):
    expected = on_a_rank(0, 1, "none")
    with World(2, tmp_path) as world:
        for gather in ("local", "global"):
            means = [(a + b) / 2 for a, b in zip(*world(on_a_rank, gather), strict=True)]
            for got, one in zip(means, expected, strict=True):
                torch.testing.assert_close(got, one, atol=1e-6, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"criterion: expected logit_scale 0, not trained.*got 2.659, trained"):
        ClipLoss(criterion=mg.InfoNCE())
    with pytest.raises(ValueError, match=r"criterion: expected logit_scale 0, not trained"):
        ClipLoss(criterion=mg.losses.MarginRanking() + 0.5 * mg.InfoNCE())
    with pytest.raises(TypeError, match="text_features: expected Features, since the scorer names no grains"):
        ClipLoss(nn.Identity())(torch.ones(2, 3), torch.ones(2, 3), 1.0)
