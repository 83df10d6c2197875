"""Tensors of other packages as Features."""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..heads.pool import MeanPool, Pool
from ..tokens import Features, Tokens

Value: TypeAlias = "Features | Tokens | Tensor | tuple[Tensor, Tensor | None]"


def grain_names(scorer: nn.Module) -> tuple[set[str], set[str]]:
    """The grains of query and candidate that a scorer reads; empty where it does not tell."""
    grains: list[Any] = list(getattr(scorer, "grains", [scorer]))
    found = [(grain.query, grain.candidate) for grain in grains if hasattr(grain, "candidate")]
    return {query for query, _ in found}, {candidate for _, candidate in found}


def as_features(name: str, value: Value, grains: set[str]) -> Features:
    """Return Features; a tensor, or (tensor, mask), becomes each of the grains, compared as it is.

    Raises:
        TypeError: a tensor where the scorer does not tell which grains it reads.
    """
    if isinstance(value, Features):
        return value
    if not grains:
        raise TypeError(f"{name}: expected Features, since the scorer names no grains, got {type(value).__name__}")
    if not isinstance(value, Tokens):
        features, mask = value if isinstance(value, tuple) else (value, None)
        value = Tokens(features, mask, name=name, unit=True)
    return Features(**dict.fromkeys(grains, value))


def video_features(frames: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None) -> Features:
    """Make Features(frame, video): the video is the mean of its real, normalised frames, as in CLIP4Clip."""
    return Pool("frame", "video", MeanPool(normalize=True))(Features(frame=(frames, mask)))
