"""What a page is about: texts against videos with their scores, and how to show each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.pairs import Pairs, frames_of
from ..models.encoding import encode_pair
from ..scorer import MultiGrain
from ..tokens import Features, Tokens
from ..training import Evaluation

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..models import XCLIP

KEPT = 64  # videos whose frames are held


@dataclass(frozen=True)
class Subject:
    """Texts and videos that were scored against each other."""

    scores: Float[Tensor, "t v"]
    targets: Int[Tensor, "t"]
    """the video of each text"""
    reverse: Float[Tensor, "t v"]
    """what ranks the texts of each video: the scores, where nothing else does"""
    texts: Sequence[str]
    videos: Sequence[str]
    """what to call them"""
    frames: Callable[[int], NDArray[np.uint8]] | None = None
    """a video -> its frames [n, height, width, 3]; None: there is nothing to show"""
    picture: Callable[[int, int, str, bool], Figure] | None = None
    """text, video, subtitle, whether with the title and the inner level -> the heat map of that pair"""


def of_pairs(evaluation: Evaluation, pairs: Pairs, model: XCLIP, max_frames: int) -> Subject:
    """The pairs of a run, whose videos are read again where they are shown."""

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
    # A picture explains a score by grains, which corrected ones and those of recipes are not.
    explained = evaluation.hubness is None and not model.recipe.name
    return Subject(*_scored(evaluation), texts, _video_names(evaluation, pairs), frames, picture if explained else None)


def of_features(evaluation: Evaluation, text: Features, video: Features, scorer: object) -> Subject:
    """Saved features: nothing is known of what they were made from but their numbers."""

    def picture(i: int, j: int, subtitle: str, levels: bool) -> Figure:
        from .. import viz

        assert isinstance(scorer, MultiGrain)
        query, candidate = text[i], video[j]
        words = [f"word {k + 1}" for k in range(_real(query["word"]))]
        title = f"text {i} against video {j}" if levels else ""
        return viz.explain_features(scorer, query, candidate, words, _real(candidate["frame"]), title, subtitle, levels)

    texts, videos = ([f"{side} {i}" for i in range(len(x))] for side, x in (("text", text), ("video", video)))
    explained = isinstance(scorer, MultiGrain) and evaluation.hubness is None and "word" in text and "frame" in video
    return Subject(*_scored(evaluation), texts, videos, None, picture if explained else None)




def _scored(evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    scores = evaluation.scores["all"]
    return scores, evaluation.targets, scores if evaluation.reverse is None else evaluation.reverse


def _video_names(evaluation: Evaluation, pairs: Pairs) -> list[str]:
    """The first sentence of each video, behind its name where it has one beside its place."""
    names = pairs.names
    anonymous = names == [str(row) for row in range(len(names))]
    return [
        f"video of “{pairs.sentences[row]}”" if anonymous else f"{names[row]} “{pairs.sentences[row]}”"
        for row in evaluation.videos
    ]


def _real(tokens: Tokens) -> int:
    return tokens.length if tokens.mask is None else int(torch.count_nonzero(tokens.mask))
