"""Records of a run: figures with their targets, timings, parity checks; and their JSON form."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound that a figure is to keep: at most `limit`, or at least."""

    limit: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


def at_most(limit: float) -> Target:
    """An upper bound."""
    return Target(limit, True)


def at_least(limit: float) -> Target:
    """A lower bound."""
    return Target(limit, False)


@dataclass(frozen=True)
class Figure:
    """A number to be reported: the median over rounds with its lower and upper quartile."""

    name: str
    value: float
    low: float
    high: float
    unit: str = "x"
    target: Target | None = None
    judged: bool = True  # False at quick sizes, for which no target was made

    @property
    def met(self) -> bool | None:
        """True where the target is kept; None where there is none to judge by."""
        if self.target is None or not self.judged:
            return None
        return self.value <= self.target.limit if self.target.at_most else self.value >= self.target.limit

    @property
    def verdict(self) -> str:
        """`met` in words; empty without a target."""
        if self.target is None:
            return ""
        return {True: "met", False: "**missed**", None: "not judged"}[self.met]


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate, round by round; none, and a note, where it could not run."""

    name: str
    seconds: list[float]
    note: str = ""

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Check:
    """A parity check that passed: the largest difference, relative to the largest expected value."""

    name: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Section:
    """One point of a sweep."""

    title: str
    inputs: str
    checks: list[Check]
    figures: list[Figure]
    timings: list[Timing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judged(self, targets: dict[str, Target], quick: bool) -> Section:
        """Return the section with the targets of its figures."""
        figures = [replace(f, target=targets.get(f.name), judged=not quick) for f in self.figures]
        return replace(self, figures=figures)


@dataclass(frozen=True)
class Result:
    """One run of one benchmark."""

    name: str
    device: str
    quick: bool
    rounds: int
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    sections: list[Section]

    @property
    def file_name(self) -> str:
        """The name of its file among the results: one per benchmark and kind of device."""
        return f"{self.name}-{self.device.split(':')[0]}.json"

    def save(self, folder: Path) -> Path:
        """Write one JSON file, with `met` beside every target."""
        data = asdict(self)
        for section, record in zip(self.sections, data["sections"], strict=True):
            for figure, entry in zip(section.figures, record["figures"], strict=True):
                entry["met"] = figure.met
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(json.dumps(data, indent=1) + "\n")
        return path

    @staticmethod
    def load(path: Path) -> Result:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        data["sections"] = [_section(section) for section in data["sections"]]
        return Result(**data)


def _section(data: dict[str, Any]) -> Section:
    data["checks"] = [Check(**check) for check in data["checks"]]
    data["figures"] = [_figure(figure) for figure in data["figures"]]
    data["timings"] = [Timing(**timing) for timing in data["timings"]]
    return Section(**data)


def _figure(data: dict[str, Any]) -> Figure:
    del data["met"]  # it follows from the rest
    data["target"] = data["target"] and Target(**data["target"])
    return Figure(**data)


def figure(name: str, samples: Sequence[float], unit: str = "x") -> Figure:
    """Make a figure of the samples of all rounds: median and quartiles."""
    if len(samples) == 1:
        return Figure(name, samples[0], samples[0], samples[0], unit)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Figure(name, median, low, high, unit)
