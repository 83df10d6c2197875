"""Features: the grains of a batch of items by name, which are indexed, moved, joined and saved together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Never, cast, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import checks, files
from .tokens import Index, Tokens


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
        """Device of all grains."""
        return self._any.device

    @property
    def _any(self) -> Tokens:
        return next(iter(self._grains.values()))

    def __len__(self) -> int:
        return self.batch_size

    def __contains__(self, name: object) -> bool:
        return name in self._grains

    def __iter__(self) -> Iterator[Features]:
        """Yield the items one by one, each as Features of one item."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Features({', '.join(f'{name}={tokens!r}' for name, tokens in self._grains.items())})"

    @overload
    def __getitem__(self, index: str) -> Tokens: ...
    @overload
    def __getitem__(self, index: Index) -> Features: ...
    def __getitem__(self, index: str | Index) -> Tokens | Features:
        """Select a grain by its name, or items along the batch axis (an int keeps the axis).

        Raises:
            KeyError: no such grain; the message lists those that are there.
        """
        if isinstance(index, str):
            if index not in self._grains:
                raise KeyError(f"no grain {checks.short(index)}: these features have {checks.few(self.names)}")
            return self._grains[index]
        return Features(**{name: tokens[index] for name, tokens in self._grains.items()})

    def only(self, *names: str) -> Features:
        """Features with only the grains of these names.

        Raises:
            KeyError: no such grain; the message lists those that are there.
        """
        return Features(**{checks.instance("name", name, str): self[name] for name in names})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Features:
        """Move all grains to another device or dtype (masks stay bool)."""
        return Features(**{name: tokens.to(device, dtype) for name, tokens in self._grains.items()})

    def normalized(self) -> Features:
        """Normalise every grain by `Tokens.normalized`; worth it for a collection that is searched many times."""
        return Features(**{name: tokens.normalized() for name, tokens in self._grains.items()})

    def detach(self) -> Features:
        """Take all grains out of their graph."""
        return Features(**{name: tokens.detach() for name, tokens in self._grains.items()})

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join batches that have the same grains into one; shorter ones are padded and masked.

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
        """Write to one file, completely or not at all (a temporary file, then a rename).

        Raises:
            OSError: it cannot be written; an earlier file is still complete.
        """
        grains = {name: (_own(t.features), _own(t.mask), t.unit) for name, t in self._grains.items()}
        files.save_tensors(path, grains)

    @staticmethod
    def load(
        path: str | os.PathLike[str], device: torch.device | str = "cpu", sha256: str | None = None
    ) -> Features:
        """Read features that `save` wrote; nothing but tensors is ever unpickled.

        Args:
            sha256: the digest of the file, if it was noted; None: the checksums within the file are verified.

        Raises:
            OSError: it cannot be read.
            ValueError: the file holds no features, or is damaged.
        """
        grains = files.load_tensors(path, device, sha256)
        try:
            for x in (part for grain in grains.values() for part in grain[:2] if isinstance(part, Tensor)):
                if x.nbytes > x.untyped_storage().nbytes():  # a few numbers that pose as a great many
                    raise ValueError(f"{os.fspath(path)}: expected features that the file holds, got views of fewer")
            return Features(**{name: Tokens(x, mask, name, unit) for name, (x, mask, unit) in grains.items()})
        except Exception as error:  # damaged values raise anything
            files.refuse(path, error)


def _bare_features(parts: Iterable[Tokens], names: tuple[str, ...]) -> Features:
    features = object.__new__(Features)
    features._grains = dict(zip(names, parts, strict=True))  # pyright: ignore[reportPrivateUsage]
    return features


pytree.register_pytree_node(Features, lambda features: ([*features._grains.values()], features.names), _bare_features)


def _tokens(name: str, value: Tokens | Tensor | tuple[Tensor, Tensor | None]) -> Tokens:
    if isinstance(value, Tokens):
        return value
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"{name}: expected a pair (features, mask), got {len(value)} values")
        return Tokens(*value, name=name)
    return Tokens(value, name=name)


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


def _own(x: Tensor | None) -> Tensor | None:
    """The tensor alone, to be saved: not its graph, nor the larger tensor that it is a slice of."""
    return x if x is None else x.detach() if x.untyped_storage().nbytes() <= x.nbytes else x.detach().clone()
