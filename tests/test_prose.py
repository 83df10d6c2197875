"""Docstrings that a stranger understands at first reading."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A docstring that opens with one of these lacks its noun or its verb: it cannot be read without the signature.
FRAGMENTS = {
    "what", "that", "those", "of", "as", "by", "where", "which", "whether", "beside", "behind", "its", "without",
}  # fmt: skip


def test_every_docstring_opens_with_its_noun_or_its_verb() -> None:
    fragments: list[str] = []
    for path in sorted((ROOT / "multigrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0].strip(".,:").lower() in FRAGMENTS:
                    fragments.append(f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {' '.join(words[:8])}")
    assert fragments == []
