"""Tokens: one grain of a batch of items, and the accessor through which every scorer reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import checks

Index: TypeAlias = "int | slice | Tensor | Sequence[int]"

# A vector shorter than this has no direction: its similarity and its gradient are zero.
EPS = 1e-12
_NO_INDEX = "index: expected the name of a grain, or whole numbers of items, got {}"


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
        self.features = _check_features(name, features)
        self.mask = None if mask is None else _check_mask(name, mask, features)
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


def _bare_tokens(parts: Iterable[Any], unit: bool) -> Tokens:
    """Unchecked: the leaves of a pytree may be anything."""
    tokens = object.__new__(Tokens)
    (tokens.features, tokens.mask), tokens.unit = parts, unit
    return tokens


pytree.register_pytree_node(Tokens, lambda tokens: ([tokens.features, tokens.mask], tokens.unit), _bare_tokens)


def _check_features(name: str, value: object) -> Tensor:
    """A floating tensor [B, D] or [B, L, D] without an empty axis, or an error that names it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [B, D] or [B, L, D], got {type(value).__name__}")
    checks.floating(name, value, "features")
    if value.ndim not in (2, 3):
        raise ValueError(f"{name}: expected features of shape [B, D] or [B, L, D], got {checks.shape(value)}")
    if 0 in value.shape:
        raise ValueError(f"{name}: expected at least one item, token and channel, got {checks.shape(value)} (empty)")
    return value


def _check_mask(name: str, value: object, values: Tensor) -> Tensor:
    """A bool mask [B, L] (True = a real token) on the device of features [B, L, D], or an error."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} mask: expected a bool tensor or None, got {type(value).__name__}")
    checks.dense(f"{name} mask", value)
    expected = (values.shape[0], 1 if values.ndim == 2 else values.shape[1])
    return checks.mask(f"{name} mask", value, expected, values.device)


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
