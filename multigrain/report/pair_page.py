"""Explanation of one pair's score: a picture, or a page with the picture and the numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..checks import printable
from ..evaluation.tables import Row
from ..models.encoding import encode_pair
from ..viz import pictures
from ..viz.pair import PairView, look, round_parts
from .content import Page
from .images import figure_png
from .page import render

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models import XCLIP

_HOW = "Frames of the video from left to right, words of the sentence from top to bottom."


@dataclass(frozen=True)
class PairPage:
    """A sentence and a video, explained."""

    sentence: str
    video_name: str
    view: PairView
    words: list[str]
    frames: NDArray[np.uint8]

    @classmethod
    def of(
        cls, model: XCLIP, sentence: str, video: str | os.PathLike[str] | NDArray[np.uint8], name: str, fps: float = 1.0
    ) -> PairPage:
        """Score a sentence and a video by a model; see viz.explain.

        Args:
            video: a file, a folder of frames, or the frames that the model is to see.
            name: the name that the page gives to the video.
            fps: candidate frames per second of a file.
        """
        from ..data.video import Sampling

        most = model.max_frames if isinstance(video, str | os.PathLike) else len(video)
        text, features, words, frames = encode_pair(model, sentence, video, Sampling(fps, most))
        view = look(model.scorer, text, features, len(words), len(frames))
        return cls(sentence, name, view, words, frames)

    def rows(self) -> list[Row]:
        """Return a row for each grain, with its score, its weight and what it adds, then the total of what they add."""
        added, total = round_parts(self.view.added)
        rows = [
            Row(name, [f"{part.score:.3f}", f"{part.share:.3f}", f"{added[name]:.3f}"], "grain")
            for name, part in self.view.parts.items()
        ]
        return [*rows, Row("together", ["", "", f"{total:.3f}"], "all")]

    def table(self) -> str:
        """Format the rows and the notes for a terminal."""
        lines = [f"{'grain':20}{'score':>8}  x{'weight':>8}  ={'part':>8}"]
        lines += [f"{printable(name):20}{a:>8}   {b:>8}   {c:>8}" for name, (a, b, c), _ in self.rows()]
        return "\n".join([*lines, *map(printable, self.view.notes)])

    def write(self, path: Path) -> Path:
        """Write the page if the name ends with .html, else the picture; return the path."""
        files.open_folder(path.parent, "--out")
        score = f"{self.view.score_text} for {self.video_name}"
        if path.suffix.lower() != ".html":
            files.write_bytes(path, figure_png(pictures.draw(self.view, self.words, self.frames, self.sentence, score)))
            return path
        page = Page(
            title=f"“{self.sentence}”",
            verdict=f"S{score[1:]}",
            similarity=[(figure_png(pictures.draw(self.view, self.words, self.frames, "", "")), _HOW)],
            parts=self.rows(),
        )
        files.write_text(path, render(page))
        return path
