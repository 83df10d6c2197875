"""Contents of the picture of one pair: similarities, the weights that explain the score, each grain's part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ..explain import Part, Weights, explain
from ..grains import Grain
from ..scorer import grains_of
from ..tokens import Features, Tokens

Sides = tuple[str, str]
DRAWN: tuple[Sides, ...] = (("word", "frame"), ("sentence", "frame"), ("word", "video"), ("sentence", "video"))
TOLERANCE = 1e-3  # how far weights times similarities may be from the score that they explain
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Coarse:
    """The coarse grains of a pair, beside the matrix of words and frames: similarities and their weights."""

    video: Float[Tensor, "m"]
    """each word against the whole video"""
    sentence: Float[Tensor, "n"]
    """the whole sentence against each frame"""
    both: float
    """the sentence against the video"""
    video_weights: Float[Tensor, "m"] | None = None
    sentence_weights: Float[Tensor, "n"] | None = None
    counts: bool = False
    """True if the sentence against the video is a grain of the score"""


@dataclass(frozen=True)
class PairView:
    """A text and a video, ready to be drawn."""

    sim: Float[Tensor, "m n"]
    """each word against each frame"""
    weights: Weights | None
    coarse: Coarse | None
    parts: Mapping[str, Part]
    notes: tuple[str, ...]
    """the parts of the score that the picture leaves out, and why"""

    @property
    def added(self) -> dict[str, float]:
        """Amount that each grain adds to the score, by name."""
        return {name: part.share * part.score for name, part in self.parts.items()}

    @property
    def score(self) -> float:
        """Score of all grains together."""
        return sum(self.added.values())

    @property
    def score_text(self) -> str:
        """Score in words, rounded like the parts."""
        return f"score {signed(round_parts(self.added)[1])}"


def look(scorer: nn.Module, text: Features, video: Features, words: int, frames: int) -> PairView:
    """Find the similarities, weights and parts of the score of one text and one video.

    Weights are drawn if the similarities times the weights add up to the grain's score, as they do for means, maxima,
    sums and attention. A grain with another aggregator shows its similarities alone, and `notes` says so.

    Args:
        text, video: features of one item each, with the grains word and frame; if they have sentence and video, the
            coarse grains are shown too, even those that the scorer lacks.
        words, frames: how many are real; further slots are padding, which counts in the score if nothing masks it.

    Raises:
        KeyError: no word or no frame among the features.
        TypeError: the scorer is no MultiGrain.
        ValueError: more than one item, or masks that leave other numbers of words and frames.
    """
    parts = explain(scorer, text, video)
    _check_count("words", words, text["word"])
    _check_count("frames", frames, video["frame"])
    sizes = {"word": words, "frame": frames}
    kinds = {grain.name: type(grain.aggregator or grain).__name__ for grain in grains_of(scorer)}
    sims: dict[Sides, Tensor] = {}
    weights: dict[Sides, Weights] = {}
    notes: list[str] = []
    for name, part in parts.items():
        sides = part.query, part.candidate
        if sides not in DRAWN or sides in sims:
            why = "another grain has its place" if sides in sims else "words, frames and their wholes alone are"
            notes.append(f"{name} is not drawn: {why}")
            continue
        sims[sides] = part.sim
        expected = tuple(sizes.get(side, 1) for side in sides)
        if why := _unexplained(part, expected, kinds[name]):
            notes.append(f"{name}: {why}: similarities alone")
        else:
            weights[sides] = part.weights

    def sim(query: str, candidate: str) -> Tensor:
        # All four matrices are shown, also those of grains that the scorer lacks.
        sides = query, candidate
        cosines = sims[sides] if sides in sims else Grain(*sides).similarity(text, video)[0, 0]
        return cosines[: sizes.get(query, 1), : sizes.get(candidate, 1)].detach()

    coarse = None
    if "sentence" in text and "video" in video:
        down, across = weights.get(("word", "video")), weights.get(("sentence", "frame"))
        coarse = Coarse(
            sim("word", "video")[:, 0],
            sim("sentence", "frame")[0],
            float(sim("sentence", "video")),
            None if down is None else down.cells[:, 0],
            None if across is None else across.cells[0],
            ("sentence", "video") in weights,
        )
    shown = DRAWN if coarse is not None else DRAWN[:1]
    absent = ["-".join(sides) for sides in shown if sides not in sims]
    notes += [f"{', '.join(absent)}: not part of this score, similarities alone"] * bool(absent)
    return PairView(sim("word", "frame"), weights.get(("word", "frame")), coarse, parts, tuple(notes))


def _unexplained(part: Part, shape: tuple[int, ...], aggregator: str) -> str:
    """Say why the weights of a grain are not drawn, or nothing if they are."""
    if tuple(part.sim.shape) != shape:
        return "padding takes part in the score, nothing masks it"
    if abs(float((part.weights.cells * part.sim).sum()) - part.score) > TOLERANCE:
        return f"{aggregator} has no weights that add up to its score"
    return ""


def round_parts(parts: Mapping[str, float], digits: int = 3) -> tuple[dict[str, float], float]:
    """Round parts and their total such that the rounded parts add up to the rounded total.

    The parts are rounded down; those that lose most get one unit more (the method of largest remainders).
    """
    unit = 10.0**-digits
    total = round(sum(parts.values()) / unit)
    floors = {name: int(value // unit) for name, value in parts.items()}
    order = sorted(parts, key=lambda name: floors[name] * unit - parts[name])
    raised = set(order[: max(0, total - sum(floors.values()))])
    shown = {name: round((floor + (name in raised)) * unit, digits) for name, floor in floors.items()}
    return shown, round(total * unit, digits)


def signed(value: float) -> str:
    """Write a number with three digits: 0.421, −0.050."""
    return f"{value:.3f}".replace("-", MINUS)


def _check_count(name: str, expected: int, tokens: Tokens) -> None:
    slots = tokens.length
    real = int(tokens.real_mask.sum())
    if expected > slots or (tokens.mask is not None and real != expected):
        raise ValueError(f"{name}: expected the {real} that have features, got {expected}")
