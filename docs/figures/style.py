"""One look for all figures, and files that are the same if nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

INK, PALE, GRID = "#20242a", "#6b7280", "#e3e6ea"
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito's palette
COSINE = "PuOr_r"  # the colours of multigrain.viz

mpl.rcParams.update({"svg.hashsalt": "multigrain", "font.size": 9, "text.color": INK})
mpl.rcParams.update({"axes.edgecolor": PALE, "xtick.color": PALE, "ytick.color": PALE, "axes.labelcolor": INK})


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its axes, row by row."""
    figure = Figure((width, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def plain(axes: Axes, title: str = "") -> None:
    """No frame at the top and right, a pale grid behind, the title at the left."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)


def heat(axes: Axes, sim: Tensor, weights: Tensor | None = None, limit: float = 1.0, area: float = 190.0) -> None:
    """Similarities as colours, weights as the area of dots."""
    m, n = sim.shape
    axes.imshow(sim, cmap=COSINE, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, m)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if weights is not None:
        for i in range(m):
            for j in range(n):
                if (share := float(weights[i, j] / weights.max())) > 0.01:
                    axes.scatter([j], [i], s=area * share, c="white", edgecolors=INK, linewidths=0.8)


def labels(axes: Axes, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """Names of rows and columns, or none."""
    axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.set_xticks(range(len(columns)), columns, color=INK)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without a date."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
