"""Momentum encoders and queues of a recipe, which belong to its training and not to the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..losses import momentum_update
from ..losses.batch import grains_read, select_read
from ..models import XCLIP
from ..tokens import Features

Encoded = tuple[Features, Features, Tensor]  # texts, videos, ids
EncodeBatch = Callable[[XCLIP, Any], Encoded]  # a model and what is to be encoded


class Momentum:
    """Copy of a model that follows it slowly, and queues of the features that it made of earlier batches.

    Args:
        model: its recipe has a `momentum`, and perhaps a `queue_size`.
    """

    def __init__(self, model: XCLIP) -> None:
        assert model.recipe.momentum is not None
        self.decay = model.recipe.momentum
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.queues = model.recipe.queues()
        self.reads = grains_read(model.recipe.scorer)

    def loss(self, model: XCLIP, encode: EncodeBatch, item: Any) -> Tensor:
        """Compute the loss of a batch; first the copy follows the model, last its features enter the queues."""
        momentum_update(model, self.model, self.decay)
        self.model.train(model.training)
        text, video, ids = encode(model, item)
        with torch.no_grad():
            keys = encode(self.model, item)[:2]
        queues = {} if self.queues is None else dict(zip(("text_queue", "video_queue"), self.queues, strict=True))
        loss = model.loss(text, video, ids, keys=keys, **queues)
        for queue, features in zip(self.queues or (), select_read(self.reads, *keys), strict=False):
            queue.push(features, ids)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        queues = None if self.queues is None else [queue.state_dict() for queue in self.queues]
        return {"model": self.model.state_dict(), "queues": queues}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        for queue, values in zip(self.queues or (), state["queues"] or (), strict=True):
            queue.load_state_dict(values)


def momentum_of(model: XCLIP) -> Momentum | None:
    """Start momentum encoders from the model as it is now, if its recipe wants them."""
    return None if model.recipe.momentum is None else Momentum(model)
