"""Texts against videos with their scores, and how a page shows each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from ..data.pairs import Pairs, frames_of
from ..models.encoding import encode_pair
from ..scorer import MultiGrain
from ..tokens import Features, Tokens
from ..training import Evaluation
from .images import strip

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..models import XCLIP

KEPT = 64  # videos whose frames stay in memory


@dataclass(frozen=True)
class ScoredPairs:
    """Texts and videos that were scored against each other."""

    scores: Float[Tensor, "t v"]
    targets: Int[Tensor, "t"]
    """the video of each text"""
    reverse: Float[Tensor, "t v"]
    """the scores that rank the texts of each video; they differ from `scores` after a correction for hubness"""
    texts: Sequence[str]
    videos: Sequence[str]
    """the names that the page gives to the videos"""
    frames: Callable[[int], NDArray[np.uint8]] | None = None
    """a video -> its frames [n, height, width, 3]; None if there are no frames to show"""
    picture: Callable[[int, int, str, bool], Figure] | None = None
    """text, video, subtitle, True to add the title and the inner level -> the heat map of that pair"""

    def strip(self, video: int) -> bytes | None:
        """Return the frames of a video side by side, if there are frames to show."""
        return None if self.frames is None else strip(self.frames(video))


def of_pairs(evaluation: Evaluation, pairs: Pairs, model: XCLIP, max_frames: int) -> ScoredPairs:
    """Return the pairs of a run; a video that the page shows is read again."""

    @lru_cache(KEPT)
    def frames(video: int) -> NDArray[np.uint8]:
        return frames_of(pairs, evaluation.videos[video], max_frames)

    def picture(text: int, video: int, subtitle: str, levels: bool) -> Figure:
        from .. import viz
        from ..data.video import Sampling

        sentence = pairs.sentences[evaluation.texts[text]]
        shown = frames(video)
        features = encode_pair(model, sentence, shown, Sampling(max_frames=len(shown)))
        return viz.explain_features(model.scorer, *features, sentence if levels else "", subtitle, levels)

    texts = [pairs.sentences[row] for row in evaluation.texts]
    # A picture adds up the parts of the grains, which neither corrected scores nor those of recipes consist of.
    drawn = picture if evaluation.hubness is None and not model.recipe.name else None
    return ScoredPairs(*_scores(evaluation), texts, _video_names(evaluation, pairs), frames, drawn)


def of_features(evaluation: Evaluation, text: Features, video: Features, scorer: object) -> ScoredPairs:
    """Return the pairs of saved features, which are named by their numbers since their sentences are not known."""

    def picture(i: int, j: int, subtitle: str, levels: bool) -> Figure:
        from .. import viz

        assert isinstance(scorer, MultiGrain)
        query, candidate = text[i], video[j]
        words = [f"word {k + 1}" for k in range(_count_real(query["word"]))]
        frames, title = _count_real(candidate["frame"]), f"text {i} against video {j}" if levels else ""
        return viz.explain_features(scorer, query, candidate, words, frames, title, subtitle, levels)

    texts, videos = ([f"{side} {i}" for i in range(len(x))] for side, x in (("text", text), ("video", video)))
    explained = isinstance(scorer, MultiGrain) and evaluation.hubness is None and "word" in text and "frame" in video
    return ScoredPairs(*_scores(evaluation), texts, videos, None, picture if explained else None)


def _scores(evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    scores = evaluation.scores["all"]
    return scores, evaluation.targets, scores if evaluation.reverse is None else evaluation.reverse


def _video_names(evaluation: Evaluation, pairs: Pairs) -> list[str]:
    """Call each video by its name and its first sentence, or by the sentence alone if its name is a row number."""
    numbered = pairs.names == [str(row) for row in range(len(pairs.names))]
    return [
        f"video of “{pairs.sentences[row]}”" if numbered else f"{pairs.names[row]} “{pairs.sentences[row]}”"
        for row in evaluation.videos
    ]


def _count_real(tokens: Tokens) -> int:
    return int(tokens.real_mask.sum())
