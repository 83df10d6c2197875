"""One matrix of similarities under ten aggregators, by the weights that each gives to its cells."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import multigrain as mg
from multigrain.explain import token_weights

from style import BLUE, INK, PALE, heat, labels, panels, plain

# The same numbers as in docs/concepts/aggregators.md.
SIM = torch.tensor(
    [
        [0.11, 0.20, 0.15, 0.05, 0.10],
        [0.30, 0.72, 0.25, 0.20, 0.10],
        [0.20, 0.60, 0.90, 0.30, 0.20],
        [-0.20, -0.10, -0.30, -0.10, -0.20],
    ]
)
SHOWN = (
    mg.MeanMean(),
    mg.MeanMax("query"),
    mg.MeanMax(),
    mg.MaxMean("query"),
    mg.MaxMax(),
    mg.MaxSim(),
    mg.LogSumExp(0.1),
    mg.aggregators.TopK(2),
    mg.AOSM(0.1),
    mg.AOSM(0.01),
)


def name(aggregator: mg.Aggregator) -> str:
    """Write an aggregator as in code, with the settings that are not the default."""
    title = type(aggregator).__name__
    if isinstance(aggregator, (mg.AOSM, mg.LogSumExp)):
        return f"{title}({aggregator.outer.temperature})"
    if isinstance(aggregator, mg.aggregators.TopK):
        return f"{title}(2)"
    one_way = aggregator.direction == "query" and title != "MaxSim"
    return f"{title}({aggregator.direction!r})" if one_way else title


def draw() -> Figure:
    """Ten panels, and how AOSM goes from the mean to the maximum."""
    figure, axes = panels(3, 5, 9.0, 5.6)
    grid = axes[0].get_gridspec()
    for ax, aggregator in zip(axes, SHOWN, strict=False):
        heat(ax, SIM, token_weights(aggregator, SIM).cells, area=120)
        labels(ax)
        ax.set_title(f"{name(aggregator)}  {float(aggregator(SIM[None, None])):.3f}", fontsize=9, color=INK)
    for ax in axes[10:]:
        ax.remove()
    below = figure.add_subplot(grid[2, :])
    plain(below, "AOSM between the mean and the maximum")
    temperatures = torch.logspace(-3, 1.5, 60)
    scores = [float(mg.AOSM(float(t))(SIM[None, None])) for t in temperatures]
    below.semilogx(temperatures, scores, color=BLUE, linewidth=2)
    for aggregator in (mg.MeanMean(), mg.MaxMax()):
        below.axhline(float(aggregator(SIM[None, None])), color=PALE, linestyle=":")
        below.text(40, float(aggregator(SIM[None, None])), f" {name(aggregator)}", va="center", color=PALE)
    below.set_xlim(1e-3, 40)
    below.set_xlabel("temperature")
    below.set_ylabel("score")
    return figure
