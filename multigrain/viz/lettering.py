"""Text in pictures, in any language: its width, and fonts that have its letters."""

from __future__ import annotations

import textwrap
from bisect import bisect
from collections.abc import Sequence

from matplotlib import font_manager, rcParams
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ..checks import whole_text

MISSING = "▯"  # stands for a letter that no font has
_LINE = 1000  # letters: no line of a picture holds more, so the rest of a long text is not measured
_PLACEHOLDER = "Last Resort"  # Matplotlib's own, which has every letter as a box


def families(texts: Sequence[str]) -> tuple[list[str], set[str]]:
    """Find fonts that together have the letters of the texts, Matplotlib's own first; and the letters that none has."""
    first = FontProperties(family=rcParams["font.family"]).get_name()
    chosen = [first]
    lacking = _lacking(font_manager.findfont(first), {letter for text in texts for letter in text if letter > "~"})
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name) if lacking else ():
        if not font.name.startswith(_PLACEHOLDER) and font.name not in chosen:
            left = _lacking(font.fname, lacking)
            chosen += [font.name] * (left < lacking)
            lacking = left
    return chosen, lacking


def inches(text: str, size: float, family: Sequence[str], weight: str = "normal") -> float:
    """Measure a line of text of that size in points."""
    properties = FontProperties(family=list(family), size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, properties, ismath=False)
    return 1.04 * width / 72  # on pixels, letters are a little wider than their outlines


def wrap(text: str, width: float, most: int, size: float, family: Sequence[str], weight: str = "normal") -> list[str]:
    """Break a text into at most `most` lines of at most `width` inches; an ellipsis stands for the rest."""
    text = whole_text(text[: most * _LINE])
    letters = max(1, int(len(text) * width / max(inches(text, size, family, weight), 1e-6)))
    while True:
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder=" …")
        if letters <= 3 or all(inches(line, size, family, weight) <= width for line in lines):
            return lines
        letters -= max(1, letters // 20)


def shorten(text: str, width: float, size: float, family: Sequence[str]) -> str:
    """Return the text, or as much of its beginning as fits, and an ellipsis."""
    text = whole_text(text[: _LINE + 1])
    if len(text) <= _LINE and inches(text, size, family) <= width:
        return text
    kept = range(min(len(text), _LINE))  # one letter more makes no line shorter, so bisecting works
    return text[: bisect(kept, width, key=lambda n: inches(f"{text[: n + 1]}…", size, family))] + "…"


def _lacking(path: str, letters: set[str]) -> set[str]:
    """Return the letters that a font does not have."""
    font = font_manager.get_font(path)
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
