"""Why one pair has its score: a picture, or a page with the picture and the numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, viz
from ..checks import printable
from ..evaluation.tables import Row
from ..models.encoding import encode_pair
from ..viz.matrix import signed
from ..viz.pair import Pair, look, rounded
from .content import Page
from .images import figure_png
from .page import render

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..models import XCLIP

_HOW = "Frames of the video from left to right, words of the sentence from top to bottom."




@dataclass(frozen=True)
class PairPage:
    """A sentence and a video, explained."""

    sentence: str
    what: str
    """the video, in words"""
    pair: Pair
    draw: Callable[[str, str], Figure]
    """title, subtitle -> the picture"""

    @classmethod
    def of(
        cls, model: XCLIP, sentence: str, video: str | os.PathLike[str] | NDArray[np.uint8], what: str, fps: float = 1.0
    ) -> PairPage:
        """By a model; see viz.explain.

        Args:
            video: a file, a folder of frames, or the frames that the model is to see.
            what: how to call it.
            fps: of a file, candidate frames per second.
        """
        from ..data.video import Sampling

        whole = not isinstance(video, str | os.PathLike)
        sampling = Sampling(fps, len(video) if whole else model.max_frames)
        text, features, words, frames = encode_pair(model, sentence, video, sampling)
        pair = look(model.scorer, text, features, len(words), len(frames))
        draw = partial(viz.explain_features, model.scorer, text, features, words, frames)
        return cls(sentence, what, pair, draw)

    def rows(self) -> list[Row]:
        """Return a row for each grain, with its score, its weight and what it adds, then the total of what they add."""
        added, total = rounded(self.pair.added)
        rows = [
            Row(name, [f"{part.score:.3f}", f"{part.share:.3f}", f"{added[name]:.3f}"], "grain")
            for name, part in self.pair.parts.items()
        ]
        return [*rows, Row("together", ["", "", f"{total:.3f}"], "all")]

    def table(self) -> str:
        """The rows and the notes, for a terminal."""
        lines = [f"{'grain':20}{'score':>8}  x{'weight':>8}  ={'part':>8}"]
        lines += [f"{printable(name):20}{a:>8}   {b:>8}   {c:>8}" for name, (a, b, c), _ in self.rows()]
        return "\n".join([*lines, *map(printable, self.pair.notes)])

    def write(self, path: Path) -> Path:
        """As .html, the page; else the picture."""
        files.open_folder(path.parent, "--out")
        score = f"score {signed(rounded(self.pair.added)[1])} for {self.what}"
        if path.suffix.lower() != ".html":
            files.write_bytes(path, figure_png(self.draw(self.sentence, score)))
            return path
        page = Page(
            title=f"“{self.sentence}”",
            verdict=f"S{score[1:]}",
            similarity=[(figure_png(self.draw("", "")), _HOW)],  # the page says both, and the picture its notes
            parts=self.rows(),
        )
        files.write_text(path, render(page))
        return path
