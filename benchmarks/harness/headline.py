"""The small table of speed that README.md and docs/index.md show, from the same results as docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .machine import ROOT
from .records import Figure, Result
from .registry import Shape
from .report import replace_between

PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
START = "<!-- Written by `python -m benchmarks report` from here -->"
END = "<!-- to here -->"

# (what the table calls it, benchmark, section, figure)
ROWS = (
    ("all scores", "aosm", "forward, raw tokens", "forward: speed / original"),
    ("scores and gradients", "aosm", "forward and backward, raw tokens", "forward and backward: speed / original"),
    ("scores, captions as long as MSR-VTT's", "lengths", "forward", "forward: speed / original"),
    ("the same with gradients", "lengths", "forward and backward", "forward and backward: speed / original"),
)
LARGE = Shape(2048, 2048)
PEAK = ("memory", f"{LARGE.texts} x {LARGE.videos}", "peak beyond inputs, outputs and gradients")


def render(results: Sequence[Result]) -> str:
    """The table in Markdown.

    Raises:
        ValueError: a result that the table needs is missing.
    """
    lines = ["| word-frame AOSM, 256 texts x 256 videos | beside X-CLIP's formula in PyTorch |"]
    lines.append("|---|---|")
    lines += [f"| {label} | {_find(results, *where).value:.1f} times as fast |" for label, *where in ROWS]
    peak = _find(results, *PEAK)
    copy = 4 * LARGE.similarities / 1e9
    place = f"{peak.value:.0f} {peak.unit} in place of several times {copy:.1f} GB"
    lines.append(f"| memory beyond inputs and results, with gradients, {LARGE.texts:,} x {LARGE.videos:,} | {place} |")
    return "\n".join(lines) + "\n"


def write(results: Sequence[Result], page: Path) -> None:
    """Renew the table between the two lines of a page; an error where they are missing."""
    page.write_text(replace_between(page.read_text(), START, END, render(results), str(page)))


def _find(results: Sequence[Result], benchmark: str, section: str, figure: str) -> Figure:
    found = [
        f
        for r in results
        if r.name == benchmark and r.device == "cpu"
        for s in r.sections
        if s.title == section
        for f in s.figures
        if f.name == figure
    ]
    if len(found) != 1:
        raise ValueError(f"{benchmark}, {section}: expected one figure {figure!r}, got {len(found)}")
    return found[0]
