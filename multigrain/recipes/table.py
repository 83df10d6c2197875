"""The tables of recipes in docs/recipes.md, made of the recipes' descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import files
from .base import about, names, parameters

START = "<!-- Written by `python -m multigrain.recipes docs/recipes.md` from here -->\n"
END = "<!-- to here -->"


def render() -> str:
    """Both tables in Markdown: the systems, and their published figures."""
    systems = [(name, about(name)) for name in names()]
    what = [
        [
            _link(name),
            *(f"{a.system} ({a.paper})", a.grains, a.aggregation, a.loss, a.extras, a.cost, _settings(name)),
        ]
        for name, a in systems
    ]
    published = [[f"`{name}`", a.figure, a.source] for name, a in systems if a.figure]
    header = ["recipe", "system", "grains", "aggregation", "loss", "beside that", "cost of a score", "settings"]
    lines = [*_table(header, what), "", *_table(["recipe", "published", "read in"], published)]
    return "\n" + "\n".join(lines) + "\n\n"


def _link(name: str) -> str:
    return f"[`{name}`](api/recipes.md#multigrain.recipes.{name})"


def _settings(name: str) -> str:
    return ", ".join(f"`{setting}`" for setting in parameters(name))


def write(page: Path) -> None:
    """Renew the tables between the two marks of a page.

    Raises:
        ValueError: a page without the marks.
    """
    text = page.read_text()
    if START not in text or END not in text:
        raise ValueError(f"{page}: expected the two lines {START.strip()} and {END}")
    before, _, rest = text.partition(START)
    files.write_text(page, before + START + render() + END + rest.partition(END)[2])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
