"""The blocks of the picture of a pair, on a `Page`: matrices, bars, the legend, the inner level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .explain import Weights
from .layout import BAR, BAR_ROW, INK, PALE, SMALL, Page
from .pair import Coarse, rounded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLUE = "#0072B2"
# A cosine has a meaningful zero; orange and purple survive colour blindness, and print.
DIVERGING, ONE_SIDED = "PuOr_r", "YlOrBr"
NARROW = 0.5  # of the largest similarity: where all differ by less, and none is negative, zero is left out of the scale
FINE = 0.1  # where all differ by less, numbers have three digits
DOT = 80.0  # points squared: a dot that fills a row
DARK = 0.55  # luma: numbers on darker cells are white


@dataclass(frozen=True)
class Scale:
    """From a similarity to its colour and its number."""

    low: float
    high: float

    @classmethod
    def of(cls, shown: Sequence[Tensor]) -> Scale:
        """Symmetric about zero; where all similarities lie close together, as CLIP's do, from the least to the most."""
        low, high = min(float(x.min()) for x in shown), max(float(x.max()) for x in shown)
        if low > 0 and high - low < NARROW * high:
            return cls(low, high) if high - low > 1e-6 else cls(low - 1e-6, high + 1e-6)
        limit = max(-low, high, 1e-6)
        return cls(-limit, limit)

    @property
    def colours(self) -> dict[str, Any]:
        """For Matplotlib."""
        return {"cmap": DIVERGING if self.low < 0 else ONE_SIDED, "norm": Normalize(self.low, self.high)}

    def dark(self, value: float) -> bool:
        """Whether ink would not be read on this colour."""
        red, green, blue, _ = colormaps[self.colours["cmap"]]((value - self.low) / (self.high - self.low))
        return 0.299 * red + 0.587 * green + 0.114 * blue < DARK

    def number(self, value: float) -> str:
        """The similarity in two or three digits: .42, −.05."""
        text = f"{abs(value):.{3 if self.high - self.low < FINE else 2}f}".removeprefix("0")
        return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip(".0") else text


def heat(axes: Axes, sim: Tensor, scale: Scale, weights: Tensor | None = None) -> None:
    """Cells coloured by similarity, its number in them, and dots whose area is the weight relative to the largest."""
    m, n = sim.shape
    axes.imshow(array(sim), aspect="auto", **scale.colours)
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, m)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    x, side = (0.0, "center") if weights is None else (0.44, "right")  # beside the dots
    for i, row in enumerate(sim.tolist()):
        for j, value in enumerate(row):
            colour = "white" if scale.dark(value) else INK
            axes.text(j + x, i + 0.02, scale.number(value), fontsize=6, color=colour, ha=side, va="center")
    if weights is not None:
        areas = array((weights / weights.max().clamp_min(1e-12)).clamp_min(0).flatten())
        seen = (areas > 0.01).nonzero()[0]
        axes.scatter(seen % n - 0.24, seen // n, s=areas[seen] * DOT, c="white", edgecolors=INK, linewidths=0.8)


def array(x: Tensor) -> NDArray[np.float32]:
    """For Matplotlib."""
    return x.detach().float().cpu().numpy()


def frame_row(page: Page, frames: NDArray[np.uint8]) -> None:
    """The thumbnails."""
    for j, frame in enumerate(frames):
        axes = page.at(page.left + (j + 0.03) * page.cell, page.top, 0.94 * page.cell, 0.94 * page.cell)
        axes.imshow(frame, interpolation="nearest")


def coarse_blocks(page: Page, coarse: Coarse, scale: Scale) -> Axes:
    """The sentence's row and the video's column; returns the latter's axes, at the left of the words."""
    across, down = coarse.sentence_weights, coarse.video_weights
    corner = page.block("sentence", "video")
    heat(corner, torch.tensor([[coarse.both]]), scale)
    corner.set_yticks([0], ["sentence"])
    heat(page.block("sentence", "frames"), coarse.sentence[None], scale, None if across is None else across[None])
    video = page.block("words", "video")
    heat(video, coarse.video[:, None], scale, None if down is None else down[:, None])
    video.set_xticks([0], ["video"])
    return video


def outer_bars(page: Page, weights: Weights) -> None:
    """The outer level of either direction: frames above their thumbnails, words at the right."""
    if weights.candidate is not None:
        axes = page.at(page.left, page.top - BAR - 0.05, page.right - page.left, BAR)
        axes.bar(range(len(weights.candidate.outer)), array(weights.candidate.outer), width=0.7, color=INK)
        axes.set_xlim(-0.5, len(weights.candidate.outer) - 0.5)
        page.note(page.left - 0.08, page.top - 0.05 - BAR / 2, "weight of\neach frame", ha="right", va="center")
    if weights.query is not None:
        y, height = page.rows["words"]
        axes = page.at(page.right + 0.08, y, BAR + 0.35, height)
        axes.barh(range(len(weights.query.outer)), array(weights.query.outer), height=0.6, color=INK)
        axes.set_ylim(len(weights.query.outer) - 0.5, -0.5)
        page.note(page.right + 0.08, y - 0.06, "weight of\neach word", va="bottom")


def legend(page: Page, scale: Scale, weighted: bool) -> None:
    """What colours, numbers and dots are."""
    page.note(page.left, page.legend + 0.1, "colour and number: similarity")
    axes = page.at(page.left, page.legend + 0.16, 1.9, 0.12)
    bar = page.figure.colorbar(ScalarMappable(**scale.colours), cax=axes, orientation="horizontal")
    bar.ax.xaxis.set_major_locator(MaxNLocator(4))
    bar.ax.tick_params(length=2, labelsize=7.5, labelcolor=PALE, color=PALE)
    if weighted:
        axes = page.at(page.left, page.legend + 0.66, 0.26, 0.26)
        axes.scatter([0], [0], s=DOT, c="white", edgecolors=INK, linewidths=0.8)
        text = "the larger the dot, the more this\nsimilarity counts in the score"
        page.note(page.left + 0.34, page.legend + 0.79, text, va="center")


def grain_bars(page: Page, parts: Mapping[str, float]) -> None:
    """Each grain's part in the score, as bars at the right of the legend; the numbers add up."""
    x = page.left + 3.65
    shown, total = rounded(parts)
    page.note(x, page.legend + 0.1, f"score {total:.3f}, the sum of", color=INK)
    axes = page.at(x, page.legend + 0.16, page.edge - x, BAR_ROW * len(parts))
    bars = axes.barh(range(len(parts)), list(shown.values()), height=0.62, color=BLUE)
    axes.bar_label(bars, [f"{value:.3f}" for value in shown.values()], padding=3, fontsize=8, color=INK)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set_ylim(len(parts) - 0.5, -0.5)
    low, high = min(0.0, *shown.values()), max(0.0, *shown.values())
    room = 0.5 * max(high - low, 1e-6)  # for the numbers
    axes.set_xlim(low - room if low < 0 else 0, high + (room if high > 0 or low == 0 else 0))


def inner_panels(page: Page, weights: Weights, words: Sequence[str]) -> None:
    """The inner level of either direction: two matrices of weights in ink."""
    width = (page.edge - page.left - 0.3) / 2
    panels = (
        (weights.query, "where each word looks: a row is shared out over the frames", page.left),
        (weights.candidate, "where each frame looks: a column, over the words", page.left + width + 0.3),
    )
    for i, (levels, title, x) in enumerate(panels):
        if levels is None:
            continue
        m, n = levels.inner.shape
        axes = page.at(x, page.bottom, width, m * SMALL)
        axes.imshow(array(levels.inner), cmap="Greys", vmin=0, aspect="auto")
        axes.set_xticks(range(n), [str(j + 1) for j in range(n)])
        axes.tick_params(labelsize=7, labelcolor=PALE)
        axes.spines[:].set(visible=True, color="#c9ced6")
        page.note(x, page.bottom - 0.08, title)
        if i == 0:
            axes.set_yticks(range(m), words)
