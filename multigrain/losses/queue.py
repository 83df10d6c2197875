"""A queue of past features: more candidates than a batch has, at no cost but memory and scoring.

He et al. 2020 (MoCo, arXiv 1911.05722), Wang et al. 2020 (cross-batch memory, arXiv 1912.06798), BriVL and ALBEF, which
fill it with the features of encoders that follow the trained ones (`momentum_update`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..distributed import Group, gather
from ..tokens import Features, Tokens


class FeatureQueue:
    """A first-in, first-out queue: the newest `size` items that were pushed, without their graph, oldest first.

    It holds nothing at first, so there is never an empty entry among the candidates. Shorter items are padded and
    masked. Over several ranks each pushes its own batch and all hold the same queue. It is no module,
    since it is a part of training and not of the model: save its `state_dict` like that of an optimizer.

    Args:
        size: the most items to hold.
        group: the process group; None: the default one.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> queue = FeatureQueue(6)
        >>> for start in (0, 4):
        ...     queue.push(mg.Features(video=torch.ones(4, 8)), ids=torch.arange(start, start + 4))
        >>> len(queue), queue.ids.tolist()
        (6, [2, 3, 4, 5, 6, 7])
    """

    def __init__(self, size: int, group: Group = None) -> None:
        self.size, self.group = checks.count("size", size), group
        self.features: Features | None = None
        self.ids: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.features is None else len(self.features)

    def push(self, features: Features, ids: Tensor | None = None) -> None:
        """Append this rank's items and those of the other ranks; the oldest leave.

        Args:
            features: items with the grains and widths of the first push.
            ids: integers [B], always or never.

        Raises:
            ValueError: other grains or widths than before, or ids that do not fit; on every rank.
        """
        checks.instance("features", features, Features)
        problem = self._problem(features, ids)
        batch = gather({"queue": features.detach()}, () if ids is None else (ids,), self.group, problem=problem)
        parts, labels = [batch.features["queue"][-self.size :]], [x[-self.size :] for x in batch.ids]
        if self.features is not None and len(parts[0]) < self.size:
            kept = slice(max(0, len(self) + len(parts[0]) - self.size), None)
            parts.insert(0, self.features[kept].to(features.device))
            labels[:0] = [] if self.ids is None else [self.ids[kept].to(features.device)]
        # cat copies: what a caller does to its tensors later stays out, and a file holds no more than the queue.
        self.features, self.ids = Features.cat(parts), torch.cat(labels) if labels else None

    def _problem(self, features: Features, ids: Tensor | None) -> str | None:
        """Say why this rank cannot push, to be raised on every rank; None: it can."""
        if ids is not None:
            try:
                checks.labels("ids", ids, len(features))
            except (TypeError, ValueError) as error:
                return str(error)
        if self.features is None:
            return None
        widths, got = ({name: x[name].dim for name in sorted(x.names)} for x in (self.features, features))
        if got != widths:
            return f"features: expected grains of the widths of the first push, {widths}, got {got}"
        if (ids is None) != (self.ids is None):
            first, now = ("without", "with") if self.ids is None else ("with", "without")
            return f"ids: expected a push {first} ids, as the first, got one {now}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Items and ids, as tensors, and the size."""
        grains = {} if self.features is None else {name: self.features[name] for name in self.features.names}
        tokens = {name: (t.features, t.mask, t.unit) for name, t in grains.items()}
        return {"size": self.size, "features": tokens, "ids": self.ids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            ValueError: a state of a queue of another size.
        """
        checks.require(state["size"] == self.size, "state", f"that of a queue of size {self.size}", state["size"])
        tokens = {name: Tokens(x, mask, name, unit) for name, (x, mask, unit) in state["features"].items()}
        self.features, self.ids = Features(**tokens) if tokens else None, state["ids"]


@torch.no_grad()
def momentum_update(online: nn.Module, target: nn.Module, decay: float = 0.995) -> None:
    """target = decay * target + (1 - decay) * online, parameter by parameter, in place; buffers are copied.

    MoCo's rule (He et al. 2020, arXiv 1911.05722); its decay is 0.999, that of BriVL 0.99, of ALBEF 0.995. Start with
    `target = copy.deepcopy(online).requires_grad_(False)` and call it before each forward pass. Every rank computes the
    same, so nothing is exchanged.

    Raises:
        TypeError: an argument that is no module.
        ValueError: a decay outside [0, 1], or modules whose parameters or buffers differ in name or shape.
    """
    checks.instances(nn.Module, online=online, target=target)
    checks.number("decay", decay, 0, 1)
    parameters = dict(target.named_parameters()), dict(online.named_parameters())
    buffers = dict(target.named_buffers()), dict(online.named_buffers())
    for mine, theirs in (parameters, buffers):
        if different := mine.keys() ^ theirs.keys():
            raise ValueError(f"target: expected a copy of online, got other names: {checks.few(different)}")
        for name, value in mine.items():
            if value.shape != theirs[name].shape:
                shapes = f"{checks.shape(value)} in place of {checks.shape(theirs[name])}"
                raise ValueError(f"target: expected a copy of online, got {name} of shape {shapes}")
    for name, parameter in parameters[0].items():
        parameter.lerp_(parameters[1][name].to(parameter), 1 - decay)
    for name, buffer in buffers[0].items():
        buffer.copy_(buffers[1][name])
