"""The original X-CLIP code, number for number: logits, loss and every gradient from the towers' outputs on.

The original masks neither words nor frames in its word and frame scores, so no mask is given here. The video
vector is made in this file, as the original makes it: frames (through a temporal transformer in seqTransf), L2,
masked mean. What tests/golden holds is said in its README.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import multigrain as mg
from tests.conftest import GOLDEN

# Where each learned matrix of the original lives in ours.
MATRICES = {
    "global_mat_weight": "grains.0.bilinear",
    "word_logit_weight": "grains.1.aggregator.inner_query",
    "frame_logit_weight": "grains.2.aggregator.inner_candidate",
    "local_mat_weight": "grains.3.bilinear",
    "word_mat_weight": "grains.3.aggregator.inner_query",
    "frame_mat_weight2": "grains.3.aggregator.outer_candidate",
    "frame_mat_weight": "grains.3.aggregator.inner_candidate",
    "word_mat_weight2": "grains.3.aggregator.outer_query",
}
folders = pytest.mark.parametrize("folder", ["xclip_tiny_mean", "xclip_tiny_transf"])


def temporal_transformer(frames: Tensor, mask: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """CLIP's text blocks over frames [B, F, D], one head of width 64, and a residual around the whole."""
    x = frames + weights["temporal.positions"]
    hidden = (1 - mask.float())[:, None] * -1e6
    for i in range(sum(name.endswith("ln_1.weight") for name in weights)):
        w = {name.removeprefix(f"temporal.{i}."): value for name, value in weights.items()}
        y = F.layer_norm(x, x.shape[-1:], w["ln_1.weight"], w["ln_1.bias"])
        q, k, v = F.linear(y, w["attn.in_proj_weight"], w["attn.in_proj_bias"]).chunk(3, -1)
        attention = (q @ k.mT / q.shape[-1] ** 0.5 + hidden).softmax(-1)
        x = x + F.linear(attention @ v, w["attn.out_proj.weight"], w["attn.out_proj.bias"])
        y = F.layer_norm(x, x.shape[-1:], w["ln_2.weight"], w["ln_2.bias"])
        y = F.linear(y, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])
        x = x + F.linear(y * torch.sigmoid(1.702 * y), w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
    return x + frames


def video_vector(frames: Tensor, golden: dict[str, Tensor]) -> Tensor:
    mask = golden["video_mask"]
    if "temporal.positions" in golden:
        frames = temporal_transformer(frames, mask, golden)
    return (F.normalize(frames, dim=-1) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def original(golden: dict[str, Tensor]) -> mg.MultiGrain:
    """X-CLIP's four grains with the eight learned matrices of the golden file."""
    (_, words, dim), frames = golden["words"].shape, golden["frames"].shape[1]
    scorer = mg.MultiGrain(
        mg.VideoSentence(bilinear=dim),
        mg.VideoWord(mg.AOSM(query_tokens=words)),
        mg.SentenceFrame(mg.AOSM(candidate_tokens=frames)),
        mg.FrameWord(mg.AOSM(query_tokens=words, candidate_tokens=frames), bilinear=dim),
    )
    scorer.load_state_dict({ours: golden[theirs] for theirs, ours in MATRICES.items()})
    return scorer


@folders
def test_logits_loss_and_gradients_are_the_original_s(folder, device):
    golden = {name: value.to(device) for name, value in load_file(GOLDEN / f"{folder}.safetensors").items()}
    scorer = original(golden).to(device)
    criterion = mg.InfoNCE(init_logit_scale=golden["logit_scale"].item()).to(device)
    words, frames = (golden[name].clone().requires_grad_() for name in ("words", "frames"))
    sentence = words[torch.arange(len(words)), golden["eos"]]  # the sentence is the word at the end of the text
    sentence.retain_grad()
    assert torch.equal(sentence, golden["sentence"][:, 0])

    text = mg.Features(sentence=sentence, word=words)
    video = mg.Features(video=video_vector(frames, golden), frame=frames)
    logits = criterion.logit_scale.exp() * scorer(text, video)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-5, rtol=1e-5)
    loss = mg.RetrievalLoss(scorer, criterion)(text, video)
    torch.testing.assert_close(loss, golden["loss"], atol=1e-5, rtol=0)

    loss.backward()
    parameters = dict(scorer.named_parameters())
    ours = {theirs: parameters[name].grad for theirs, name in MATRICES.items()}
    ours |= {"sentence": sentence.grad[:, None], "words": words.grad, "frames": frames.grad}
    ours["logit_scale"] = criterion.logit_scale.grad
    assert len(ours) == sum(name.startswith("grad.") for name in golden) == 12
    for name, gradient in ours.items():
        expected = golden[f"grad.{name}"]
        relative = (gradient - expected).abs().max() / expected.abs().max()
        assert relative < 1e-4, f"{folder}: gradient of {name} is off by {relative:.1e} of its largest element"


@folders
def test_masks_change_the_original_s_logits(folder):
    """The library's default, masked, is another score on purpose: in the original, padding takes attention."""
    golden = load_file(GOLDEN / f"{folder}.safetensors")
    text = mg.Features(sentence=golden["sentence"], word=(golden["words"], golden["word_mask"]))
    video = mg.Features(video=video_vector(golden["frames"], golden), frame=(golden["frames"], golden["video_mask"]))
    logits = golden["logit_scale"].exp() * original(golden)(text, video)
    assert (logits - golden["logits"]).abs().max() > 1e-3
