"""Collections of videos: features extracted into a folder, searched by sentences. Needs the extra ``data``."""

from .collection import Collection, Shard
from .extraction import ExtractionReport, extract
from .query import Result, search

__all__ = ["Collection", "ExtractionReport", "Result", "Shard", "extract", "search"]
