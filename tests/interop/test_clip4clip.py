"""A CLIP4Clip in miniature, trained and evaluated in its own loop, before and after its similarity is exchanged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import multigrain as mg
from multigrain.interop.clip4clip import to_features

D, WORDS, FRAMES, SIDE = 8, 6, 4, 2


class CrossEn(nn.Module):
    def forward(self, sim_matrix: Tensor) -> Tensor:
        return -torch.diag(F.log_softmax(sim_matrix, dim=-1)).mean()


class Clip(nn.Module):
    """In the place of CLIP: word features, a sentence at the highest id, one vector for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.frames = nn.Embedding(20, D), nn.Linear(3 * SIDE * SIDE, D)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


class CLIP4Clip(nn.Module):
    """Its forward pass with meanP, shapes and names as there."""

    loose_type = True

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.loss_fct = Clip(), CrossEn()

    def get_sequence_output(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        seq_features = self.clip.words(input_ids)
        return seq_features[torch.arange(len(input_ids)), input_ids.argmax(-1)][:, None], seq_features

    def get_visual_output(self, video: Tensor) -> Tensor:
        b, pair, bs, ts, *_ = video.shape
        return self.clip.frames(video.reshape(b * pair * bs * ts, -1)).view(b * pair, bs * ts, D)

    def get_similarity_logits(
        self, sequence_output: Tensor, visual_output: Tensor, attention_mask: Tensor, video_mask: Tensor
    ) -> Tensor:
        visual_output = visual_output / visual_output.norm(dim=-1, keepdim=True)
        video_mask_un = video_mask.view(-1, FRAMES).to(dtype=torch.float)[..., None]
        visual_output = (visual_output * video_mask_un).sum(1) / video_mask_un.sum(1)
        visual_output = visual_output / visual_output.norm(dim=-1, keepdim=True)
        sequence_output = sequence_output.squeeze(1)
        sequence_output = sequence_output / sequence_output.norm(dim=-1, keepdim=True)
        return self.clip.logit_scale.exp() * sequence_output @ visual_output.T

    def forward(self, input_ids: Tensor, input_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        input_ids, input_mask = input_ids.view(-1, WORDS), input_mask.view(-1, WORDS)
        sequence_output, _ = self.get_sequence_output(input_ids)
        sim_matrix = self.get_similarity_logits(
            sequence_output, self.get_visual_output(video), input_mask, video_mask.view(-1, FRAMES)
        )
        return (self.loss_fct(sim_matrix) + self.loss_fct(sim_matrix.T)) / 2


class After(CLIP4Clip):
    """The same towers under a scorer and a criterion of multigrain."""

    def __init__(self, scorer: mg.MultiGrain) -> None:
        super().__init__()
        del self.clip.logit_scale
        self.loss = mg.RetrievalLoss(scorer, mg.InfoNCE())

    def features(self, input_ids: Tensor, input_mask: Tensor, video: Tensor, video_mask: Tensor) -> Any:
        sequence_output, seq_features = self.get_sequence_output(input_ids.view(-1, WORDS))
        return to_features(sequence_output, self.get_visual_output(video), video_mask, seq_features, input_mask)

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(*self.features(*batch))


def batches() -> list[tuple[Tensor, ...]]:
    """As the data loader stacks them: [B, 1, W], and [B, 1, F, 1, 3, H, W]; padded captions and videos."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        ids = torch.randint(1, 19, (5, 1, WORDS), generator=generator)
        last = torch.randint(1, WORDS, (5, 1, 1), generator=generator)
        ids = ids.scatter(2, last, 19).where(torch.arange(WORDS) <= last, 0)
        video_mask = torch.arange(FRAMES) < torch.randint(1, FRAMES + 1, (5, 1, 1), generator=generator)
        video = torch.randn(5, 1, FRAMES, 1, 3, SIDE, SIDE, generator=generator)
        found.append((ids, (ids > 0).long(), video, video_mask.long()))
    return found


def train(model: nn.Module, logit_scale: Tensor) -> list[float]:
    """The losses of its loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for batch in batches() * 3:
        loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.clamp_(logit_scale.data, max=math.log(100))
        found.append(loss.item())
    return found


def pair_of_models(scorer: mg.MultiGrain) -> tuple[CLIP4Clip, After]:
    torch.manual_seed(0)
    before, after = CLIP4Clip(), After(scorer)
    after.clip.load_state_dict(before.clip.state_dict(), strict=False)
    return before, after


def test_training_is_the_same_before_and_after():
    before, after = pair_of_models(mg.MultiGrain(mg.VideoSentence()))
    assert isinstance(after.loss.criterion, mg.InfoNCE)
    expected = train(before, before.clip.logit_scale)
    assert train(after, after.loss.criterion.logit_scale) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]
    trained = dict(before.named_parameters())
    trained["loss.criterion.logit_scale"] = trained.pop("clip.logit_scale")
    assert set(trained) == {name for name, _ in after.named_parameters()}
    for name, parameter in after.named_parameters():
        torch.testing.assert_close(parameter, trained[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_evaluation_is_the_same_before_and_after():
    """Its evaluation keeps the outputs of all batches and scores them block by block."""
    before, after = pair_of_models(mg.MultiGrain(mg.VideoSentence()))
    kept = [
        (before.get_sequence_output(ids.view(-1, WORDS))[0], before.get_visual_output(video), mask, video_mask)
        for ids, mask, video, video_mask in batches()
    ]
    rows = [
        torch.cat([before.get_similarity_logits(text, video, mask, vm) for _, video, _, vm in kept], 1)
        for text, _, mask, _ in kept
    ]
    sim_matrix = torch.cat(rows)
    text, video = (mg.Features.cat(side) for side in zip(*(after.features(*batch) for batch in batches()), strict=True))
    scores = mg.score_matrix(after.loss.scorer, text, video, block=4)
    torch.testing.assert_close(scores / 0.07, sim_matrix, atol=1e-5, rtol=1e-5)
    assert scores.sort(1).values.diff(dim=1).min() > 5e-4  # so that rounding ranks none of them otherwise
    assert mg.retrieval_metrics(scores)["t2v"]["MnR"] == mg.retrieval_metrics(sim_matrix)["t2v"]["MnR"]


def test_four_grains_in_its_loop():
    scorer = mg.MultiGrain(mg.VideoSentence(), mg.VideoWord(), mg.SentenceFrame(), mg.FrameWord())
    _, after = pair_of_models(scorer)
    assert isinstance(after.loss.criterion, mg.InfoNCE)
    losses = train(after, after.loss.criterion.logit_scale)
    assert losses[-1] < losses[0]


def test_tensors_become_features():
    generator = torch.Generator().manual_seed(0)
    sequence_output, visual_output = (torch.randn(2, n, D, generator=generator) for n in (1, 3))
    mask = torch.tensor([[[1, 1, 0]], [[1, 0, 0]]])
    text, video = to_features(sequence_output, visual_output, mask)
    assert text.names == ("sentence",) and video.names == ("frame", "video")
    torch.testing.assert_close(video["video"].features[1], F.normalize(visual_output[1, 0], dim=0))
    assert torch.equal(video["frame"].mask, mask[:, 0].bool())
    with pytest.raises(ValueError, match="attention_mask: expected with word_output, and only then"):
        to_features(sequence_output, visual_output, mask, word_output=visual_output)
    with pytest.raises(ValueError, match=r"frame mask: expected shape \[2, 3\], got \[2, 2\]"):
        to_features(sequence_output, visual_output, mask[..., :2])
