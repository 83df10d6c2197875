"""Momentum encoders: a copy that follows the trained one."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks


@torch.no_grad()
def momentum_update(online: nn.Module, target: nn.Module, decay: float = 0.995) -> None:
    """target = decay * target + (1 - decay) * online, parameter by parameter, in place; buffers are copied.

    MoCo's rule (He et al. 2020, arXiv 1911.05722); its decay is 0.999, that of BriVL 0.99, of ALBEF 0.995. Start with
    `target = copy.deepcopy(online).requires_grad_(False)` and call it before each forward pass. Every rank computes the
    same, so nothing is exchanged.

    Raises:
        TypeError: what is no module.
        ValueError: a decay outside [0, 1], or modules whose parameters or buffers differ in name or shape.
    """
    checks.instances(nn.Module, online=online, target=target)
    checks.number("decay", decay, 0, 1)
    mine, theirs = dict(target.named_parameters()), dict(online.named_parameters())
    my_buffers, their_buffers = dict(target.named_buffers()), dict(online.named_buffers())
    different = (mine.keys() ^ theirs.keys()) | (my_buffers.keys() ^ their_buffers.keys())
    if different:
        raise ValueError(f"target: expected a copy of online, got other names: {checks.few(different)}")
    for name, value in (*mine.items(), *my_buffers.items()):
        other = theirs[name] if name in theirs else their_buffers[name]
        if value.shape != other.shape:
            raise ValueError(
                f"target: expected a copy of online, got {name} of shape {checks.shape(value)} in place of "
                f"{checks.shape(other)}"
            )
    for name, parameter in mine.items():
        parameter.lerp_(theirs[name].to(parameter), 1 - decay)
    for name, buffer in my_buffers.items():
        buffer.copy_(their_buffers[name])
