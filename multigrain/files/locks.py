"""Locks: one writer at a time in a folder, or at a file."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .write import Location, remove_partial

_held: dict[Path, tuple[int, int]] = {}  # lock file -> thread that holds it, and how many times
_guard = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # a child holds nothing of its parent's


@contextmanager
def lock(path: Location) -> Generator[None]:
    """Keep other writers out of a folder, or away from a file, while the block runs.

    Temporary files of writers that were killed are removed. The same thread may take a lock again. The lock is
    a file `.lock` in the folder (`.NAME.lock` next to a file), which the operating system frees when the process ends,
    however it ends.

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
