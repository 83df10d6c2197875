"""`python -m multigrain.recipes [page]`: print the tables of recipes, or renew them in a page."""

from __future__ import annotations

import sys
from pathlib import Path

from .table import render, write

if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        sys.stdout.write(render())
