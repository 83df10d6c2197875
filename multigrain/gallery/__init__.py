"""Collections of videos: features extracted into a folder, searched by sentences. Needs the extra ``data``."""

from .collection import Collection, Shard
from .extraction import Report, extract
from .query import Result, search

__all__ = ["Collection", "Report", "Result", "Shard", "extract", "search"]
