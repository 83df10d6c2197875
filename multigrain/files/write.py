"""Writing files: each one whole or not at all."""

from __future__ import annotations

import glob
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

Location: TypeAlias = "str | os.PathLike[str]"

_BLOCK = 2**20  # bytes written at a time


@contextmanager
def writing(path: Location) -> Generator[BinaryIO]:
    """A binary file that takes the place of `path` where the block ends well, and is removed where it does not.

    Its mode follows the umask. The file and its folder are synced before this returns.

    Raises:
        OSError: it cannot be written, as on a full disk; `filename` is the path, and the file from before is whole.
    """
    path = Path(path)
    partial = _temporary(path)
    raw: _Raw | None = None
    try:
        raw = _Raw(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666), "wb")
        with io.BufferedWriter(raw, _BLOCK) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if raw is not None:
            partial.unlink(missing_ok=True)
        # Writers in C, such as torch.save's, hide the error of the disk behind one of their own.
        cause = error if isinstance(error, OSError) else raw.failure if raw is not None else None
        if cause is None or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _temporary(path: Path) -> Path:
    """Name a new file in the same folder, in the way that `remove_partial` recognises."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


class _Raw(io.FileIO):
    """A file that remembers why a write failed."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write like FileIO, and note an error."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_bytes(path: Location, content: bytes) -> None:
    """Write a file of these bytes, by `writing`."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Location, text: str) -> None:
    """Write a file in UTF-8; characters that it cannot express, such as half of a surrogate pair, become escapes."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_lines(path: Location, lines: Iterable[str]) -> None:
    """Write a file of lines in UTF-8."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: Location, values: object) -> None:
    """Write a file of indented JSON."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_together(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files by name, all of them or, after an error, none; they take their places in the order given."""
    with ExitStack() as stack:
        for name, content in reversed(contents.items()):
            file = stack.enter_context(writing(folder / name))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the first takes its place


def duplicate(path: Path, other: Path) -> None:
    """Give another name to the content of a file: by a link where the system has them, else by a copy."""
    partial = _temporary(other)
    try:
        os.link(path, partial)
        os.replace(partial, other)
    except OSError:
        with path.open("rb") as source, writing(other) as target:
            shutil.copyfileobj(source, target)
    finally:
        partial.unlink(missing_ok=True)  # where both were one file before, it was not moved


def append_lines(path: Location, lines: Iterable[str]) -> None:
    """Add lines in UTF-8 to the end of a file and sync it; a reader leaves out a last line without its newline.

    Raises:
        OSError: it cannot be written; `filename` is the path.
    """
    path = Path(path)
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="backslashreplace")
    try:
        with _Raw(path, "ab") as file:
            size = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # half a line would run into the next one
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last; a system that cannot open a folder has nothing to sync."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: Path, name: str | None = None, age: float = 0) -> None:
    """Remove the temporary files of processes that were killed while they wrote a file of this name (None: any).

    Args:
        age: the least age in seconds; 0 is for a caller that holds the lock.
    """
    for partial in folder.glob(f"{'*' if name is None else glob.escape(name)}.*-????????.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime >= age:
                partial.unlink()


def open_folder(path: Location, name: str = "out_dir") -> Path:
    """The folder, made if need be.

    Raises:
        OSError: it cannot be made or written to; `name` is the argument in the message.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OSError(f"{name}: expected a folder that can be written to, got {folder}: {error}") from error
    return folder


def rounded(values: Any) -> Any:
    """Round every float in nested values to six decimals, so that 64.70000000000001 is written as 64.7."""
    if isinstance(values, Mapping):
        return {name: rounded(value) for name, value in values.items()}
    return round(values, 6) if isinstance(values, float) else values
