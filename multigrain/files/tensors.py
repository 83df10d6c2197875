"""Files of tensors and plain values: nothing else is ever unpickled."""

from __future__ import annotations

import errno
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

import torch

from .read import check_digest, check_file
from .write import Location, writing

_LONGEST = 200  # letters of a foreign error message
_LEGACY = 5  # pickles, one behind the other, in a file of torch.save before it wrote archives
_TUPLES = 50_000  # in a pickle


def save_tensors(path: Location, values: Mapping[str, Any]) -> None:
    """Write tensors and plain values by name, for `load_tensors`; errors are those of `writing`."""
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
    """Unpickler of dicts, lists, tuples, strings, bytes and numbers; anything else would need a class, and gets none.

    It is the standard library's unpickler in Python: the one in C can spend gigabytes on one number of a pickle.
    """

    def __init__(self, content: bytes, encoding: str = "ASCII") -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function.

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
    """Raise a ValueError of one line about a file that a foreign reader could not read, or the error of the disk."""
    complete = isinstance(error, ValueError) and str(path) in str(error)
    of_disk = isinstance(error, OSError) and error.errno != errno.EINVAL  # of a place that damaged bytes gave
    if complete or of_disk or isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
    reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's words advise to unpickle anything
        reason = "it holds more than tensors and plain values"
    raise ValueError(f"{path}: damaged, or no file of this kind: {reason}") from error


def _check_pickles(file: IO[bytes], count: int) -> None:
    """Refuse pickles that could overflow the stack: tuples in tuples in tuples, hashed as a key."""
    tuples = 0
    for _ in range(count):
        for code, _, _ in pickletools.genops(file):
            tuples += code.name.startswith("TUPLE")
            if tuples > _TUPLES:
                raise ValueError(f"expected at most {_TUPLES:,} tuples, a few for each tensor")


def _check_archive(path: Path, checksums: bool) -> None:
    """Refuse compressed archives, which may unpack to any size, and damaged ones; torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        # torch does not read an entry that is marked as a folder: its tensor would hold arbitrary memory.
        if any(item.compress_type != zipfile.ZIP_STORED or item.external_attr for item in archive.infolist()):
            raise ValueError(f"{path}: expected tensors as torch.save writes them, got compressed or marked ones")
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                with archive.open(name) as file:
                    _check_pickles(file, 1)
        if checksums and (name := archive.testzip()) is not None:
            raise ValueError(f"{path}: damaged: the checksum of {name} is another")
