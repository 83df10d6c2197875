"""Pictures: which frame and which word made a match, with what weight; and training curves.

Colour is similarity and ink is weight. Every function returns a `matplotlib.figure.Figure` of its own; pyplot's
global state is never touched. Needs the extra ``viz``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .report.explain import Weights

try:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from .report.layout import BAR, INK, PALE, SMALL, Page
except ImportError as error:
    raise ImportError('pictures need Matplotlib: pip install "multigrain[viz]"') from error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Series: TypeAlias = Sequence[tuple[float, float]]
"""Points (x, y) of a curve, in the order of x."""

# Okabe and Ito's palette: told apart with any of the common colour blindnesses.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Diverging, since a cosine has a meaningful zero; orange and purple survive colour blindness, and print.
COSINE = "PuOr_r"
DOT = 95.0  # points squared: a dot that fills a row


@dataclass(frozen=True)
class Coarse:
    """The coarse grains of a pair, which frame the matrix of words and frames: similarities and their weights."""

    video: Float[Tensor, "m"]
    """each word against the whole video"""
    sentence: Float[Tensor, "n"]
    """the whole sentence against each frame"""
    both: float
    """the sentence against the video"""
    video_weights: Float[Tensor, "m"] | None = None
    sentence_weights: Float[Tensor, "n"] | None = None


def similarity(
    frames: NDArray[np.uint8],
    words: Sequence[str],
    sim: Float[Tensor, "m n"],
    weights: Weights | None = None,
    coarse: Coarse | None = None,
    parts: Mapping[str, float] | None = None,
    title: str | None = None,
    subtitle: str = "",
) -> Figure:
    """One pair: its frames as thumbnails against its words, coloured by similarity, dotted by weight.

    Args:
        frames: [n, height, width, 3] the real frames, RGB.
        words: the m real words.
        sim: cosine of every word with every frame.
        weights: of the pairs of tokens (the area of the dots), of the outer level (the bars) and of the inner level
            (the two panels at the bottom); see `multigrain.report.explain.token_weights`.
        coarse: adds a row for the sentence and a column for the video.
        parts: what each grain adds to the score, by name.
        title, subtitle: default: the words, and nothing.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    m, n = len(words), len(frames)
    if tuple(sim.shape) != (m, n):
        raise ValueError(f"sim: expected [{m}, {n}] for {m} words and {n} frames, got {list(sim.shape)}")
    levels = weights is not None and (weights.query is not None or weights.candidate is not None)
    page = Page(
        m,
        n,
        coarse=coarse is not None,
        weighted=weights is not None,
        levels=levels,
        title=title or " ".join(words),
        subtitle=subtitle,
    )
    norm = _scale([sim] if coarse is None else [sim, coarse.video, coarse.sentence, torch.tensor(coarse.both)])
    matrix = page.block("words", "frames")
    _heat(matrix, sim, norm, None if weights is None else weights.cells)
    matrix.set_xticks(range(n), [str(j + 1) for j in range(n)])
    matrix.set_xlabel("frame", color=PALE, fontsize=8)
    labelled = matrix if coarse is None else _coarse(page, coarse, norm)
    labelled.set_yticks(range(m), words)
    for j, frame in enumerate(frames):
        axes = page.at(page.left + (j + 0.03) * page.cell, page.top, 0.94 * page.cell, 0.94 * page.cell)
        axes.imshow(frame, interpolation="nearest")
    _legend(page, norm, weights is not None)
    if weights is not None:
        _bars(page, weights)
        _inner(page, weights, words)
    if parts is not None:
        _parts(page, parts)
    return page.figure


def _scale(shown: Sequence[Tensor]) -> Normalize:
    """A scale symmetric about zero, up to the largest similarity shown."""
    limit = max(float(x.abs().max()) for x in shown)
    return Normalize(-max(limit, 1e-6), max(limit, 1e-6))


def _heat(axes: Axes, sim: Tensor, norm: Normalize, weights: Tensor | None = None) -> None:
    """Cells coloured by similarity, with dots whose area is the weight relative to the largest."""
    m, n = sim.shape
    axes.imshow(_array(sim), cmap=COSINE, norm=norm, aspect="auto")
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, m)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    if weights is not None:
        areas = _array((weights / weights.max().clamp_min(1e-12)).clamp_min(0).flatten())
        seen = (areas > 0.01).nonzero()[0]
        axes.scatter(seen % n, seen // n, s=areas[seen] * DOT, c="white", edgecolors=INK, linewidths=0.8)


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.detach().float().cpu().numpy()


def _coarse(page: Page, coarse: Coarse, norm: Normalize) -> Axes:
    """The sentence's row and the video's column; returns the latter's axes, at the left of the words."""
    across, down = coarse.sentence_weights, coarse.video_weights
    corner = page.block("sentence", "video")
    _heat(corner, torch.tensor([[coarse.both]]), norm)
    corner.set_yticks([0], ["sentence"])
    _heat(page.block("sentence", "frames"), coarse.sentence[None], norm, None if across is None else across[None])
    video = page.block("words", "video")
    _heat(video, coarse.video[:, None], norm, None if down is None else down[:, None])
    video.set_xticks([0], ["video"])
    return video


def _bars(page: Page, weights: Weights) -> None:
    """The outer level of either direction: frames above their thumbnails, words at the right."""
    if weights.candidate is not None:
        axes = page.at(page.left, page.top - BAR - 0.05, page.right - page.left, BAR)
        axes.bar(range(len(weights.candidate.outer)), _array(weights.candidate.outer), width=0.7, color=INK)
        axes.set_xlim(-0.5, len(weights.candidate.outer) - 0.5)
        page.note(page.left - 0.08, page.top - 0.05 - BAR / 2, "weight of\neach frame", ha="right", va="center")
    if weights.query is not None:
        y, height = page.rows["words"]
        axes = page.at(page.right + 0.08, y, BAR + 0.35, height)
        axes.barh(range(len(weights.query.outer)), _array(weights.query.outer), height=0.6, color=INK)
        axes.set_ylim(len(weights.query.outer) - 0.5, -0.5)
        page.note(page.right + 0.08, y - 0.06, "weight of\neach word", va="bottom")


def _legend(page: Page, norm: Normalize, weighted: bool) -> None:
    page.note(page.left, page.legend + 0.1, "similarity (cosine)")
    axes = page.at(page.left, page.legend + 0.16, 1.9, 0.12)
    bar = page.figure.colorbar(ScalarMappable(norm, COSINE), cax=axes, orientation="horizontal")
    bar.ax.xaxis.set_major_locator(MaxNLocator(4))
    bar.ax.tick_params(length=2, labelsize=7.5, labelcolor=PALE, color=PALE)
    if weighted:
        axes = page.at(page.left, page.legend + 0.66, 0.26, 0.26)
        axes.scatter([0], [0], s=DOT, c="white", edgecolors=INK, linewidths=0.8)
        page.note(page.left + 0.34, page.legend + 0.79, "area: weight of the pair in its\ngrain's score", va="center")


def _parts(page: Page, parts: Mapping[str, float]) -> None:
    """Each grain's part in the score, as bars at the right of the legend."""
    x, total = page.left + 3.65, sum(parts.values())
    page.note(x, page.legend + 0.1, f"score {total:.3f}, of which", color=INK)
    axes = page.at(x, page.legend + 0.16, page.edge - x, 0.22 * len(parts))
    bars = axes.barh(range(len(parts)), list(parts.values()), height=0.62, color=PALETTE[0])
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8, color=INK)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.margins(x=0.2)


def _inner(page: Page, weights: Weights, words: Sequence[str]) -> None:
    """The inner level of either direction: two matrices of weights in ink."""
    width = (page.edge - page.left - 0.3) / 2
    panels = (
        (weights.query, "inner level: each word over the frames", page.left),
        (weights.candidate, "inner level: each frame over the words", page.left + width + 0.3),
    )
    for i, (levels, title, x) in enumerate(panels):
        if levels is None:
            continue
        m, n = levels.inner.shape
        axes = page.at(x, page.bottom, width, m * SMALL)
        axes.imshow(_array(levels.inner), cmap="Greys", vmin=0, aspect="auto")
        axes.set_xticks(range(n), [str(j + 1) for j in range(n)])
        axes.tick_params(labelsize=7, labelcolor=PALE)
        axes.spines[:].set(visible=True, color="#c9ced6")
        page.note(x, page.bottom - 0.08, title)
        if i == 0:
            axes.set_yticks(range(m), words)


def curves(
    losses: Mapping[str, Series],
    recalls: Mapping[str, Series],
    chance: float | None = None,
    x_label: str = "epoch",
) -> Figure:
    """Training at a glance: the loss at the left, validation R@1 at the right.

    Args:
        losses: curves by name, such as one for each stage.
        recalls: validation R@1 in per cent, by name.
        chance: R@1 of a random order, in per cent: a dotted line.
        x_label: what x counts.
    """
    figure = Figure((9, 3.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes, series, label in ((left, losses, "training loss"), (right, recalls, "validation R@1, per cent")):
        for (name, points), colour in zip(series.items(), PALETTE, strict=False):
            mark = "o" if len(points) < 40 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=name, marker=mark, ms=3.5)
        axes.set_xlabel(x_label, color=INK)
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if chance is not None:
        right.axhline(chance, color=PALE, linestyle=":", label=f"chance ({chance:g})")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure
