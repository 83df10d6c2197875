"""Batch: what a step of training takes from any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Video-sentence pairs: every frame once, and where it goes."""

    frames: UInt8[Tensor, "u 3 h w"] | Float[Tensor, "u 3 h w"]
    """the distinct frames of all videos, uint8 or floating in [0, 1]"""
    index: Int[Tensor, "b n"]
    """the row of `frames` of each frame of each pair; of any row where padded"""
    mask: Bool[Tensor, "b n"]
    """True = a real frame"""
    sentences: list[str]
    ids: Int[Tensor, "b"]
    """pairs with the same integer are positives of each other"""
    broken: Sequence[str] = ()
    """of each video that could not be read, its name and why; its pairs are left out"""


def equal_ids(values: Sequence[str]) -> Int[Tensor, "n"]:
    """The same integer for the same value, counted from 0 in the order of their first appearance."""
    ids: dict[str, int] = {}
    return torch.tensor([ids.setdefault(value, len(ids)) for value in values])
