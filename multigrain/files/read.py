"""Reading files: their digests, text and JSON."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .write import Location


def digest(path: Location) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Location, expected: str) -> None:
    """Compare a file with the digest that was noted when it was written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is another file, or damaged.
    """
    if (got := digest(path)) != expected:
        raise ValueError(f"{path}: damaged, or another file than was written: SHA-256 {got[:12]}, not {expected[:12]}")


def check_file(path: Location, name: str = "path") -> Path:
    """The path of a regular file; a folder is refused, and a pipe, which might never end.

    Raises:
        FileNotFoundError: nothing there.
        PermissionError: it may not be looked at.
        ValueError: something else than a file, or no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {type(path).__name__}")
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: expected a file, there is none at {path}") from None
    except OSError as error:
        raise OSError(error.errno, f"{name}: expected a file: {error.strerror}", str(path)[:200]) from None
    if not path.is_file():
        raise ValueError(f"{name}: expected a file, got {'a folder' if path.is_dir() else 'no regular file'}: {path}")
    return path


def read_text(path: Location, name: str = "path") -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: no file, or not UTF-8.
    """
    content = check_file(path, name).read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got byte {content[error.start]:#04x}") from error


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: no JSON, a name twice in one object, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("expected JSON that is nested less deeply") from None


def read_json(path: Location, name: str = "path") -> Any:
    """The values of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: no file, not UTF-8, or what `parse_json` refuses.
    """
    text = read_text(path, name)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs of name and value; an error for a name that occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"expected every name once, got {max(names, key=names.count)!r} more than once")
    return values
