"""What a picture of one pair shows: similarities, the weights that explain the score, each grain's part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..explain import Part, Weights, explain
from ..grains import Grain
from ..scorer import grains_of
from ..tokens import Features, Tokens

Sides = tuple[str, str]
DRAWN: tuple[Sides, ...] = (("word", "frame"), ("sentence", "frame"), ("word", "video"), ("sentence", "video"))
TOLERANCE = 1e-3  # by which weights times similarities may miss the score that they explain


@dataclass(frozen=True)
class Coarse:
    """The coarse grains of a pair, which frame the matrix of words and frames: similarities and their weights."""

    video: Float[Tensor, "m"]
    """each word against the whole video"""
    sentence: Float[Tensor, "n"]
    """the whole sentence against each frame"""
    both: float
    """the sentence against the video"""
    video_weights: Float[Tensor, "m"] | None = None
    sentence_weights: Float[Tensor, "n"] | None = None
    counts: bool = False
    """whether the sentence against the video is a grain of the score"""


@dataclass(frozen=True)
class Pair:
    """One pair, ready to be drawn."""

    sim: Float[Tensor, "m n"]
    """each word against each frame"""
    weights: Weights | None
    coarse: Coarse | None
    parts: Mapping[str, Part]
    notes: tuple[str, ...]
    """what the picture leaves out, and why"""

    @property
    def added(self) -> dict[str, float]:
        """What each grain adds to the score, by name."""
        return {name: part.share * part.score for name, part in self.parts.items()}

    @property
    def score(self) -> float:
        """Of all grains together."""
        return sum(self.added.values())


def look(scorer: nn.Module, text: Features, video: Features, words: int, frames: int) -> Pair:
    """What is to be seen of one text and one video.

    Weights are drawn where they explain: where their sum over the similarities is the grain's score. Those of means,
    maxima, sums and attention do; an aggregator of another kind shows its similarities alone, and `notes` says so.

    Args:
        text, video: features of one item each, with the grains word and frame; with sentence and video, the coarse
            grains are shown too, whether or not the scorer has them.
        words, frames: how many are real; further slots are padding, which takes part where nothing masks it.

    Raises:
        KeyError: no word or no frame among the features.
        TypeError: what scores is no MultiGrain.
        ValueError: more than one item, or masks that leave other numbers of words and frames.
    """
    parts = explain(scorer, text, video)
    _check_count("words", words, text["word"])
    _check_count("frames", frames, video["frame"])
    sizes = {"word": words, "frame": frames}
    kinds = {grain.name: type(grain.aggregator or grain).__name__ for grain in grains_of(scorer)}
    drawn: dict[Sides, tuple[Part, Weights | None]] = {}
    notes: list[str] = []
    for name, part in parts.items():
        sides = part.query, part.candidate
        if sides not in DRAWN or sides in drawn:
            why = "another grain has its place" if sides in drawn else "words, frames and their wholes alone are"
            notes.append(f"{name} is not drawn: {why}")
            continue
        expected = tuple(sizes.get(side, 1) for side in sides)
        why = _unexplained(part, expected, kinds[name])
        drawn[sides] = part, None if why else part.weights
        notes += [f"{name}: {why}: similarities alone"] * bool(why)

    def sim(query: str, candidate: str) -> Tensor:
        # All four matrices are shown, also of grains that the scorer goes without.
        part, _ = drawn.get((query, candidate), (None, None))
        whole = Grain(query, candidate).similarity(text, video)[0, 0] if part is None else part.sim
        return whole[: sizes.get(query, 1), : sizes.get(candidate, 1)].detach()

    def weights(query: str, candidate: str) -> Weights | None:
        return drawn.get((query, candidate), (None, None))[1]

    coarse = None
    if "sentence" in text and "video" in video:
        down, across = weights("word", "video"), weights("sentence", "frame")
        coarse = Coarse(
            sim("word", "video")[:, 0],
            sim("sentence", "frame")[0],
            float(sim("sentence", "video")),
            None if down is None else down.cells[:, 0],
            None if across is None else across.cells[0],
            weights("sentence", "video") is not None,
        )
    shown = DRAWN if coarse is not None else DRAWN[:1]
    absent = ["-".join(sides) for sides in shown if sides not in drawn]
    notes += [f"{', '.join(absent)}: not part of this score, similarities alone"] * bool(absent)
    return Pair(sim("word", "frame"), weights("word", "frame"), coarse, parts, tuple(notes))


def _unexplained(part: Part, shape: tuple[int, ...], aggregator: str) -> str:
    """Why the weights of a grain are not drawn; nothing where they are."""
    if tuple(part.sim.shape) != shape:
        return "padding takes part in the score, nothing masks it"
    if abs(float((part.weights.cells * part.sim).sum()) - part.score) > TOLERANCE:
        return f"{aggregator} has no weights that add up to its score"
    return ""


def rounded(parts: Mapping[str, float], digits: int = 3) -> tuple[dict[str, float], float]:
    """Parts and their total, rounded such that what is shown adds up.

    The total is rounded as usual; the parts whose rounding lost most get one unit more (the method of largest
    remainders).
    """
    unit = 10.0**-digits
    total = round(sum(parts.values()) / unit)
    floors = {name: int(value // unit) for name, value in parts.items()}
    order = sorted(parts, key=lambda name: floors[name] * unit - parts[name])
    raised = set(order[: max(0, total - sum(floors.values()))])
    shown = {name: round((floor + (name in raised)) * unit, digits) for name, floor in floors.items()}
    return shown, round(total * unit, digits)


def _check_count(name: str, expected: int, tokens: Tokens) -> None:
    slots = tokens.length
    real = slots if tokens.mask is None else int(torch.count_nonzero(tokens.mask))
    if expected > slots or (tokens.mask is not None and real != expected):
        raise ValueError(f"{name}: expected the {real} that have features, got {expected}")
