"""Layout of the picture of a pair, in inches from the top left, so that bars, thumbnails and cells align."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .lettering import MISSING, families, inches, shorten, wrap

INK, PALE = "#22252a", "#6b717a"

ROW, GAP, BAR, SMALL = 0.27, 0.08, 0.55, 0.15
"""inches: a word's row, the gap before the coarse grains, the longest bar, a small row"""
LABELS = 0.8, 2.2
"""inches: the least and the greatest width of the words at the left"""
LEGEND, BAR_ROW, PANELS = 1.7, 0.22, 5.4
"""inches: the least height of the legend, a bar beside it, the least width of the panels below the matrix"""
WORD, TITLE, LINES = 8.5, 11.5, 3
"""points: a word, the title; and how many lines a title has at most"""
_NO_FONT = "{} stands for a letter that no font of this machine has."


class Canvas:
    """A figure with a place for each part of the picture of m words and n frames.

    Args:
        coarse: leave a row for the sentence and a column for the video.
        above, beside: leave room for bars above the matrix, and at its right.
        levels: leave room for the panels of the inner level at the bottom.
        thumbnails: leave a row for them.
        words: the m words; a long one is cut off.
        title, subtitle: text at the top, or nothing; a long title is wrapped.
        bars: number of bars beside the legend.
        notes: lines at the very bottom.
    """

    def __init__(
        self,
        m: int,
        n: int,
        *,
        coarse: bool,
        above: bool,
        beside: bool,
        levels: bool,
        thumbnails: bool,
        words: Sequence[str],
        title: str,
        subtitle: str,
        bars: int,
        notes: Sequence[str],
    ) -> None:
        self.family, missing = families([title, subtitle, *words])
        table = str.maketrans(dict.fromkeys(missing, MISSING))
        if missing:
            notes = [*notes, _NO_FONT.format(MISSING)]
        self.words = [shorten(word.translate(table), LABELS[1] - 0.15, WORD, self.family) for word in words]
        self.cell = min(max(0.56, 5.6 / n), 0.9)
        video = self.cell if coarse else 0.0
        labels = max([LABELS[0], *(0.15 + inches(word, WORD, self.family) for word in self.words)])
        self.left = labels + (video + GAP if coarse else 0)
        self.right = self.left + n * self.cell
        self.edge = max(self.right, self.left + PANELS)
        self.width = max(self.right + BAR + 0.6 if beside else 0.0, self.edge + 0.25)
        self.columns = {"video": (labels, video), "frames": (self.left, n * self.cell)}
        lines = wrap(title.translate(table), self.width - 0.24, LINES, TITLE, self.family, "bold") if title else []
        head = 0.22 * (len(lines) + bool(subtitle))
        self.top = 0.2 + head + (BAR + 0.22 if above else 0)
        sentence = self.top + (self.cell + 0.03) * thumbnails
        words_top = sentence + (ROW + GAP if coarse else 0)
        self.rows = {"sentence": (sentence, ROW), "words": (words_top, m * ROW)}
        self.legend = words_top + m * ROW + 0.5
        self.bottom = self.legend + max(LEGEND, 0.7 + BAR_ROW * bars)
        below = self.bottom + (m * SMALL + 0.45 if levels else -0.4)
        wrapped = [line for note in notes for line in wrap(note, self.width - 0.24, 9, 8, self.family)]
        self.height = below + 0.17 * len(wrapped)
        self.figure = Figure((self.width, self.height), facecolor="white")
        style = {"fontsize": TITLE, "color": INK, "weight": "bold", "family": self.family}
        for i, line in enumerate(lines):
            self.note(0.12, 0.22 + 0.22 * i, line, va="center", **style)
        subtitle = shorten(subtitle.translate(table), self.width - 0.24, 9.5, self.family)
        self.note(0.12, 0.22 * len(lines) + 0.22, subtitle, va="center", fontsize=9.5, family=self.family)
        for i, line in enumerate(wrapped):
            self.note(0.12, below - 0.06 + 0.17 * i, line, va="center", family=self.family)

    def block(self, row: str, column: str) -> Axes:
        """Add axes over a row ("words", "sentence") and a column ("frames", "video")."""
        (x, width), (y, height) = self.columns[column], self.rows[row]
        return self.at(x, y, width, height)

    def at(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add bare axes whose top left corner is at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return axes

    def note(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write small pale text at (x, y); a dollar sign starts no formula."""
        style = {"fontsize": 8, "color": PALE, "parse_math": False, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def name_rows(self, axes: Axes, names: Sequence[str], **style: Any) -> None:
        """Label rows at their left."""
        axes.set_yticks(range(len(names)), names, family=self.family, parse_math=False, **style)
