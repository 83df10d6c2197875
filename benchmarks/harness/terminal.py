"""A result as tables in a terminal: with rich where it is installed, plainly otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .records import Result
from .report import figure_rows, footnote, provenance, timing_rows


def show(result: Result) -> None:
    """Print all sections of a result."""
    print(provenance(result))
    for section in result.sections:
        print(f"\n{section.title}: {section.inputs}")
        table("", ["figure", "median (quartiles)", "target", ""], figure_rows(section))
        if section.timings:
            table("", ["candidate", "time"], timing_rows(section))
        print(footnote(section))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table."""
    rows = [[cell.replace("**", "") for cell in row] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
        print(title)
        for row in [header, *rows]:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    grid = Table(*header, title=title or None, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(grid)
