"""Video files: their names, and the ones in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Location: TypeAlias = "str | os.PathLike[str]"

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".ogv", ".ts", ".webm", ".wmv"}
)
"""Files with these endings, in any case, are videos where a folder of them is asked for."""


def list_videos(sources: Iterable[Location]) -> list[str]:
    """List the absolute paths of video files, in order; a folder stands for the videos in it and below, sorted.

    Raises:
        TypeError: one path instead of a list of them.
        ValueError: no path, or a folder without a file that is named like a video.
    """
    if isinstance(sources, (str, os.PathLike)):
        raise TypeError(f"videos: expected a list of paths, got one path {os.fspath(sources)!r}")
    paths: list[str] = []
    for source in sources:
        found = [Path(source)]
        if os.path.isdir(source):
            # File managers leave files such as ".name.mp4", which are no videos.
            files = (file for file in found[0].rglob("[!.]*") if file.suffix.lower() in VIDEO_SUFFIXES)
            found = sorted(file for file in files if file.is_file())
            if not found:
                raise ValueError(f"videos: expected video files in the folder {source}, found none")
        paths += map(os.path.abspath, found)
    if not paths:
        raise ValueError("videos: expected at least one path, got none")
    return paths
