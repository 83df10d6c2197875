"""One pair under growing padding: masked, with padding taking part, and with similarities times the mask."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import multigrain as mg

from style import BLUE, ORANGE, PINK, panels, plain

SLOTS = range(0, 25, 2)


def draw() -> Figure:
    """Scores by the number of padded frame slots, of two aggregators."""
    torch.manual_seed(0)
    words, frames, junk = torch.randn(1, 6, 16), torch.randn(1, 4, 16), torch.randn(1, max(SLOTS), 16)
    words = words - 2.5 * frames.mean(1, keepdim=True)  # a bad match: most similarities are negative
    figure, axes = panels(1, 2, 8.0, 2.9)
    shown = (("MeanMax('query')", mg.MeanMax("query")), ("AOSM(0.1)", mg.AOSM(0.1)))
    for ax, (title, aggregator) in zip(axes, shown, strict=True):
        lines: dict[str, list[float]] = {"masked": [], "padding takes part": [], "similarities x mask": []}
        for pads in SLOTS:
            padded = torch.cat([frames, junk[:, :pads]], 1)
            mask = (torch.arange(4 + pads) < 4)[None]
            text, video = mg.Features(word=words), mg.Features(frame=(padded, mask))
            grain = mg.Grain("word", "frame", aggregator)
            sim = grain.similarity(text, mg.Features(frame=padded))
            lines["masked"].append(float(grain(text, video)))
            lines["padding takes part"].append(float(aggregator(sim)))
            lines["similarities x mask"].append(float(aggregator(sim * mask[0])))
        for (label, scores), colour in zip(lines.items(), (BLUE, ORANGE, PINK), strict=True):
            ax.plot(SLOTS, scores, color=colour, label=label, marker="o", markersize=3)
        plain(ax, title)
        ax.set_xlabel("padded slots beside 4 real frames")
        ax.set_ylabel("score of the same pair")
    axes[0].legend(frameon=False)
    return figure
