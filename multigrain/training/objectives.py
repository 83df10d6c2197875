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
from ..models.evaluating import evaluating
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
    return pairs.batch(rows, max_frames, seed)


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
        length = int(mask.sum(1).max()) if model.masked else mask.shape[1]
        video = model.video_features(features[rows, :length].to(device), mask[:, :length].to(device))
        text = model.encode_text([pairs.sentences[row] for row in rows])
        return model.criterion(model.scorer(text, video), pairs.ids[rows].to(device))

    return Objective(_rows, loss)


def _rows(_: int, rows: list[int]) -> list[int]:
    return rows


def frame_features(model: XCLIP, pairs: Pairs, max_frames: int, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """The frame tower's features [pairs, N, D] and the mask [pairs, N], both on the CPU.

    N is max_frames and padding is zero; without masks N is at least the model's max_frames and padding is the feature
    of a blank frame, as encode_video has it.
    """
    device, total = model.logit_scale.device, len(pairs.sentences)
    slots = max_frames if model.masked else max(max_frames, model.max_frames)
    features = torch.zeros(total, slots, model.vision.dim)
    masks = torch.zeros(total, slots, dtype=torch.bool)
    with evaluating(model):
        for start in range(0, total, batch_size):
            batch = pairs.batch(range(start, min(start + batch_size, total)), max_frames)
            found, mask = model.vision(batch.frames.to(device)).cpu(), batch.mask[..., None]
            rows, length = slice(start, start + len(mask)), mask.shape[1]
            if not model.masked:
                features[rows] = model.vision(model.vision.blank(batch.frames.to(device))).cpu()
            features[rows, :length] = torch.where(mask, found[batch.index], features[rows, :length])
            masks[rows, :length] = batch.mask
    return features, masks
