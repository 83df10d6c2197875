"""The blocks of the picture of a pair, on a `Canvas`: matrices, bars, the legend, the inner level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..explain import Levels, Weights
from .layout import BAR, BAR_ROW, INK, PALE, SMALL, WORD, Canvas
from .lettering import shorten
from .pair import MINUS, Coarse, round_parts, signed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLUE = "#0072B2"
# A cosine has a meaningful zero; orange and purple survive colour blindness, and print.
DIVERGING, ONE_SIDED = "PuOr_r", "YlOrBr"
NARROW = 0.5  # times the largest similarity: if all are positive and differ by less, the scale leaves zero out
FINE = 0.1  # if all differ by less, numbers have three digits
DOT = 80.0  # points squared: a dot that fills a row
DARK = 0.55  # luma: numbers on darker cells are white


@dataclass(frozen=True)
class Scale:
    """Mapping from a similarity to its colour and its number."""

    low: float
    high: float

    @classmethod
    def of(cls, shown: Sequence[Tensor]) -> Scale:
        """Span zero symmetrically, or the least to the greatest similarity if all lie close together, as CLIP's do."""
        low, high = min(float(x.min()) for x in shown), max(float(x.max()) for x in shown)
        if low > 0 and high - low < NARROW * high:
            return cls(low, high) if high - low > 1e-6 else cls(low - 1e-6, high + 1e-6)
        limit = max(-low, high, 1e-6)
        return cls(-limit, limit)

    @property
    def colours(self) -> dict[str, Any]:
        """Colour map and norm, as arguments of Matplotlib's functions."""
        return {"cmap": DIVERGING if self.low < 0 else ONE_SIDED, "norm": Normalize(self.low, self.high)}

    def dark(self, value: float) -> bool:
        """Tell whether this colour is too dark for dark numbers."""
        red, green, blue, _ = colormaps[self.colours["cmap"]]((value - self.low) / (self.high - self.low))
        return 0.299 * red + 0.587 * green + 0.114 * blue < DARK

    def number(self, value: float) -> str:
        """Write the similarity in two or three digits: .42, −.05."""
        text = f"{abs(value):.{3 if self.high - self.low < FINE else 2}f}".removeprefix("0")
        return f"{MINUS}{text}" if value < 0 and text.strip(".0") else text


def heat(axes: Axes, sim: Tensor, scale: Scale, weights: Tensor | None = None) -> None:
    """Draw cells coloured by similarity, its number in them, and dots whose area is the weight over the largest one.

    A weight below zero, which AOSM's mixing matrices may give, is a dark dot.
    """
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
            axes.text(j + x, i + 0.02, scale.number(value), fontsize=6.5, color=colour, ha=side, va="center")
    if weights is not None:
        cells = array(weights).flatten()
        areas = abs(cells) / max(abs(cells).max(), 1e-12)
        seen = (areas > 0.01).nonzero()[0]
        colours = [INK if cells[k] < 0 else "white" for k in seen]
        edges = ["white" if cells[k] < 0 else INK for k in seen]
        axes.scatter(seen % n - 0.24, seen // n, s=areas[seen] * DOT, c=colours, edgecolors=edges, linewidths=0.8)


def array(x: Tensor) -> NDArray[np.float32]:
    """Convert a tensor for Matplotlib."""
    return x.detach().float().cpu().numpy()


def frame_row(canvas: Canvas, frames: NDArray[np.uint8]) -> None:
    """Draw the thumbnails."""
    for j, frame in enumerate(frames):
        axes = canvas.at(canvas.left + (j + 0.03) * canvas.cell, canvas.top, 0.94 * canvas.cell, 0.94 * canvas.cell)
        axes.imshow(frame, interpolation="nearest")


def coarse_blocks(canvas: Canvas, coarse: Coarse, scale: Scale) -> Axes:
    """Draw the sentence's row and the video's column; return the axes of the column, which is next to the words."""
    across, down = coarse.sentence_weights, coarse.video_weights
    corner = canvas.block("sentence", "video")
    heat(corner, torch.tensor([[coarse.both]]), scale, torch.ones(1, 1) if coarse.counts else None)
    corner.set_yticks([0], ["sentence"])
    heat(canvas.block("sentence", "frames"), coarse.sentence[None], scale, None if across is None else across[None])
    video = canvas.block("words", "video")
    heat(video, coarse.video[:, None], scale, None if down is None else down[:, None])
    video.set_xticks([0], ["video"])
    return video


def choices(weights: Weights | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the outer weights of the frames and of the words, or None if there is just one to choose from."""
    levels = (None, None) if weights is None else (weights.candidate, weights.query)
    above, beside = (None if x is None or len(x.outer) == 1 else x.outer for x in levels)
    return above, beside


def outer_bars(canvas: Canvas, weights: Weights) -> None:
    """Draw the outer level of either direction: frames above their thumbnails, words at the right."""
    above, beside = choices(weights)
    if above is not None:
        outer = array(above)
        axes = canvas.at(canvas.left, canvas.top - BAR - 0.05, canvas.right - canvas.left, BAR)
        bars = axes.bar(range(len(outer)), outer, width=0.7, color=INK)
        axes.bar_label(bars, _weights(outer), padding=1.5, fontsize=6.5, color=PALE)
        axes.set_xlim(-0.5, len(outer) - 0.5)
        low, high = min(0.0, float(outer.min())), max(0.0, float(outer.max()))
        axes.set_ylim(low - 0.3 * (high - low) * (low < 0), high)  # with room for the numbers of bars below zero
        canvas.note(canvas.left - 0.08, canvas.top - 0.05 - BAR / 2, "weight of\neach frame", ha="right", va="center")
    if beside is not None:
        outer = array(beside)
        y, height = canvas.rows["words"]
        axes = canvas.at(canvas.right + 0.08, y, BAR + 0.4, height)
        bars = axes.barh(range(len(outer)), outer, height=0.6, color=INK)
        axes.bar_label(bars, _weights(outer), padding=2, fontsize=6.5, color=PALE)
        axes.set_ylim(len(outer) - 0.5, -0.5)
        low, high = min(0.0, float(outer.min())), max(0.0, float(outer.max()))
        axes.set_xlim(low - 0.5 * (high - low) * (low < 0), high + 0.5 * (high - low))
        canvas.note(canvas.right + 0.08, y - 0.06, "weight of\neach word", va="bottom")


def _weights(outer: NDArray[np.float32]) -> list[str]:
    """Write the numbers beside bars; a weight near zero has none."""
    return ["" if abs(w) < 0.005 else f"{w:.2f}".replace("0.", ".", 1).replace("-", MINUS) for w in outer.tolist()]


def legend(canvas: Canvas, scale: Scale, dots: Sequence[Tensor]) -> None:
    """Explain colours, numbers and dots."""
    canvas.note(canvas.left, canvas.legend + 0.1, "colour and number: similarity")
    axes = canvas.at(canvas.left, canvas.legend + 0.16, 1.9, 0.12)
    bar = canvas.figure.colorbar(ScalarMappable(**scale.colours), cax=axes, orientation="horizontal")
    bar.ax.xaxis.set_major_locator(MaxNLocator(4))
    bar.ax.tick_params(length=2, labelsize=7.5, labelcolor=PALE, color=PALE)
    if dots:
        axes = canvas.at(canvas.left, canvas.legend + 0.66, 0.26, 0.26)
        axes.scatter([0], [0], s=DOT, c="white", edgecolors=INK, linewidths=0.8)
        text = "the larger the dot, the more this\nsimilarity counts in its grain"
        if any(float(x.min()) < -0.01 * float(x.abs().max()) for x in dots):
            text += "; a dark\ndot counts against it"
        canvas.note(canvas.left + 0.34, canvas.legend + 0.79, text, va="center")


def grain_bars(canvas: Canvas, parts: Mapping[str, float]) -> None:
    """Draw each grain's part in the score as bars at the right of the legend; the numbers add up."""
    x = canvas.left + 3.65
    shown, total = round_parts(parts)
    canvas.note(x, canvas.legend + 0.1, f"score {signed(total)}, the sum of", color=INK)
    axes = canvas.at(x, canvas.legend + 0.16, min(canvas.edge - x, 3.0), BAR_ROW * len(parts))
    bars = axes.barh(range(len(parts)), list(shown.values()), height=0.62, color=BLUE)
    axes.bar_label(bars, [signed(value) for value in shown.values()], padding=3, fontsize=8, color=INK)
    canvas.name_rows(axes, [shorten(name, 1.2, WORD, canvas.family) for name in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    low, high = min(0.0, *shown.values()), max(0.0, *shown.values())
    room = 0.5 * max(high - low, 1e-6)  # for the numbers
    axes.set_xlim(low - room if low < 0 else 0, high + (room if high > 0 or low == 0 else 0))


def panels(weights: Weights) -> list[tuple[Levels, str]]:
    """Return the inner levels with more than one token to choose from, each with its caption."""
    word, frame = "where each word looks (black: all of it),\n", "where each frame looks (black: all of it),\n"
    both = (
        (weights.query, 1, f"{word}shared out along each row"),
        (weights.candidate, 0, f"{frame}shared out along each column"),
    )
    return [(x, caption) for x, side, caption in both if x is not None and x.inner.shape[side] > 1]


def inner_panels(canvas: Canvas, shown: Sequence[tuple[Levels, str]]) -> None:
    """Draw the inner level of either direction: matrices of weights in ink, on one scale."""
    width = (canvas.edge - canvas.left - 0.3) / 2
    for i, (levels, title) in enumerate(shown):
        inner = array(levels.inner)
        m, n = inner.shape
        x = canvas.left + i * (width + 0.3)
        axes = canvas.at(x, canvas.bottom, width, m * SMALL)
        # The square root of a share is drawn, so that small shares can be told apart.
        axes.imshow(inner.clip(0), cmap="Greys", norm=PowerNorm(0.5, 0, max(1.0, inner.max())), aspect="auto")
        below = (inner < -0.01).nonzero()  # AOSM's mixing
        axes.scatter(below[1], below[0], marker="_", s=16, c=BLUE, linewidths=1)
        axes.set_xticks(range(n), [str(j + 1) for j in range(n)])
        axes.tick_params(labelsize=7, labelcolor=PALE)
        axes.spines[:].set(visible=True, color="#c9ced6")
        canvas.note(x, canvas.bottom - 0.06, title, va="bottom")
        if i == 0:
            canvas.name_rows(axes, canvas.words, fontsize=7)
