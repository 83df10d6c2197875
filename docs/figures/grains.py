"""The four grains of X-CLIP as the four blocks of one matrix of similarities."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from style import PALE, heat, labels, panels

WORDS = ("a", "dog", "catches", "a", "red", "frisbee")
FRAMES = 5


def draw() -> Figure:
    """[1 + words, 1 + frames] similarities, cut into blocks."""
    torch.manual_seed(3)
    sim = 0.5 * torch.rand(len(WORDS), FRAMES) - 0.1
    sim[[1, 2, 5], 2], sim[5, 3], sim[1, 0] = 0.8, 0.7, 0.6
    parts = ((sim.mean()[None, None] * 2, sim.mean(0, keepdim=True) * 1.6), (sim.mean(1, keepdim=True) * 1.6, sim))
    names = (
        ("VideoSentence\n[1, 1]", "SentenceFrame  [1, n]"),
        ("VideoWord\n[m, 1]", "FrameWord  [m, n]"),
    )
    figure, axes = panels(2, 2, 7.2, 3.6)
    grid = axes[0].get_gridspec()
    grid.set_height_ratios([1.4, len(WORDS)])
    grid.set_width_ratios([1.4, FRAMES])
    rows = (("sentence",), WORDS)
    columns = (("video",), tuple(f"frame {j + 1}" for j in range(FRAMES)))
    for k, ax in enumerate(axes):
        i, j = divmod(k, 2)
        heat(ax, parts[i][j])
        labels(ax, rows[i] if j == 0 else (), columns[j] if i == 1 else ())
        ax.set_title(names[i][j], loc="left", fontsize=9, color=PALE)
    return figure
