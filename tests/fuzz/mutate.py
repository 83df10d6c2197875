"""What can happen to the bytes of a file: flipped bits, lost, repeated and foreign parts, wrong lengths."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

EDGES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
ENDS = 1024  # bytes at both ends, where most headers are


def mutate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The content with one to three mutations; `other` is a file of the same kind to take foreign parts from."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(data, other, rng)
    return bytes(data)


def place(data: bytearray, rng: random.Random) -> int:
    """An offset: at an end of the file as often as anywhere."""
    end = rng.choice((0, 1, 2, 2))
    near = min(ENDS, len(data))
    offset = rng.randrange(len(data) if end == 2 else near) if data else 0
    return len(data) - near + offset if end == 1 else offset


def _length(data: bytearray, rng: random.Random) -> int:
    return min(len(data), int(2 ** rng.uniform(0, 12)))


def flip(data: bytearray, other: bytes, rng: random.Random) -> None:
    """Some bits."""
    for _ in range(int(2 ** rng.uniform(0, 5)) if data else 0):
        data[place(data, rng)] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A run of bytes, by zeros, ones or noise."""
    start, length = place(data, rng), _length(data, rng)
    length = min(length, len(data) - start)
    data[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def cut(data: bytearray, other: bytes, rng: random.Random) -> None:
    """The end, or the beginning, is lost."""
    start = place(data, rng)
    if rng.random() < 0.8:
        del data[start:]
    else:
        del data[:start]


def delete(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A part is lost."""
    start = place(data, rng)
    del data[start : start + _length(data, rng)]


def duplicate(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A part comes again, somewhere."""
    start, length, to = place(data, rng), _length(data, rng), place(data, rng)
    data[to:to] = data[start : start + length]


def splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A part of another file, in place of one or between."""
    start, to = place(bytearray(other), rng), place(data, rng)
    part = other[start : start + int(2 ** rng.uniform(0, 12))]
    data[to : to + (len(part) if rng.random() < 0.5 else 0)] = part


def number(data: bytearray, other: bytes, rng: random.Random) -> None:
    """A length, count or offset: whatever stands there is read as another number."""
    value = rng.choice((*EDGES, rng.randrange(1 << 16), len(data)))
    form = rng.choice((">I", "<I", ">I", "<I", ">H", "<H", ">Q", "<Q"))
    size = struct.calcsize(form)
    if len(data) >= size:
        start = min(place(data, rng), len(data) - size)
        data[start : start + size] = struct.pack(form, value & (1 << 8 * size) - 1)


MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    flip,
    flip,
    overwrite,
    cut,
    delete,
    duplicate,
    splice,
    number,
    number,
)
