"""Read the state dict of a TorchScript archive as data: nothing in it is run, and torch.jit is not used.

    NAME/data.pkl           the modules: a pickle of classes by name, attributes by name, tensors by what they view
    NAME/data/0, 1, ...     the bytes that the tensors view
    NAME/code/*.py          of each class, which attributes are parameters and buffers, and methods, which are not read

The archive can say how its objects restore themselves (`__setstate__`), and torch.jit.load does as it is told.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import PlainUnpickler

_MARK = "/constants.pkl"  # in every archive of torch.jit, and in nothing else
_MOST_TEXT = 1 << 24  # bytes of data.pkl and of the code that is read, a few hundred for each tensor
_ENTRY = 100  # bytes that each mention of a module or a tensor counts for
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_FIELDS = ("  __parameters__ = [", "  __buffers__ = [")


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is an archive of torch.jit, as OpenAI's are; a damaged archive is none."""
    with Path(path).open("rb") as file:
        try:
            return any(name.endswith(_MARK) for name in zipfile.ZipFile(file).namelist())
        except Exception:  # zipfile raises what the damaged bytes run into
            return False


def read_torchscript(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of torch.jit.load(path).state_dict(), on the CPU.

    Raises:
        OSError: it cannot be read.
        Exception: a damaged archive, or one that asks for more than to hold tensors.
    """
    with zipfile.ZipFile(path) as archive:
        files = _Files(archive, Path(path).stat().st_size)
        root = _Unpickler(files.read("data.pkl")).load()
        return {name: files.tensor(value) for name, value in _tensors(root, "", files)}


def _tensors(module: Any, prefix: str, files: _Files) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and buffers of a module and of its submodules, by their names in a state dict."""
    if not isinstance(module.state, dict):
        raise ValueError(f"{module.path}: expected attributes by name, got an object that restores itself")
    files.spend("modules", _ENTRY)
    names = files.fields(module.path) or ()
    yield from ((prefix + name, value) for name, value in module.state.items() if name in names and value is not None)
    for name, value in module.state.items():
        if isinstance(value, _Holder) and files.fields(value.path) is not None:
            yield from _tensors(value, f"{prefix}{name}.", files)


class _Holder:
    """A stand-in for an object of any class: it keeps the arguments and the state, and does nothing."""

    path: str
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Holder:
        made = object.__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(PlainUnpickler):
    """Unpickle plain values and holders; whatever the pickle names, no class is made and no function called."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._classes: dict[str, type[_Holder]] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        return self._classes.setdefault(path, type("Holder", (_Holder,), {"path": path}))

    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Files:
    """The files of an archive, which may together give no more bytes than the archive has, and some text."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive, self._room = archive, size + _MOST_TEXT
        names = archive.namelist()
        self._folder = next(name for name in names if name.endswith(_MARK)).removesuffix(_MARK)
        self._storages: dict[tuple[str, str], Tensor] = {}
        self._fields: dict[str, dict[str, set[str]]] = {}
        if f"{self._folder}/byteorder" in names and self.read("byteorder").decode() != sys.byteorder:
            raise ValueError(f"expected numbers whose {sys.byteorder} end comes first")

    def read(self, name: str, stored: bool = False) -> bytes:
        """Read a file; with `stored`, it must not be compressed."""
        entry = self._archive.getinfo(f"{self._folder}/{name}")
        if stored and entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name}: expected numbers that are not compressed")
        self.spend(name, entry.file_size)
        return self._archive.read(entry)

    def spend(self, name: str, count: int) -> None:
        """Count bytes against the most that there may be."""
        self._room -= count
        if self._room < 0:
            raise ValueError(f"{name}: expected no more than the archive holds")

    def fields(self, path: str) -> set[str] | None:
        """Return the names of a class's parameters and buffers; None: it is no class of modules."""
        module, _, name = path.rpartition(".")
        if not f"{module}.".startswith("__torch__."):
            return None
        if module not in self._fields:
            self._fields[module] = found = {}
            current: set[str] = set()
            for line in self.read(f"code/{module.replace('.', '/')}.py").decode().split("\n"):
                if line.startswith("class "):
                    current = set()
                    if line.endswith("(Module):"):
                        found[line.removeprefix("class ").removesuffix("(Module):")] = current
                elif line.startswith(_FIELDS):
                    current.update(line.split('"')[1::2])
        return self._fields[module].get(name)

    def tensor(self, value: Any) -> Tensor:
        """Build a tensor, a view of a part of its storage."""
        self.spend("tensors", _ENTRY)
        if value.path != "torch._utils._rebuild_tensor_v2":
            raise ValueError(f"expected tensors, got {value.path}")
        (_, kind, key, _, count), offset, shape, stride = value.args[:4]
        if (kind.path, key) not in self._storages:
            self._storages[kind.path, key] = self._storage(kind.path, key)
        storage = self._storages[kind.path, key]
        numbers = (count, offset, *shape, *stride)
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or len(shape) != len(stride):
            raise ValueError(f"storage {key}: expected sizes and strides, got {str(numbers)[:80]}")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if count != len(storage) or (last if math.prod(shape) else offset - 1) >= count:
            raise ValueError(f"storage {key}: expected a part of its {len(storage):,} numbers, got more")
        return storage.as_strided(shape, stride, offset)

    def _storage(self, kind: str, key: str) -> Tensor:
        dtype = _DTYPES[kind.removeprefix("torch.")]
        content = bytearray(self.read(f"data/{key}", stored=True))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
