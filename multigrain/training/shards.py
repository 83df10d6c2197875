"""A step that is the same to the last bit on any number of ranks.

A batch is cut into shards, however many ranks there are. Each is encoded and differentiated by itself, with its own
padding and its own random numbers; the loss is that of the whole batch, computed from the features of all shards:

    1. features of each shard                          on the rank that has it
    2. loss(features of all), its gradient by them     on all ranks alike, with that of scorer and criterion
    3. gradient of each shard by the parameters        on the rank that has it
    4. ((shard 0 + shard 1) + shard 2) + ...           by each rank for its share of the numbers

No sum depends on where a shard was, and every operation has operands of the same shapes wherever it happens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import Gathered, gather, world
from ..losses import RetrievalLoss, WholeBatchLoss
from ..tokens import Features, Tokens
from . import parallel
from .momentum import Encoded
from .objectives import Objective

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_shards(shards: int) -> None:
    """That there are enough for the ranks.

    Raises:
        ValueError: fewer shards than ranks.
    """
    if shards < (ranks := world()[1]):
        raise ValueError(f"shards: expected 1, or at least one for each of {ranks} ranks, got {shards}")


class ShardedLoss:
    """The loss of a batch in shards, the same on all ranks; its `backward()` leaves the whole gradient on each.

    Args:
        objective: of `model`; its parts are this rank's shards.
        shards: of a batch; no fewer than ranks.

    Raises:
        ValueError: fewer shards than ranks, or batch normalisation, whose statistics are of what a rank has seen.
    """

    def __init__(self, model: nn.Module, objective: Objective, shards: int) -> None:
        check_shards(shards)
        for name, module in model.named_modules():
            if isinstance(module, _BATCH_NORMS):
                raise ValueError(f"shards: expected 1 for a model with batch normalisation ({name}), got {shards}")
        self.objective = objective
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.counts = [len(parallel.share(shards, rank)) for rank in range(world()[1])]

    def __call__(self, items: Sequence[Any], seeds: Sequence[int], seed: int) -> Tensor:
        """The loss of the whole batch.

        Args:
            items, seeds: of this rank's shards; a seed for the random numbers of each.
            seed: for those of the loss.
        """
        shards: list[Encoded] = []
        for item, own in zip(items, seeds, strict=True):
            torch.manual_seed(own)
            shards.append(self.objective.encode(self.objective.model, item))
        torch.manual_seed(seed)
        texts, videos, ids = zip(*shards, strict=True)
        with torch.no_grad():
            sides = {"text": Features.cat(texts), "video": Features.cat(videos)}
            batch = gather(sides, [torch.cat(ids)])
        # Autograd enters _Differentiate for the sake of a tensor that needs a gradient; the parameters are the shards'.
        anchor = torch.empty(0, requires_grad=torch.is_grad_enabled())
        tape = _Tape(shards, batch, self.trained, self.counts)
        given = [batch.features[side][name].features for side, name in tape.keys]
        attached = zip(tape.keys, cast("tuple[Tensor, ...]", _Differentiate.apply(anchor, tape, *given)), strict=True)
        grains: dict[str, dict[str, Tokens]] = {"text": {}, "video": {}}
        for (side, name), x in attached:
            tokens = batch.features[side][name]
            grains[side][name] = Tokens(x, tokens.mask, unit=tokens.unit)
        with _alone(self.objective.loss):
            return self.objective.loss(Features(**grains["text"]), Features(**grains["video"]), batch.ids[0])


class _Tape:
    """The graphs of this rank's shards, and where their items are among those of all ranks."""

    def __init__(
        self, shards: Sequence[Encoded], batch: Gathered, trained: Sequence[nn.Parameter], counts: list[int]
    ) -> None:
        self.shards, self.trained, self.counts = shards, trained, counts
        self.keys = [(side, name) for side, features in batch.features.items() for name in features.names]
        self.start = batch.own("text").start

    def differentiate(self, grads: Sequence[Tensor | None]) -> None:
        """Add to the parameters the gradient of all shards, from that of the features of all."""
        before, start, own = _take(self.trained), self.start, list[Tensor]()
        for text, video, _ in self.shards:
            sides, rows = {"text": text, "video": video}, slice(start, start + len(text))
            start = rows.stop
            pairs = [(sides[side][name], g) for (side, name), g in zip(self.keys, grads, strict=True) if g is not None]
            pairs = [(x.features, _own(g[rows], x)) for x, g in pairs if x.features.requires_grad]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
            if len(self.counts) > 1:  # one rank alone has the parameters add up its shards, in order
                own.append(_flat(self.trained))
        if own:
            _unflatten(_total(torch.stack(own), self.counts), self.trained)
        for parameter, grad in zip(self.trained, before, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad


class _Differentiate(torch.autograd.Function):
    """Features of the whole batch; their gradient goes through one shard of this rank after the other."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tape: _Tape, *features: Tensor) -> tuple[Tensor, ...]:
        """The features as they are."""
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of the parameters are added to as in any backward pass."""
        ctx.tape.differentiate(grads)
        return None, None, *(None for _ in grads)


@contextmanager
def _alone(loss: nn.Module) -> Generator[None]:
    """Every loss within takes what it is given for the whole batch."""
    gathering = [module for module in loss.modules() if isinstance(module, (RetrievalLoss, WholeBatchLoss))]
    before = [module.gather for module in gathering]
    for module in gathering:
        module.gather = "none"
    try:
        yield
    finally:
        for module, gather_mode in zip(gathering, before, strict=True):
            module.gather = gather_mode


def _own(grad: Tensor, tokens: Tokens) -> Tensor:
    """A shard's gradient, without what the longest shard has beyond it."""
    grad = grad if grad.ndim == 2 else grad[:, : tokens.length]
    return grad.reshape(tokens.features.shape)


def _take(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Their gradients, which they then have no longer."""
    grads = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return grads


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Their gradients, taken, in one vector, zero where there is none; behind them, for each, whether there is one."""
    grads = _take(parameters)
    there = parameters[0].new_tensor([grad is not None for grad in grads])
    whole = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True))
    return torch.cat([*(grad.flatten() for grad in whole), there])


def _unflatten(flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters their gradients from a sum of what `_flat` makes."""
    *grads, there = flat.split([*(parameter.numel() for parameter in parameters), len(parameters)])
    for parameter, grad, used in zip(parameters, grads, there.tolist(), strict=True):
        if used:  # in the layout in which autograd would leave it
            parameter.grad = torch.empty_like(parameter).copy_(grad.view(parameter.shape))


def _total(own: Tensor, counts: list[int]) -> Tensor:
    """From [own shards, n] the sum [n] over the shards of all ranks, in their order.

    A rank receives its n / ranks numbers of each shard, and sends their sum; with one shard on each rank, these are the
    bytes of an all-reduce.
    """
    ranks, (shards, n) = len(counts), own.shape
    width = -(-n // ranks)
    sent = F.pad(own, (0, ranks * width - n)).unflatten(1, (ranks, width)).transpose(0, 1).flatten(0, 1)
    received = sent.new_empty(sum(counts), width)
    dist.all_to_all_single(received, sent.contiguous(), counts, [shards] * ranks)
    mine = received[0]
    for shard in received[1:]:
        mine = mine + shard
    everything = mine.new_empty(ranks, width)
    dist.all_gather(list(everything.unbind()), mine.contiguous())
    return everything.flatten()[:n]
