"""What a step minimises, for each task of a stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch import Batch
from ..grains import VideoSentence
from ..models import XCLIP
from ..tokens import Features
from .config import StageConfig
from .data import Pairs


class Objective(NamedTuple):
    """How a batch is read, perhaps in another process, and its loss."""

    load: Callable[[int, list[int]], Any]  # (seed of frames that are sampled at random, rows) -> item
    loss: Callable[[Any], Tensor]


def make_objective(model: XCLIP, stage: StageConfig, pairs: Pairs) -> Objective:
    """What a stage minimises over `pairs`, for its task and treatment of the frame tower."""
    if stage.task == "frames":
        return Objective(partial(_read, pairs, 1), partial(_frame_loss, model))
    if stage.freeze_vision:
        return _frozen_objective(model, stage, pairs)
    return Objective(partial(_read, pairs, stage.max_frames), partial(_video_loss, model))


def _read(pairs: Pairs, max_frames: int, seed: int, rows: list[int]) -> Batch:
    batch = pairs.batch(rows, max_frames, seed)
    if not batch.sentences:
        raise ValueError(f"no video of a batch could be read, the first for this reason: {batch.broken[0]}")
    return batch


def _frame_loss(model: XCLIP, batch: Batch) -> Tensor:
    """A CLIP in miniature: one frame against the sentence, one vector each."""
    device = model.logit_scale.device
    text = model.encode_text(batch.sentences)
    frames = model.vision(batch.frames.to(device))[batch.index[:, 0].to(device)]
    return model.criterion(VideoSentence()(text, Features(video=frames)), batch.ids.to(device))


def _video_loss(model: XCLIP, batch: Batch) -> Tensor:
    """The model's grains, the frame tower included."""
    device = model.logit_scale.device
    frames, index, mask, ids = (x.to(device) for x in (batch.frames, batch.index, batch.mask, batch.ids))
    return model(batch.sentences, frames, mask, index, ids)


def _frozen_objective(model: XCLIP, stage: StageConfig, pairs: Pairs) -> Objective:
    """The model's grains above a frozen frame tower, whose features of all frames are computed here, once."""
    device = model.logit_scale.device
    features, masks = frame_features(model, pairs, stage.max_frames)

    def loss(rows: list[int]) -> Tensor:
        mask = masks[rows]
        # Slots that are padding in the whole batch cost time and, under masks, change nothing.
        length = int(mask.sum(1).max()) if model.masked else stage.max_frames
        video = model.video_features(features[rows, :length].to(device), mask[:, :length].to(device))
        text = model.encode_text([pairs.sentences[row] for row in rows])
        return model.criterion(model.scorer(text, video), pairs.ids[rows].to(device))

    return Objective(_rows, loss)


def _rows(_: int, rows: list[int]) -> list[int]:
    return rows


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
