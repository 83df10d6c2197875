"""Pictures of one pair, in which colour is similarity and ink is weight; and training curves.

Every function returns a `matplotlib.figure.Figure` of its own and leaves pyplot's global state alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..explain import Weights
from ..tokens import Features
from .pair import Coarse, PairView, look

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from . import matrix
    from .layout import INK, PALE, Canvas
except ImportError as error:
    raise ImportError('pictures need Matplotlib: pip install "multigrain[viz]"') from error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data.video import Sampling
    from ..models.protocol import Encoder

Series: TypeAlias = Sequence[tuple[float, float]]
"""Points (x, y) of a curve, in the order of x."""

# Okabe and Ito's palette can be told apart with any of the common colour blindnesses.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def explain(
    model: Encoder,
    sentence: str,
    video: str | os.PathLike[str] | Tensor | NDArray[np.uint8],
    *,
    sampling: Sampling | None = None,
    title: str | None = None,
    subtitle: str | None = None,
) -> Figure:
    """Draw why a model gives a sentence and a video their score.

    Args:
        video: a file, a folder of frames, or frames [n, height, width, 3] (see multigrain.data.read_video).
        sampling: which frames; by default one a second, at most the model's max_frames, as in training.
        title: by default the sentence.
        subtitle: by default the score.

    Raises:
        ImportError: PyAV is not installed.
        TypeError: a recipe's model, whose scorer is no MultiGrain; a model of features that were computed before.
        ValueError: a video that cannot be read, or a sentence without a word.
    """
    from ..models.encoding import encode_pair

    text, features, words, frames = encode_pair(model, sentence, video, sampling)
    return explain_features(model.scorer, text, features, words, frames, sentence if title is None else title, subtitle)


def explain_features(
    scorer: nn.Module,
    text: Features,
    video: Features,
    words: Sequence[str],
    frames: NDArray[np.uint8] | int,
    title: str | None = None,
    subtitle: str | None = None,
    levels: bool = True,
) -> Figure:
    """Draw why features of any encoders have their score.

    The weights of a grain are drawn if they add up to its score, as those of attention, means, maxima and sums do.
    Remarks at the bottom say which parts of the score are not drawn.

    Args:
        scorer: a MultiGrain.
        text, video: features of one item each, with the grains word and frame, and best with sentence and video.
        words: the real words.
        frames: the real frames [n, height, width, 3]; or their number, if there are no images of them.
        title, subtitle: by default the words and the score.
        levels: draw the panels of the inner level.

    Raises:
        KeyError: no word or no frame among the features.
        TypeError: the scorer is no MultiGrain.
        ValueError: more than one item, or sizes that do not fit each other.
    """
    view = look(scorer, text, video, len(words), frames if isinstance(frames, int) else len(frames))
    return draw(view, words, None if isinstance(frames, int) else frames, title, subtitle, levels)


def draw(
    view: PairView,
    words: Sequence[str],
    frames: NDArray[np.uint8] | None,
    title: str | None = None,
    subtitle: str | None = None,
    levels: bool = True,
) -> Figure:
    """Draw the view of a pair; see `explain_features`."""
    subtitle = view.score_text if subtitle is None else subtitle
    return similarity(
        frames, words, view.sim, view.weights, view.coarse, view.added, title, subtitle, view.notes, levels
    )


def similarity(
    frames: NDArray[np.uint8] | None,
    words: Sequence[str],
    sim: Float[Tensor, "m n"],
    weights: Weights | None = None,
    coarse: Coarse | None = None,
    parts: Mapping[str, float] | None = None,
    title: str | None = None,
    subtitle: str = "",
    notes: Sequence[str] = (),
    levels: bool = True,
) -> Figure:
    """Draw the frames of a video as thumbnails against words, coloured by similarity, dotted by weight.

    The colours are symmetric about zero. If all similarities are positive and close together, as CLIP's are, they
    range from the least to the largest instead.

    Args:
        frames: the real frames [n, height, width, 3], RGB; None shows their numbers alone.
        words: the m real words.
        sim: cosine of every word with every frame.
        weights: of the pairs of tokens (the area of the dots), of the outer level (the bars) and of the inner level
            (the two panels at the bottom); see `multigrain.explain.token_weights`.
        coarse: adds a row for the sentence and a column for the video.
        parts: what each grain adds to the score, by name.
        title, subtitle: by default the words and nothing; an empty title is left out.
        notes: remarks at the bottom.
        levels: draw the panels of the inner level.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    m, n = len(words), sim.shape[1] if frames is None else len(frames)
    if tuple(sim.shape) != (m, n):
        raise ValueError(f"sim: expected [{m}, {n}] for {m} words and {n} frames, got {list(sim.shape)}")
    inner = [] if weights is None or not levels else matrix.panels(weights)
    above, beside = matrix.choices(weights)
    canvas = Canvas(
        m,
        n,
        coarse=coarse is not None,
        above=above is not None,
        beside=beside is not None,
        levels=bool(inner),
        thumbnails=frames is not None,
        words=words,
        title=" ".join(words) if title is None else title,
        subtitle=subtitle,
        bars=len(parts or ()),
        notes=notes,
    )
    more = [] if coarse is None else [coarse.video, coarse.sentence, torch.tensor(coarse.both)]
    scale = matrix.Scale.of([sim, *more])
    block = canvas.block("words", "frames")
    matrix.heat(block, sim, scale, None if weights is None else weights.cells)
    block.set_xticks(range(n), [str(j + 1) for j in range(n)])
    block.set_xlabel("frame", color=PALE, fontsize=8)
    labelled = block if coarse is None else matrix.coarse_blocks(canvas, coarse, scale)
    canvas.name_rows(labelled, canvas.words)
    if frames is not None:
        matrix.frame_row(canvas, frames)
    dots = [None if weights is None else weights.cells]
    if coarse is not None:
        dots += [coarse.video_weights, coarse.sentence_weights, torch.ones(1) if coarse.counts else None]
    matrix.legend(canvas, scale, [x for x in dots if x is not None])
    if weights is not None:
        matrix.outer_bars(canvas, weights)
    matrix.inner_panels(canvas, inner)
    if parts is not None:
        matrix.grain_bars(canvas, parts)
    return canvas.figure


def curves(
    losses: Mapping[str, Series],
    recalls: Mapping[str, Series],
    chance: float | None = None,
    x_label: str = "epoch",
) -> Figure:
    """Draw the course of a training: the loss at the left, validation R@1 at the right.

    Args:
        losses: curves by name, such as one for each stage.
        recalls: validation R@1 in per cent, by name.
        chance: R@1 of a random order, in per cent: a dotted line.
        x_label: the quantity along x.
    """
    figure = Figure((9, 3.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes, series, label in ((left, losses, "training loss"), (right, recalls, "validation R@1, per cent")):
        for (name, points), colour in zip(series.items(), PALETTE, strict=False):
            mark = "o" if len(points) < 40 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, label=name, marker=mark, ms=3.5)
        axes.set_xlabel(x_label, color=INK)
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if chance is not None:
        right.axhline(chance, color=PALE, linestyle=":", label=f"chance ({chance:g})")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure
