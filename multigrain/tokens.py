"""Tokens and Features: what encoders hand over, and the one accessor through which scorers read it.

A grain of an item is a set of tokens: features [B, L, D] with a mask [B, L], True = a real token. A coarse
feature (a sentence, a whole video) is a grain of one token, [B, D] or [B, 1, D].
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Never, TypeAlias, cast, overload

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from . import checks, files

Index: TypeAlias = "int | slice | Tensor | Sequence[int]"

# A vector shorter than this has no direction: its similarity and its gradient are zero.
EPS = 1e-12


# A dataclass and a pytree node, as Features: wrappers such as DDP and FSDP2 look for the tensors of a module's inputs
# and outputs, some of their versions in the one, some in the other.
@dataclass(init=False, repr=False, eq=False)
class Tokens:
    """One grain of a batch of items.

    Args:
        features: [B, D] (one token each) or [B, L, D], floating point.
        mask: bool [B, L], True = a real token; None = all are real. What lies behind a False, NaN
            included, can reach neither a score nor a gradient.
        name: how errors call it.
        unit: the features are compared as they are: they are normalised already, or their length is meant to
            count.

    Raises:
        TypeError, ValueError: wrong type, rank, dtype, device, an empty axis, or a mask that does not fit.
    """

    __slots__ = ("features", "mask", "unit")

    features: Float[Tensor, "b d"] | Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"] | None
    unit: bool

    def __init__(
        self, features: Tensor, mask: Tensor | None = None, name: str = "features", unit: bool = False
    ) -> None:
        self.features = checks.features(name, features)
        self.mask = None if mask is None else checks.mask(name, mask, features)
        self.unit = unit

    @property
    def batch_size(self) -> int:
        """B, the number of items."""
        return self.features.shape[0]

    @property
    def length(self) -> int:
        """L, the number of token slots, padding included; 1 for a coarse feature."""
        return 1 if self.features.ndim == 2 else self.features.shape[1]

    @property
    def dim(self) -> int:
        """D, the feature width."""
        return self.features.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the features as given."""
        return self.features.dtype

    @property
    def real_mask(self) -> Bool[Tensor, "b l"]:
        """The mask, all True where none was given."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.batch_size, self.length, dtype=torch.bool, device=self.device)

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        mask = "" if self.mask is None else ", masked"
        return f"Tokens({checks.shape(self.features)}, {self.dtype}, {self.device}{mask})"

    def __getitem__(self, index: Index) -> Tokens:
        """The items at an index of the batch axis; an int keeps the axis."""
        rows = _rows(index, self.batch_size)
        return Tokens(self.features[rows], None if self.mask is None else self.mask[rows], unit=self.unit)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tokens:
        """The same tokens on another device, or with features of another dtype."""
        mask = None if self.mask is None else self.mask.to(device=device)
        return Tokens(self.features.to(device=device, dtype=dtype), mask, unit=self.unit)

    def detach(self) -> Tokens:
        """The same tokens without their graph."""
        return Tokens(self.features.detach(), self.mask, unit=self.unit)

    def tokenwise(self) -> Tokens:
        """The same tokens as [B, L, D], L = 1 for a coarse feature."""
        if self.features.ndim == 3:
            return self
        return Tokens(rearrange(self.features, "b d -> b 1 d"), self.mask, unit=self.unit)

    def filled(self) -> Float[Tensor, "b l d"]:
        """The features [B, L, D] at their own length in fp32 (fp64 stays), padded slots zero.

        The zero-fill comes first, so NaN behind a mask vanishes in the forward and the backward pass.
        """
        x = self.tokenwise().features
        if self.mask is not None:
            x = torch.where(rearrange(self.mask, "b l -> b l 1"), x, 0.0)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def normalized(self) -> Tokens:
        """Unit tokens [B, L, D] in fp32 (fp64 stays), padded slots zero: what every scorer reads.

        Half precision is widened before anything is computed: rounding similarities to bf16 reorders results.
        """
        x = self.filled()
        if self.unit:
            return Tokens(x, self.mask, unit=True)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if not (checks.readable(norm) and norm.isfinite().all()):
            # Long vectors in units of their largest element: fp32 does not hold their squares.
            largest = reduce(x.detach().abs(), "b l d -> b l 1", "max")
            x = x / torch.where(norm.isinf() & largest.isfinite(), largest, 1.0)
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return Tokens(torch.where(norm <= EPS, 0.0, x / norm.clamp_min(EPS)), self.mask, unit=True)


@dataclass(init=False, repr=False, eq=False)
class Features:
    """The grains of a batch of items, by name.

    Args:
        grains: name -> Tokens, a tensor [B, D] or [B, L, D], or a pair (tensor, mask [B, L]). All grains
            share B and the device; widths and lengths may differ.

    Raises:
        TypeError, ValueError: see Tokens; or grains that differ in B or device.

    Example:
        >>> f = Features(sentence=torch.randn(4, 8), word=(torch.randn(4, 6, 8), torch.ones(4, 6).bool()))
        >>> f.names, len(f), f["word"].length, len(f[1:3])
        (('sentence', 'word'), 4, 6, 2)
    """

    __slots__ = ("_grains",)

    _grains: dict[str, Tokens]

    def __init__(self, *unnamed: Never, **grains: Tokens | Tensor | tuple[Tensor, Tensor | None]) -> None:
        if unnamed:
            got = checks.named(unnamed[0])
            raise TypeError(f"Features: expected grains by name, as in Features(word=...), got {got} without one")
        given = cast("dict[str, Any]", grains.pop("_grains", grains))  # dataclasses.replace gives the field by its name
        self._grains = {name: _tokens(name, value) for name, value in given.items()}
        _check_batch(self._grains)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the grains, in the order given."""
        return tuple(self._grains)

    @property
    def batch_size(self) -> int:
        """B, the number of items."""
        return self._any.batch_size

    @property
    def device(self) -> torch.device:
        """Where all grains are."""
        return self._any.device

    @property
    def _any(self) -> Tokens:
        return next(iter(self._grains.values()))

    def __len__(self) -> int:
        return self.batch_size

    def __contains__(self, name: object) -> bool:
        return name in self._grains

    def __iter__(self) -> Iterator[Features]:
        """One Features of one item after the other."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{name}={tokens!r}' for name, tokens in self._grains.items())})"

    @overload
    def __getitem__(self, index: str) -> Tokens: ...
    @overload
    def __getitem__(self, index: Index) -> Features: ...
    def __getitem__(self, index: str | Index) -> Tokens | Features:
        """The grain of a name, or the items at an index of the batch axis (an int keeps the axis).

        Raises:
            KeyError: no such grain; the message lists those that are there.
        """
        if isinstance(index, str):
            if index not in self._grains:
                raise KeyError(f"no grain {checks.short(index)}: these features have {checks.few(self.names)}")
            return self._grains[index]
        return Features(**{name: tokens[index] for name, tokens in self._grains.items()})

    def only(self, *names: str) -> Features:
        """The grains of these names.

        Raises:
            KeyError: no such grain; the message lists those that are there.
        """
        return Features(**{checks.instance("name", name, str): self[name] for name in names})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Features:
        """The same features on another device, or of another dtype (masks stay bool)."""
        return Features(**{name: tokens.to(device, dtype) for name, tokens in self._grains.items()})

    def normalized(self) -> Features:
        """Every grain as `Tokens.normalized`: worth doing once for a collection that is searched many times."""
        return Features(**{name: tokens.normalized() for name, tokens in self._grains.items()})

    def detach(self) -> Features:
        """The same features without their graph."""
        return Features(**{name: tokens.detach() for name, tokens in self._grains.items()})

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """One batch from several with the same grains; shorter ones are padded and masked.

        Raises:
            ValueError: nothing to concatenate, or parts with different grains or widths.
        """
        if not len(checks.instance("parts", parts, Sequence)):
            raise ValueError("parts: expected at least one Features, got none")
        names = set(checks.instance("parts[0]", parts[0], Features).names)
        for i, part in enumerate(parts):
            if set(checks.instance(f"parts[{i}]", part, Features).names) != names:
                raise ValueError(f"parts[{i}]: expected grains {sorted(names)}, got {sorted(part.names)}")
            for name in part.names:
                checks.width(f"parts[{i}], grain {name!r}", parts[0][name].dim, part[name].dim)
        return Features(**{name: _cat([part[name] for part in parts]) for name in parts[0].names})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one file, whole or not at all (a temporary file, then a rename).

        Raises:
            OSError: it cannot be written; the file from before is whole.
        """
        grains = {name: (_own(t.features), _own(t.mask), t.unit) for name, t in self._grains.items()}
        files.save_tensors(path, grains)

    @staticmethod
    def load(
        path: str | os.PathLike[str], device: torch.device | str = "cpu", sha256: str | None = None
    ) -> Features:
        """Read what `save` wrote; nothing but tensors is ever unpickled.

        Args:
            sha256: the digest of the file, where it was noted; without it, the checksums within are verified.

        Raises:
            OSError: it cannot be read.
            ValueError: the file is not one of ours, or is damaged.
        """
        grains = files.load_tensors(path, device, sha256)
        try:
            for x in (part for grain in grains.values() for part in grain[:2] if isinstance(part, Tensor)):
                if x.nbytes > x.untyped_storage().nbytes():  # a few numbers, said to be a great many
                    raise ValueError(f"{os.fspath(path)}: expected features that the file holds, got views of fewer")
            return Features(**{name: Tokens(x, mask, name, unit) for name, (x, mask, unit) in grains.items()})
        except Exception as error:  # whatever the values run into
            files.refuse(path, error)


def _bare_tokens(parts: Iterable[Any], unit: bool) -> Tokens:
    """Unchecked: the leaves of a pytree may be anything."""
    tokens = object.__new__(Tokens)
    (tokens.features, tokens.mask), tokens.unit = parts, unit
    return tokens


def _bare_features(parts: Iterable[Tokens], names: tuple[str, ...]) -> Features:
    features = object.__new__(Features)
    features._grains = dict(zip(names, parts, strict=True))  # pyright: ignore[reportPrivateUsage]
    return features


pytree.register_pytree_node(Tokens, lambda tokens: ([tokens.features, tokens.mask], tokens.unit), _bare_tokens)
pytree.register_pytree_node(Features, lambda features: ([*features._grains.values()], features.names), _bare_features)


def _tokens(name: str, value: Tokens | Tensor | tuple[Tensor, Tensor | None]) -> Tokens:
    if isinstance(value, Tokens):
        return value
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"{name}: expected a pair (features, mask), got {len(value)} values")
        return Tokens(*value, name=name)
    return Tokens(value, name=name)


def _rows(index: Index, size: int) -> slice | Tensor:
    if isinstance(index, int) and not isinstance(index, bool):
        if not -size <= index < size:
            raise IndexError(f"index: expected one from {-size} to {size - 1}, got {checks.short(index)}")
        return slice(index % size, index % size + 1)
    if isinstance(index, slice):
        return index
    try:
        rows = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_NO_INDEX.format(checks.short(index))) from error
    if rows.is_floating_point() or rows.is_complex() or (rows.ndim == 0 and rows.dtype == torch.bool):
        raise TypeError(_NO_INDEX.format(checks.short(index)))
    if rows.ndim == 0:
        return _rows(int(rows), size)  # of a tensor or an array: by itself it would take the axis away
    if rows.ndim != 1:
        raise ValueError(f"index: expected one number, or numbers in one dimension, got shape {checks.shape(rows)}")
    if rows.dtype == torch.bool:
        checks.require(len(rows) == size, "index", f"True or False for each of {size} items", f"{len(rows)} of them")
        return rows
    rows = rows.long()  # to torch, uint8 is another bool
    if checks.readable(rows) and ((rows < -size) | (rows >= size)).any():
        wrong = int(rows[(rows < -size) | (rows >= size)][0])
        raise IndexError(f"index: expected numbers from {-size} to {size - 1}, got {wrong}")
    return rows


_NO_INDEX = "index: expected the name of a grain, or whole numbers of items, got {}"


def _own(x: Tensor | None) -> Tensor | None:
    """Without its graph, and without what it is a slice of, which a file would hold whole."""
    return x if x is None else x.detach() if x.untyped_storage().nbytes() <= x.nbytes else x.detach().clone()


def _cat(parts: list[Tokens]) -> Tokens:
    """Concatenate along the batch, padding to the longest; a mask appears only where one is needed."""
    length = max(part.length for part in parts)
    if any(part.features.ndim == 3 for part in parts):
        parts = [part.tokenwise() for part in parts]
    unit = any(part.unit for part in parts)
    if unit:
        parts = [part if part.unit else part.normalized() for part in parts]
    if all(part.mask is None and part.length == length for part in parts):
        return Tokens(torch.cat([part.features for part in parts]), unit=unit)
    features = torch.cat([_pad(part.tokenwise().features, length) for part in parts])
    return Tokens(features, torch.cat([_pad(part.real_mask, length) for part in parts]), unit=unit)


def _pad(x: Tensor, length: int) -> Tensor:
    """Zeros (False) up to `length` along axis 1."""
    missing = length - x.shape[1]
    return x if missing == 0 else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)


def _check_batch(grains: dict[str, Tokens]) -> None:
    """Refuse grains of different numbers of items, or on different devices."""
    if not grains:
        raise ValueError("Features: expected at least one grain, got none")
    sizes = {name: tokens.batch_size for name, tokens in grains.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Features: expected one batch size for all grains, got {sizes}")
    devices = {name: str(tokens.device) for name, tokens in grains.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"Features: expected one device for all grains, got {devices}")


def unit_vectors(x: Tensor) -> Tensor:
    """Scale the vectors along the last axis to length 1; zeros stay zeros."""
    return Tokens(rearrange(x, "... d -> (...) d")).normalized().features.view(x.shape)


def check_finite(name: str, tokens: Tokens) -> None:
    """Refuse NaN and infinity in real tokens, and items without a real token (a device sync: it reads the values).

    Raises:
        ValueError: it names the row, and the token.
    """
    checks.present(name, tokens.features)
    bad = ~tokens.tokenwise().features.isfinite().all(-1)
    if tokens.mask is not None:
        bad &= tokens.mask
        empty = ~tokens.mask.any(-1)
        if empty.any():
            raise ValueError(f"{name}: expected a real token in every item, got none in row {int(empty.nonzero()[0])}")
    if bad.any():
        row, token = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name}: expected finite features, got NaN or infinity in row {row}, token {token}")
