"""What a step minimises, for each task of a stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..grains import VideoSentence
from ..models import XCLIP
from ..tokens import Features
from .config import StageConfig
from .data import Pairs, sentence_ids

Loss = Callable[[list[int]], Tensor]


def make_loss(model: XCLIP, stage: StageConfig, pairs: Pairs) -> Loss:
    """rows of `pairs` -> the loss of that batch, for the stage's task and treatment of the frame tower."""
    ids = sentence_ids(pairs.sentences)
    if stage.task == "frames":
        return _frame_loss(model, pairs, ids)
    return (_frozen_video_loss if stage.freeze_vision else _video_loss)(model, stage, pairs, ids)


def _frame_loss(model: XCLIP, pairs: Pairs, ids: Tensor) -> Loss:
    """A CLIP in miniature: the last frame against the sentence, one vector each."""
    grain = VideoSentence()
    device = model.logit_scale.device

    def loss(rows: list[int]) -> Tensor:
        batch = pairs.batch(rows, 1)
        text = model.encode_text(batch.sentences)
        frames = model.vision(batch.frames.to(device))[batch.index[:, 0].to(device)]
        return model.criterion(grain(text, Features(video=frames)), ids[rows].to(device))

    return loss


def _video_loss(model: XCLIP, stage: StageConfig, pairs: Pairs, ids: Tensor) -> Loss:
    """The model's grains, the frame tower included."""
    device = model.logit_scale.device

    def loss(rows: list[int]) -> Tensor:
        batch = pairs.batch(rows, stage.max_frames)
        frames, index, mask = (x.to(device) for x in (batch.frames, batch.index, batch.mask))
        return model(batch.sentences, frames, mask, index, ids[rows].to(device))

    return loss


def _frozen_video_loss(model: XCLIP, stage: StageConfig, pairs: Pairs, ids: Tensor) -> Loss:
    """The model's grains above a frozen frame tower, whose features of all frames are computed here, once."""
    device = model.logit_scale.device
    features, masks = frame_features(model, pairs, stage.max_frames)

    def loss(rows: list[int]) -> Tensor:
        mask = masks[rows]
        # Slots that are padding in the whole batch cost time and, under masks, change nothing.
        length = int(mask.sum(1).max()) if model.masked else stage.max_frames
        video = model.video_features(features[rows, :length].to(device), mask[:, :length].to(device))
        text = model.encode_text([pairs.sentences[row] for row in rows])
        return model.criterion(model.scorer(text, video), ids[rows].to(device))

    return loss


@torch.no_grad()
def frame_features(model: XCLIP, pairs: Pairs, max_frames: int, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """The frame tower's features [pairs, max_frames, D], zero where padded, and the mask; both on the CPU.

    Leaves the model in eval mode.
    """
    model.eval()
    device = model.logit_scale.device
    total = len(pairs.sentences)
    features = torch.zeros(total, max_frames, model.vision.dim)
    masks = torch.zeros(total, max_frames, dtype=torch.bool)
    for start in range(0, total, batch_size):
        batch = pairs.batch(range(start, min(start + batch_size, total)), max_frames)
        found = model.vision(batch.frames.to(device)).cpu()
        rows, length = slice(start, start + len(batch.mask)), batch.mask.shape[1]
        features[rows, :length] = found[batch.index] * batch.mask[..., None]
        masks[rows, :length] = batch.mask
    return features, masks
