"""AdamW over the parameters of a model, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..models import XCLIP
from .config import OptimizerConfig

_UNDECAYED = ("position", "pos_embed", "class_embedding", "cls_token", "reg_token", "bilinear", "inner_", "outer_")


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of a step (from 0) out of `steps`: linear to the top, then half a cosine to 0, without a jump."""
    warm = config.warmup * steps
    if step < warm:
        return config.learning_rate * (step + 1) / (math.floor(warm) + 1)
    return config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def make_optimizer(model: XCLIP, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make AdamW over what is trainable, with weight decay on matrices alone; a group's `share` multiplies the rate.

    Positions are not matrices in that sense, nor are the mixing and bilinear ones, which start from the identity:
    decay would pull them away from it.
    """
    slow = model.tower_parameters(logit_scale=config.logit_scale_group == "towers")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(word in name for word in _UNDECAYED)
            groups.setdefault((name in slow, decays), []).append(parameter)
    tower_share = (config.tower_learning_rate or config.learning_rate) / config.learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "share": tower_share if tower else 1.0,
            }
            for (tower, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
