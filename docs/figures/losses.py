"""Gradient of each criterion by the scores of one query."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import multigrain as mg

from style import BLUE, INK, ORANGE, PALE, panels, plain

SCORES = torch.tensor([0.30, 0.38, 0.28, 0.22, 0.12, 0.02, -0.08])
CRITERIA = {
    "InfoNCE()": mg.InfoNCE(direction="query"),
    "Sigmoid, bias -2": mg.Sigmoid(init_logit_bias=-2.0, direction="query"),
    "MarginRanking(0.1)": mg.losses.MarginRanking(0.1, direction="query"),
    "hard_pool=1": mg.losses.MarginRanking(0.1, hard_pool=1, easy_weight=0, direction="query"),
}


def draw() -> Figure:
    """Draw the scores, then minus the gradient of each criterion by them, in units of the largest."""
    figure, axes = panels(1, 5, 10.0, 2.4)
    names = ["+", *(f"{i}" for i in range(1, len(SCORES)))]
    colours = [BLUE] + [ORANGE] * (len(SCORES) - 1)
    axes[0].bar(names, SCORES, color=colours)
    plain(axes[0], "scores of one query")
    positives = torch.arange(len(SCORES))[None] == 0
    for ax, (title, criterion) in zip(axes[1:], CRITERIA.items(), strict=True):
        scores = SCORES[None].clone().requires_grad_()
        criterion.rows(scores, positives).sum().backward()
        assert scores.grad is not None
        push = -scores.grad[0] / scores.grad.abs().max()
        ax.bar(names, push, color=colours)
        ax.axhline(0, color=INK, linewidth=0.6)
        ax.set_ylim(-1.1, 1.1)
        ax.set_yticks([-1, 0, 1], ["down", "", "up"])
        plain(ax, title)
    for ax in axes:
        ax.set_xlabel("+ its video, others", fontsize=8, color=PALE)
    return figure
