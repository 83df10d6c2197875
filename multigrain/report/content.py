"""The contents of a page, as data. All texts are plain; `page.render` escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..evaluation import tables


@dataclass(frozen=True)
class Hit:
    """A retrieved video."""

    image: bytes | None
    """its frames side by side; None if there are none to show"""
    name: str
    score: float
    rank: int
    own: bool
    """True for the video that was looked for"""


@dataclass(frozen=True)
class Example:
    """A query and the videos that it found."""

    sentence: str
    rank: int
    """the rank of its own video"""
    hits: Sequence[Hit]
    pictures: Sequence[tuple[bytes, str]] = ()
    """heat maps, each with its caption"""


@dataclass(frozen=True)
class Query:
    """A query in the list of all."""

    text: str
    rank: int
    """the rank of its own video"""
    own: int
    """its own video, as an index into `Page.videos`"""
    found: Sequence[tuple[int, float]]
    """the first videos, each with its score"""


@dataclass(frozen=True)
class Chart:
    """A histogram: each bin, and the number of values in it."""

    title: str
    bars: Sequence[tuple[str, int]]
    axis: str = ""
    """the quantity that the bins divide"""


@dataclass(frozen=True)
class Hub:
    """A video that many queries find."""

    image: bytes | None
    name: str
    count: int
    """the number of queries that have it among their first"""


@dataclass(frozen=True)
class Hubs:
    """Hubs among the videos, and the distribution of how often a video is found."""

    note: str
    chart: Chart
    first: Sequence[Hub]
    """the greatest hubs"""


@dataclass(frozen=True)
class Page:
    """A page; an empty field is left out, with its heading."""

    title: str
    verdict: str
    lead: Sequence[str] = ()
    """paragraphs below the title"""
    rows: Sequence[tables.Row] = ()
    table_note: str = ""
    charts: Sequence[Chart] = ()
    similarity: Sequence[tuple[bytes, str]] = ()
    """pictures, each with its caption"""
    parts: Sequence[tables.Row] = ()
    """each grain's score, its weight and what it adds, then the total, where the page is about one pair"""
    examples_note: str = ""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict[str, Sequence[Example]])
    """groups of examples by their heading"""
    hubs: Hubs | None = None
    queries: Sequence[Query] = ()
    videos: Sequence[str] = ()
    """names of the videos that the queries find"""
    curves: tuple[bytes, str] | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    config: str = ""
    """the settings in full, as text"""
