"""docs/ablation.md"""

from __future__ import annotations


def render(result) -> str:
    """The page."""
    return "\n"
