"""Files: the one way to write one, whole or not at all, and to read it back without acting on what it says.

A file is written beside its place under a temporary name, synced and renamed, so that whoever reads finds the file from
before or the new one, after a power cut too. A digest tells whether a file is the one that was written; a lock keeps a
folder to one writer. Only tensors and plain values are read, by `load_tensors` and `read_json`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import pickle
import pickletools
import secrets
import shutil
import socket
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, NoReturn, TypeAlias

import torch

Location: TypeAlias = "str | os.PathLike[str]"

_LONGEST = 200  # letters of a foreign error message
_LEGACY = 5  # pickles, one behind the other, in a file of torch.save before it wrote archives
_TUPLES = 50_000  # in a pickle
_BLOCK = 2**20  # bytes written at a time
_held: dict[Path, tuple[int, int]] = {}  # lock file -> thread that holds it, and how many times
_guard = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # a child holds nothing of its parent's


@contextmanager
def writing(path: Location) -> Generator[BinaryIO]:
    """A binary file that takes the place of `path` where the block ends well, and is removed where it does not.

    Its mode follows the umask. The file and its folder are synced before this returns.

    Raises:
        OSError: it cannot be written, as on a full disk; `filename` is the path, and the file from before is whole.
    """
    path = Path(path)
    partial = _beside(path)
    raw: _Raw | None = None
    try:
        raw = _Raw(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666), "wb")
        with io.BufferedWriter(raw, _BLOCK) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        if raw is not None:
            partial.unlink(missing_ok=True)
        # Writers in C, such as torch.save's, hide the error of the disk behind one of their own.
        cause = error if isinstance(error, OSError) else raw.failure if raw is not None else None
        if cause is None or cause.errno is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _beside(path: Path) -> Path:
    """A name of its own, which `remove_partial` knows."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


class _Raw(io.FileIO):
    """A file that remembers why a write failed."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """As FileIO.write."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_bytes(path: Location, content: bytes) -> None:
    """Write a whole file, as `writing` does."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Location, text: str) -> None:
    """Write a whole file in UTF-8; what UTF-8 cannot say, such as half of a surrogate pair, is written as an escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_lines(path: Location, lines: Iterable[str]) -> None:
    """Write a whole file of lines in UTF-8."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: Location, values: object) -> None:
    """Write a whole file of indented JSON."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_together(folder: Path, contents: dict[str, bytes]) -> None:
    """Write whole files by name, all of them or, after an error, none; they take their places in the order given."""
    with ExitStack() as stack:
        for name, content in reversed(contents.items()):
            file = stack.enter_context(writing(folder / name))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the first takes its place


def duplicate(path: Path, other: Path) -> None:
    """Let another file be what this one is: a link where the system has them, else a copy."""
    partial = _beside(other)
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


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last; systems that cannot open a folder have nothing to sync."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: Path, name: str | None = None, age: float = 0) -> None:
    """Remove what processes left that were killed while they wrote a file of this name (None: any).

    Args:
        age: seconds that it has lain there; 0 is for whoever holds the lock.
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


@contextmanager
def lock(path: Location) -> Generator[None]:
    """Keep other writers out of a folder, or away from a file, while the block runs; what those left that were killed
    goes.

    The same thread may take a lock again. The lock is a file `.lock` in the folder (`.NAME.lock` beside a file), which
    the operating system frees when the process ends, however it ends.

    Raises:
        BlockingIOError: another writer is there; the message says its process and machine.
        OSError: the lock cannot be made.
    """
    path = Path(path).resolve()  # by one name: a process has its locks whatever it calls the file
    place = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    thread = threading.get_ident()
    with _guard:
        holder, times = _held.get(place, (thread, 0))
        if holder != thread:
            raise BlockingIOError(f"{path}: another thread of this process is writing there; wait for it to end")
        handle = _take(place, path) if times == 0 else -1
        _held[place] = thread, times + 1
    try:
        if times == 0:
            remove_partial(place.parent, None if path.is_dir() else path.name)
        yield
    finally:
        with _guard:
            if times:
                _held[place] = thread, times
            else:
                del _held[place]
                place.unlink(missing_ok=True)  # before it is free: nobody else holds this file yet
                os.close(handle)


def _take(place: Path, path: Path) -> int:
    """An open handle of the lock file, locked for this process; the file says who holds it."""
    while True:
        handle = os.open(place, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _lock_file(handle)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                warnings.warn(f"{path}: no lock there, so that a second writer would not be noticed", stacklevel=4)
                return handle
            holder = os.pread(handle, 200, 0).decode(errors="replace") if hasattr(os, "pread") else ""
            os.close(handle)
            raise BlockingIOError(
                f"{path}: {holder or 'another process'} is writing there; wait for it to end, or choose another place"
            ) from error
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(place))
        except FileNotFoundError:
            same = False
        if same:
            with suppress(OSError):  # a full disk: the lock holds, and does not say whose it is
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return handle
        os.close(handle)  # its holder removed it on leaving; take the one that is there now


def _lock_file(handle: int) -> None:
    """Take the operating system's lock of a file, which a forked child does not inherit."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    """The path, of a file; neither a folder nor a pipe, which might never end.

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
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"expected every name once, got {max(names, key=names.count)!r} more than once")
    return values


def save_tensors(path: Location, values: Mapping[str, Any]) -> None:
    """Write tensors and plain values by name, for `load_tensors`.

    Raises:
        OSError: see `writing`.
    """
    with writing(path) as file:
        torch.save(dict(values), file)


def load_tensors(path: Location, device: torch.device | str = "cpu", sha256: str | None = None) -> Any:
    """Read what torch.save wrote; nothing but tensors and plain values is unpickled.

    Args:
        sha256: the digest of the file; None: the checksums within the file are verified, where it has some.

    Raises:
        OSError: it cannot be read.
        ValueError: no file, a damaged one, or one that holds more than tensors and plain values.
    """
    path = check_file(path)
    try:
        if sha256 is not None:
            check_digest(path, sha256)
        if zipfile.is_zipfile(path):
            _check_archive(path, sha256 is None)
        else:
            with path.open("rb") as file:
                _check_pickles(file, _LEGACY)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise what the damaged bytes run into
        refuse(path, error)


class PlainUnpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Builds dicts, lists, tuples, strings, bytes and numbers; whatever else needs a name, and gets none.

    Made of the one of the standard library that is written in Python: in C, one number in a pickle can take gigabytes.
    """

    def __init__(self, content: bytes, encoding: str = "ASCII") -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """No class and no function.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"{module}.{name}")

    def _make_dict(self: Any) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _set_item(self: Any) -> None:
        self._put([self.stack.pop(-2), self.stack.pop()])

    def _set_items(self: Any) -> None:
        self._put(self.pop_mark())

    def _put(self: Any, items: list[Any]) -> None:
        # A tuple in a hundred thousand others would overflow the stack, were it hashed.
        if type(self.stack[-1]) is not dict or not all(isinstance(key, str | int | float) for key in items[::2]):
            raise pickle.UnpicklingError("expected dicts of strings and numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # pyright: ignore[reportPrivateUsage]
        if bytes([code]) not in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.BYTEARRAY8)
    } | {pickle.DICT[0]: _make_dict, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}


def refuse(path: Location, error: Exception) -> NoReturn:
    """Raise a ValueError of one line about a file that a foreign reader could not read, or what the disk said."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a place that damaged bytes gave
        raise error
    if str(path) in str(error) and isinstance(error, ValueError):
        raise error
    reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
    if isinstance(error, pickle.UnpicklingError):  # torch's words advise to unpickle anything
        reason = "it holds more than tensors and plain values"
    raise ValueError(f"{path}: damaged, or no file of this kind: {reason}") from error


def _check_pickles(file: IO[bytes], count: int) -> None:
    """Refuse what could overflow the stack of whoever unpickles it: a tuple in a tuple in a tuple, hashed as a key."""
    tuples = 0
    for _ in range(count):
        for code, _, _ in pickletools.genops(file):
            tuples += code.name.startswith("TUPLE")
            if tuples > _TUPLES:
                raise ValueError(f"expected at most {_TUPLES:,} tuples, a few for each tensor")


def _check_archive(path: Path, checksums: bool) -> None:
    """torch.save compresses nothing, so whatever unpacks to more than the file is no work of its."""
    with zipfile.ZipFile(path) as archive:
        # What is marked as a folder, torch takes as read: its tensor would be whatever the memory held before.
        if any(item.compress_type != zipfile.ZIP_STORED or item.external_attr for item in archive.infolist()):
            raise ValueError(f"{path}: expected tensors as torch.save writes them, got compressed or marked ones")
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                with archive.open(name) as file:
                    _check_pickles(file, 1)
        if checksums and (name := archive.testzip()) is not None:
            raise ValueError(f"{path}: damaged: the checksum of {name} is another")


def rounded(values: Any) -> Any:
    """Nested values with every float to six decimals: a share of a million is told apart, 64.70000000000001 is not."""
    if isinstance(values, Mapping):
        return {name: rounded(value) for name, value in values.items()}
    return round(values, 6) if isinstance(values, float) else values
