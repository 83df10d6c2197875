"""What a step minimises, for each task of a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch import Batch
from ..distributed import world
from ..grains import VideoSentence
from ..losses import Loss, RetrievalLoss
from ..models import XCLIP
from ..models.evaluating import evaluating
from ..tokens import Features
from . import parallel
from .config import StageConfig
from .data import Pairs
from .momentum import Encode, Encoded, Momentum

Part = tuple[int, int]  # the number of a part of a batch, from 0, and how many there are


class Objective(NamedTuple):
    """How parts of a batch are read, perhaps in another process, and encoded, and what compares them."""

    model: XCLIP
    parts: Sequence[Part]  # this rank's, of each batch
    read: Callable[[Part, int, list[int]], Any]  # (part, seed of frames that are sampled at random, all rows) -> item
    encode: Encode
    loss: Loss  # of texts, videos and ids
    momentum: Momentum | None = None

    def load(self, seed: int, rows: list[int]) -> list[Any]:
        """This rank's items of a batch, one for each part."""
        return [self.read(part, seed, rows) for part in self.parts]

    def share(self, items: Sequence[Any]) -> Tensor:
        """This rank's share of the loss over the batches of all ranks, where it has one part (see RetrievalLoss)."""
        [item] = items
        if self.momentum is not None:
            return self.momentum.loss(self.model, self.encode, item)
        return self.loss(*self.encode(self.model, item))


def make_objective(
    model: XCLIP, stage: StageConfig, pairs: Pairs, shards: int = 1, momentum: Momentum | None = None
) -> Objective:
    """What a stage minimises over `pairs`, for its task and treatment of the frame tower.

    Args:
        shards: 1: a batch has one part for each rank; more: so many parts, dealt out to the ranks.
        momentum: the momentum encoders of a "videos" stage, where the model's recipe has such.
    """
    parts = [world()] if shards == 1 else [(shard, shards) for shard in parallel.share(shards)]
    if stage.task == "frames":
        loss = RetrievalLoss(VideoSentence(), model.criterion)
        return Objective(model, parts, partial(_read, pairs, 1), _encode_frames, loss)
    if stage.freeze_vision:
        features = frame_features(model, pairs, stage.max_frames)
        return frozen_objective(model, pairs, *features, momentum)._replace(parts=parts)
    read = partial(_read, pairs, stage.max_frames)
    return Objective(model, parts, read, _encode_videos, loss_of(model), momentum)


def frozen_objective(
    model: XCLIP, pairs: Pairs, features: Tensor, masks: Tensor, momentum: Momentum | None = None
) -> Objective:
    """The model's grains above a frozen frame tower, from its features of all frames (see frame_features)."""

    def encode(model: XCLIP, rows: list[int]) -> Encoded:
        device, mask = model.logit_scale.device, masks[rows]
        # Slots that are padding in the whole batch cost time and, under masks, change nothing.
        length = int(mask.sum(1).max()) if model.masked else mask.shape[1]
        video = model.video_features(features[rows, :length].to(device), mask[:, :length].to(device))
        return model.encode_text([pairs.sentences[row] for row in rows]), video, pairs.ids[rows].to(device)

    return Objective(model, [world()], _rows, encode, loss_of(model), momentum)


def loss_of(model: XCLIP) -> Loss:
    """Of a "videos" stage."""
    return RetrievalLoss(model.scorer, model.criterion) if model.recipe is None else model.recipe.loss


def _read(pairs: Pairs, max_frames: int, part: Part, seed: int, rows: list[int]) -> Batch:
    """A part of some rows; where none of it can be read, one of another part, which then counts twice: every rank has
    something in every step. Empty where nothing among the rows can be read.
    """
    number, size = part
    own = pairs.batch(rows[number::size], max_frames, seed)
    if own.sentences or size == 1:
        return own
    others = (pairs.batch([row], max_frames, seed) for row in rows)
    return replace(next((other for other in others if other.sentences), own), broken=own.broken)


def _encode_frames(model: XCLIP, batch: Batch) -> Encoded:
    """A CLIP in miniature: one frame against the sentence, one vector each."""
    device = model.logit_scale.device
    text = Features(sentence=model.text(batch.sentences)[0])
    frames = model.vision(batch.frames.to(device))[batch.index[:, 0].to(device)]
    return text, Features(video=frames), batch.ids.to(device)


def _encode_videos(model: XCLIP, batch: Batch) -> Encoded:
    """The model's grains, the frame tower included."""
    device = model.logit_scale.device
    frames, index, mask, ids = (x.to(device) for x in (batch.frames, batch.index, batch.mask, batch.ids))
    return model.encode_text(batch.sentences), model.encode_video(frames, mask, index), ids


def _rows(part: Part, _: int, rows: list[int]) -> list[int]:
    number, size = part
    return rows[number::size]


def frame_features(model: XCLIP, pairs: Pairs, max_frames: int, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """The frame tower's features [pairs, N, D] and the mask [pairs, N], both on the CPU.

    N is max_frames and padding is zero; without masks N is at least the model's max_frames and padding is the feature
    of a blank frame, as encode_video has it. Collective: each rank computes some of the blocks of batch_size pairs,
    which are the same on any number of ranks, to the last bit.
    """
    device, count = model.logit_scale.device, len(pairs.sentences)
    blocks = parallel.share(-(-count // batch_size))
    own = range(blocks.start * batch_size, min(blocks.stop * batch_size, count))
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
    everything, everywhere = zip(*parallel.exchange((features, masks)), strict=True)
    return torch.cat(everything), torch.cat(everywhere)
