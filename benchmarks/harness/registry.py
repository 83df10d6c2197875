"""The registry: a benchmark is an operation, the shapes of its inputs, and the targets of its figures."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .records import Section, Target

if TYPE_CHECKING:
    from .study import Study

FAMILIES = ("aosm", "four_grains", "memory", "scaling", "maxsim", "top_k", "evaluate", "gather", "cached", "cuda")
STUDIES = ("ablation", "recipes")


@dataclass(frozen=True)
class Shape:
    """The inputs of one point of a sweep: texts of words (queries) against videos of frames (documents)."""

    texts: int
    videos: int
    words: int = 32
    frames: int = 12
    dim: int = 512
    dtype: str = "float32"
    lengths: str = "full"  # or "msrvtt": as many words per text as its captions have
    unit: bool = True  # tokens of length 1, or raw ones that are normalised inside the timer

    def __str__(self) -> str:
        tokens = "unit tokens" if self.unit else "raw tokens"
        lengths = "masks all true" if self.lengths == "full" else "caption lengths as in MSR-VTT"
        size = f"{self.texts} x {self.videos} pairs, {self.words} x {self.frames} tokens, D {self.dim}"
        return f"{size}, {self.dtype}, {tokens}, {lengths}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the tokens."""
        return getattr(torch, self.dtype)

    @property
    def similarities(self) -> int:
        """Elements of the tensor that the original formula holds about ten times."""
        return self.texts * self.videos * self.words * self.frames


@dataclass(frozen=True)
class Run:
    """The settings of a run."""

    device: str = "cpu"
    quick: bool = False
    rounds: int = 1

    def log(self, line: str) -> None:
        """Say on stderr what is going on."""
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Benchmark:
    """An entry of the registry.

    Args:
        op: measures one shape, a section or more; raises `measure.ParityError` where a candidate is wrong.
        sweep, quick: the shapes to measure; tiny ones for tests.
        targets: figure name -> what it is to keep.
        rounds: interleaved rounds, the median of which is reported.
        group: "cpu" or "cuda": the machine that the targets speak of; `run GROUP` runs all of a group.
    """

    name: str
    title: str
    about: str
    op: Callable[[Shape, Run], list[Section]]
    sweep: Sequence[Shape]
    quick: Sequence[Shape]
    targets: dict[str, Target] = field(default_factory=dict)
    rounds: int = 11
    group: str = "cpu"


def benchmarks() -> dict[str, Benchmark]:
    """Benchmarks by name, in the order of the report."""
    found = [b for family in FAMILIES for b in importlib.import_module(f"benchmarks.cases.{family}").BENCHMARKS]
    return {benchmark.name: benchmark for benchmark in found}


def studies() -> dict[str, Study]:
    """Studies by name, which train and score rather than time."""
    found = [importlib.import_module(f"benchmarks.cases.{module}").STUDY for module in STUDIES]
    return {study.name: study for study in found}
