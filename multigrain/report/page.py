"""One self-contained HTML page about a run: text and pictures inside, nothing fetched, readable on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from . import tables

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Hit:
    """A retrieved video."""

    frames: NDArray[np.uint8]
    """[n, height, width, 3]"""
    sentence: str
    """its own sentence"""
    score: float
    rank: int
    own: bool
    """whether it is the one that was looked for"""


@dataclass(frozen=True)
class Example:
    """A query and what it found."""

    sentence: str
    rank: int
    """of its own video"""
    hits: Sequence[Hit]


@dataclass(frozen=True)
class Report:
    """What the page shows. All texts are plain; they are escaped."""

    title: str
    verdict: str
    lead: Sequence[str]
    """paragraphs below the title"""
    rows: Sequence[tables.Row]
    table_note: str
    similarity: Sequence[tuple[bytes, str]]
    """PNG pictures, each with its caption"""
    examples_note: str
    examples: Mapping[str, Sequence[Example]]
    """by the heading of their group"""
    curves: tuple[bytes, str]
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    config: str = ""
    """the settings in full, as text"""


def render(report: Report) -> str:
    """The page as text."""
    folder = resources.files("multigrain") / "report"
    groups = [
        f"<h3>{escape(name)}</h3>\n" + "\n".join(_example(example, i == 0) for i, example in enumerate(examples))
        for name, examples in report.examples.items()
        if examples
    ]
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.settings.items())
    return Template((folder / "template.html").read_text(encoding="utf-8")).substitute(
        style=(folder / "style.css").read_text(encoding="utf-8").strip(),
        title=escape(report.title),
        verdict=escape(report.verdict),
        lead="\n".join(f"<p>{escape(text)}</p>" for text in report.lead),
        table=_table(report.rows),
        table_note=f'<p class="pale">{escape(report.table_note)}</p>',
        similarity="\n".join(_figure(png, caption) for png, caption in report.similarity),
        examples_note=f'<p class="pale">{escape(report.examples_note)}</p>',
        examples="\n".join(groups),
        curves=_figure(*report.curves),
        settings=f"<dl>{terms}</dl>" + (f"<pre>{escape(report.config)}</pre>" if report.config else ""),
    )


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def strip_png(frames: NDArray[np.uint8]) -> bytes:
    """Frames [n, height, width, 3] side by side, two pixels apart, as a PNG with a palette (some kilobytes)."""
    from PIL import Image

    n, height, width, _ = frames.shape
    strip = Image.new("RGB", (n * (width + 2) - 2, height), "white")
    for i, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame), (i * (width + 2), 0))
    if strip.getcolors(256) is not None:
        strip = strip.quantize(256, dither=Image.Dither.NONE)  # no more colours than that: nothing is lost
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _table(rows: Sequence[tables.Row]) -> str:
    half = len(tables.COLUMNS)
    spans = "".join(
        f'<th colspan="{half}"{_second(i * half)}>{name}</th>' for i, (_, name) in enumerate(tables.DIRECTIONS)
    )
    heads = "".join(f"<th{_second(i)}>{tables.COLUMNS[i % half]}</th>" for i in range(2 * half))
    lines = [
        f'<tr class="{row.kind}"><td>{escape(row.name)}</td>'
        + "".join(f"<td{_second(i)}>{escape(cell)}</td>" for i, cell in enumerate(row.cells))
        + "</tr>"
        for row in rows
    ]
    head = f"<thead><tr><th></th>{spans}</tr><tr><th>grain</th>{heads}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _second(column: int) -> str:
    return ' class="second"' if column == len(tables.COLUMNS) else ""


def _example(example: Example, opened: bool) -> str:
    hits = "\n".join(_hit(hit) for hit in example.hits)
    return (
        f'<details class="example"{" open" * opened}><summary>“{escape(example.sentence)}” '
        f'<span class="rank">own video at rank {example.rank:,}</span></summary>\n<ol>{hits}</ol></details>'
    )


def _hit(hit: Hit) -> str:
    kind, what = ("own", "its own video") if hit.own else ("other", f"the video of “{escape(hit.sentence)}”")
    image = _image(strip_png(hit.frames), "strip", f"{len(hit.frames)} frames, rank {hit.rank}")
    return (
        f'<li class="frames"><div class="scroll">{image}</div>'
        f'<div class="caption">{hit.rank:,}. <span class="{kind}">{what}</span> '
        f'<span class="pale">{hit.score:.3f}</span></div></li>'
    )


def _figure(png: bytes, caption: str) -> str:
    image = _image(png, "", caption)
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _image(png: bytes, kind: str, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" loading="lazy" alt="{escape(text)}" src="data:image/png;base64,{data}">'
