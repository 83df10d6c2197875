"""`python docs/figures [FOLDER] [NAME ...]`: draw the figures of the concepts, each computed by the library, as SVG."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from style import save

NAMES = ("grains", "aggregators", "masks", "precision", "losses", "evaluation")

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "assets"
    for name in sys.argv[2:] or NAMES:
        save(importlib.import_module(name).draw(), folder / f"{name}.svg")
