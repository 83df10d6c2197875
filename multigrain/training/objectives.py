"""Objectives: the loss that a step minimises, for each task of a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.pairs import Batch, Pairs
from ..distributed import world
from ..distributed.collectives import all_gather_object, share
from ..grains import VideoSentence
from ..losses import Loss, RetrievalLoss
from ..models import XCLIP
from ..models.protocol import evaluating
from ..tokens import Features
from .config import StageConfig
from .momentum import EncodeBatch, Encoded, Momentum


class Objective(NamedTuple):
    """Functions that read a rank's share of a batch, perhaps in another process, and encode it; and its loss."""

    model: XCLIP
    read: Callable[[int, list[int]], Any]  # (seed of frames that are sampled at random, rows of all ranks) -> own item
    encode: EncodeBatch
    loss: Loss  # of texts, videos and ids
    momentum: Momentum | None = None

    def share(self, item: Any) -> Tensor:
        """Compute this rank's share of the loss over the batches of all ranks (see RetrievalLoss)."""
        if self.momentum is not None:
            return self.momentum.loss(self.model, self.encode, item)
        return self.loss(*self.encode(self.model, item))


def make_objective(model: XCLIP, stage: StageConfig, pairs: Pairs, momentum: Momentum | None = None) -> Objective:
    """Make the objective of a stage over `pairs`, for its task and its treatment of the frame tower.

    Args:
        momentum: the momentum encoders of a "videos" stage, where the model's recipe has such.
    """
    if stage.task == "frames":
        loss = RetrievalLoss(VideoSentence(), model.criterion)
        return Objective(model, partial(_read, pairs, 1, world()), _encode_frames, loss)
    if stage.freeze_vision:
        return frozen_objective(model, pairs, *frame_features(model, pairs, stage.max_frames), momentum)
    read = partial(_read, pairs, stage.max_frames, world())
    return Objective(model, read, _encode_videos, model.recipe.loss, momentum)


def frozen_objective(
    model: XCLIP, pairs: Pairs, features: Tensor, masks: Tensor, momentum: Momentum | None = None
) -> Objective:
    """Make the objective above a frozen frame tower, from its features of all frames (see frame_features)."""

    def encode(model: XCLIP, rows: list[int]) -> Encoded:
        device, mask = model.logit_scale.device, masks[rows]
        # Slots that are padding in the whole batch cost time and, under masks, change nothing.
        length = int(mask.sum(1).max()) if model.masked else mask.shape[1]
        video = model.video_features(features[rows, :length].to(device), mask[:, :length].to(device))
        return model.encode_text([pairs.sentences[row] for row in rows]), video, pairs.ids[rows].to(device)

    return Objective(model, partial(_rows, world()), encode, model.recipe.loss, momentum)


def _read(pairs: Pairs, max_frames: int, of: tuple[int, int], seed: int, rows: list[int]) -> Batch:
    """Read a rank's share of some rows; where none of it can be read, one row of another rank's share.

    That row then counts twice, but every rank has a pair in every step. The batch is empty where no row can be read.

    Args:
        of: the rank, and how many there are; a process that reads ahead belongs to no group that could tell.
    """
    rank, size = of
    own = pairs.batch(rows[rank::size], max_frames, seed)
    if own.sentences or size == 1:
        return own
    others = (pairs.batch([row], max_frames, seed) for row in rows)
    return replace(next((other for other in others if other.sentences), own), broken=own.broken)


def _encode_frames(model: XCLIP, batch: Batch) -> Encoded:
    """Encode one frame and the sentence to one vector each, as a CLIP in miniature."""
    device = model.logit_scale.device
    text = Features(sentence=model.text(batch.sentences)[0])
    frames = model.vision(batch.frames.to(device))[batch.index[:, 0].to(device)]
    return text, Features(video=frames), batch.ids.to(device)


def _encode_videos(model: XCLIP, batch: Batch) -> Encoded:
    """Encode sentences and videos, the frame tower included."""
    device = model.logit_scale.device
    frames, index, mask, ids = (x.to(device) for x in (batch.frames, batch.index, batch.mask, batch.ids))
    return model.encode_text(batch.sentences), model.encode_video(frames, mask, index), ids


def _rows(of: tuple[int, int], _: int, rows: list[int]) -> list[int]:
    rank, size = of
    return rows[rank::size]


def frame_features(model: XCLIP, pairs: Pairs, max_frames: int, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """Compute the frame tower's features [pairs, N, D] and the mask [pairs, N], both on the CPU.

    N is max_frames and padding is zero; without masks N is at least the model's max_frames and padding is the feature
    of a blank frame, as encode_video has it. Collective: each rank computes those of some of the pairs.
    """
    device, own = model.logit_scale.device, share(len(pairs.sentences))
    slots = max_frames if model.masked else max(max_frames, model.max_frames)
    features = torch.zeros(len(own), slots, model.vision.dim)
    masks = torch.zeros(len(own), slots, dtype=torch.bool)
    with evaluating(model):
        for start in range(0, len(own), batch_size):
            batch = pairs.batch(own[start : start + batch_size], max_frames)
            found, mask = model.vision(batch.frames.to(device)).cpu(), batch.mask[..., None]
            rows, length = slice(start, start + len(mask)), mask.shape[1]
            if not model.masked:
                features[rows] = model.vision(model.vision.blank(batch.frames.to(device))).cpu()
            features[rows, :length] = torch.where(mask, found[batch.index], features[rows, :length])
            masks[rows, :length] = batch.mask
    everything, everywhere = zip(*all_gather_object((features, masks)), strict=True)
    return torch.cat(everything), torch.cat(everywhere)
