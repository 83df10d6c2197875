"""Where things go in the picture of a pair: inches from the top left, so that bars, thumbnails and cells align."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PALE = "#22252a", "#6b717a"

ROW, GAP, BAR, SMALL = 0.27, 0.08, 0.55, 0.15
"""inches: a word's row, the gap before the coarse grains, the longest bar, a small row"""
LETTER, LABELS = 0.08, (0.8, 2.2)
"""inches: a letter of the labels at the left, with room to spare, and the least and the most for them"""
LEGEND, BAR_ROW, PANELS = 1.55, 0.22, 5.4
"""inches: the least height of the legend, a bar beside it, the least width of what is below the matrix"""


class Page:
    """A figure for m words and n frames.

    Args:
        coarse: with a row for the sentence and a column for the video.
        weighted: with room for bars above and at the right.
        levels: with room for the inner level's panels at the bottom.
        thumbnails: with room for a row of them.
        letters: of the longest word.
        title, subtitle: at the top; a long title is wrapped.
        bars: how many stand beside the legend.
        notes: lines at the very bottom.
    """

    def __init__(
        self,
        m: int,
        n: int,
        *,
        coarse: bool,
        weighted: bool,
        levels: bool,
        thumbnails: bool,
        letters: int,
        title: str,
        subtitle: str,
        bars: int,
        notes: Sequence[str],
    ) -> None:
        self.cell = min(max(0.56, 5.6 / n), 0.9)
        video = 0.8 * self.cell if coarse else 0.0
        labels = min(max(LABELS[0], 0.15 + LETTER * letters), LABELS[1])
        self.left = labels + (video + GAP if coarse else 0)
        self.right = self.left + n * self.cell
        self.edge = max(self.right, self.left + PANELS)
        self.width = max(self.right + BAR + 0.6 if weighted else 0.0, self.edge + 0.25)
        self.columns = {"video": (labels, video), "frames": (self.left, n * self.cell)}
        lines = textwrap.wrap(title, int(8.6 * self.width)) + [subtitle] * bool(subtitle)
        self.top = 0.32 + 0.22 * len(lines) + (BAR + 0.1 if weighted else 0)
        sentence = self.top + (self.cell + 0.03) * thumbnails
        words = sentence + (ROW + GAP if coarse else 0)
        self.rows = {"sentence": (sentence, ROW), "words": (words, m * ROW)}
        self.legend = words + m * ROW + 0.5
        self.bottom = self.legend + max(LEGEND, 0.55 + BAR_ROW * bars)
        below = self.bottom + (m * SMALL + 0.45 if levels else -0.25)
        wrapped = [line for note in notes for line in textwrap.wrap(note, int(13 * self.width))]
        self.height = below + 0.17 * len(wrapped)
        self.figure = Figure((self.width, self.height), facecolor="white")
        for i, line in enumerate(lines):
            small = bool(subtitle) and i == len(lines) - 1
            style = {"fontsize": 9.5} if small else {"fontsize": 11.5, "color": INK, "weight": "bold"}
            self.note(0.12, 0.22 + 0.22 * i, line, va="center", **style)
        for i, line in enumerate(wrapped):
            self.note(0.12, below - 0.06 + 0.17 * i, line, va="center")

    def block(self, row: str, column: str) -> Axes:
        """Axes over a row ("words", "sentence") and a column ("frames", "video")."""
        (x, width), (y, height) = self.columns[column], self.rows[row]
        return self.at(x, y, width, height)

    def at(self, x: float, y: float, width: float, height: float) -> Axes:
        """Bare axes whose top left corner is at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return axes

    def note(self, x: float, y: float, text: str, **style: Any) -> None:
        """Small pale text at (x, y)."""
        style = {"fontsize": 8, "color": PALE, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)
