"""Recipe: a published system as parts of this library; the registry of recipes."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, ParamSpec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..cross_encoder import rerank
from ..losses import FeatureQueue, Loss
from ..losses.infonce import Ids
from ..scoring import score_matrix
from ..tokens import Features

P = ParamSpec("P")


@dataclass(frozen=True)
class About:
    """A description of a recipe for tables: its grains, its loss and its cost.

    Args:
        system: the name that its authors gave it.
        paper: authors, year and arXiv number.
        grains: the compared grains, such as "sentence-video".
        aggregation: the way from similarities of tokens to one score.
        loss: the loss in words.
        extras: further needs, such as queues, given weights or a second stage; "" for none.
        cost: the dominant multiplications of one score beyond the encoders, of D-wide features, M words, N frames;
            or those of a batch, where it says so.
        figure: a result that was published for it; "" where none could be checked. Results of other papers, data
            and encoders do not compare.
        source: the paper or page that has the figure.
    """

    system: str
    paper: str
    grains: str
    aggregation: str
    loss: str
    cost: str
    extras: str = ""
    figure: str = ""
    source: str = ""


class Recipe(nn.Module):
    """Heads, a scorer and a loss: from the raw features of any two encoders to scores and a loss.

        raw text  Features(sentence [B, D], word [B, M, D] + mask)  -> text_head  -> text  -+-> scorer -> scores
        raw video Features(frame [B, N, D] + mask)                  -> video_head -> video -+-> loss   -> scalar

    A recipe reads only the grains that it compares. It may have parameters, which are trained with the encoders.

    Args:
        scorer: Features x Features -> scores [texts, videos]. It ranks the videos of a text.
        loss: (text, video, ids) -> scalar, of the features that the heads give. It shares the scorer's parameters.
        text_head, video_head: Features -> Features with more grains, or None for the identity.
        reverse: another scorer [texts, videos], which ranks the texts of a video (FILIP); None: `scorer` does.
        reranker: a scorer that is too slow for all pairs.
        rerank_k: the number of best candidates that it orders, or all where there are fewer; given if and only if
            there is a reranker.
        momentum: the decay of momentum encoders (see `momentum_update`) that make `keys`; None: there are none.
        queue_size: of the two queues of keys; None: there are none.

    Attributes:
        name, about: the registered name and what the recipe is, set by `register_recipe`.

    Example:
        >>> recipe = mg.recipes.filip()
        >>> text = mg.Features(word=torch.randn(4, 7, 16))
        >>> video = mg.Features(frame=torch.randn(4, 5, 16))
        >>> recipe(text, video).shape, recipe.scores(text, video).shape
        (torch.Size([]), torch.Size([4, 4]))
    """

    name: str
    about: About | None

    def __init__(
        self,
        scorer: nn.Module,
        loss: Loss,
        *,
        text_head: nn.Module | None = None,
        video_head: nn.Module | None = None,
        reverse: nn.Module | None = None,
        reranker: nn.Module | None = None,
        rerank_k: int | None = None,
        momentum: float | None = None,
        queue_size: int | None = None,
    ) -> None:
        super().__init__()
        if (reranker is None) != (rerank_k is None):
            raise ValueError("rerank_k: expected a number with a reranker, and none without")
        self.text_head = nn.Identity() if text_head is None else text_head
        self.video_head = nn.Identity() if video_head is None else video_head
        self.scorer = checks.scorer("scorer", scorer, but=Loss)
        self.loss = checks.instance("loss", loss, Loss)
        self.reverse, self.reranker = reverse, reranker
        self.rerank_k = None if rerank_k is None else checks.count("rerank_k", rerank_k)
        self.momentum = momentum
        checks.require(momentum is None or 0 <= momentum <= 1, "momentum", "a decay from 0 to 1", momentum)
        self.queue_size = None if queue_size is None else checks.count("queue_size", queue_size)
        self.name, self.about = "", None

    def encode(self, text: Features, video: Features) -> tuple[Features, Features]:
        """Apply the heads to raw features; the scorer and the loss read the result."""
        checks.instances(Features, text=text, video=video)
        return self.text_head(text), self.video_head(video)

    def forward(self, text: Features, video: Features, ids: Ids | None = None, **settings: Any) -> Float[Tensor, ""]:
        """The loss of raw features.

        Args:
            ids: tells which texts and videos belong together; None: text i and video i. See InfoNCE.
            settings: further arguments of the loss: `keys`, `text_queue` and `video_queue` of RetrievalLoss, made by
                the heads of momentum encoders. With `momentum` and no keys, the batch's own features, without a
                gradient, are the keys.
        """
        return self.loss_of(*self.encode(text, video), ids, **settings)

    def loss_of(self, text: Features, video: Features, ids: Ids | None = None, **settings: Any) -> Float[Tensor, ""]:
        """The loss of features that the heads gave; otherwise like a call."""
        if self.momentum is not None and settings.get("keys") is None:
            settings["keys"] = text.detach(), video.detach()
        return self.loss(text, video, ids, **settings)

    def scores(self, text: Features, video: Features, direction: str = "t2v") -> Float[Tensor, "t v"]:
        """Scores [texts, videos] of all pairs of raw features, without the reranker.

        Args:
            direction: "t2v" ranks the videos of each text, along the rows; "v2t" the texts of each video, down the
                columns. They differ where there is a `reverse`.
        """
        return self._scorer_of(direction)(*self.encode(text, video))

    @torch.no_grad()
    def reranked(
        self, text: Features, video: Features, direction: str = "t2v", k: int | None = None
    ) -> Float[Tensor, "t v"]:
        """Scores whose k best of each row ("t2v") or column ("v2t") are in the order of the reranker.

        Only the order along the rows, or down the columns, means something then: see `rerank`. Without a reranker they
        are those of `scores`. In blocks and without a graph; put the recipe in eval mode first.

        Args:
            k: from 1 to the number of candidates; None: `rerank_k`, or all where they are fewer.

        Raises:
            ValueError: a k out of range, or one without a reranker.
        """
        return self.reranked_of(*self.encode(text, video), direction, k)

    @torch.no_grad()
    def reranked_of(
        self, text: Features, video: Features, direction: str = "t2v", k: int | None = None
    ) -> Float[Tensor, "t v"]:
        """Scores like those of `reranked`, of features that the heads gave."""
        scores = score_matrix(self._scorer_of(direction), text, video)
        if self.reranker is None or self.rerank_k is None:
            checks.require(k is None, "k", "None without a reranker", k)
            return scores
        if k is None:
            k = min(self.rerank_k, len(video if direction == "t2v" else text))
        if direction == "t2v":
            return rerank(scores, self.reranker, k, text, video)
        reranker = self.reranker
        return rerank(scores.T, lambda video, text: reranker(text, video).T, k, video, text).T

    def _scorer_of(self, direction: str) -> nn.Module:
        checks.choice("direction", direction, ("t2v", "v2t"))
        return self.reverse if direction == "v2t" and self.reverse is not None else self.scorer

    @property
    def terms(self) -> dict[str, Tensor]:
        """Terms of the loss after a call."""
        return self.loss.terms

    def queues(self) -> tuple[FeatureQueue, FeatureQueue] | None:
        """New queues (of texts, of videos) of the recipe's size, or None where it has none."""
        return None if self.queue_size is None else (FeatureQueue(self.queue_size), FeatureQueue(self.queue_size))

    def _no_sum(self, _: object) -> NoReturn:
        """Scorers, heads and queues do not add up as losses do."""
        raise TypeError("Recipe: expected its loss in a sum, as in `a.loss + 0.5 * b.loss`, got the recipe itself")

    __add__ = __radd__ = __mul__ = __rmul__ = _no_sum

    def extra_repr(self) -> str:
        """The name and the settings that repr shows."""
        settings = {key: getattr(self, key) for key in ("rerank_k", "momentum", "queue_size")}
        return ", ".join([self.name] * bool(self.name) + [f"{k}={v}" for k, v in settings.items() if v is not None])

    def __repr__(self) -> str:
        """Show the parts like any module; parts that the loss shares are shown in the loss only."""
        again = set(self.loss.modules())
        shown = {n: m for n, m in self.named_children() if m not in again or m is self.loss}
        lines = [self.extra_repr(), *(f"({n}): {m!r}" for n, m in shown.items() if not isinstance(m, nn.Identity))]
        return "Recipe(\n" + textwrap.indent("\n".join(line for line in lines if line), "  ") + "\n)"


_REGISTRY: dict[str, Callable[..., Recipe]] = {}
_ABOUT: dict[str, About] = {}


def register_recipe(about: About) -> Callable[[Callable[P, Recipe]], Callable[P, Recipe]]:
    """A decorator that registers a function under its own name: `build`, `names` and the table find it.

    Args:
        about: the description, which its recipes have as `recipe.about`.

    Raises:
        ValueError: the name is taken by a function of another place; a cell of a notebook may run again.
    """

    checks.instance("about", about, About)

    def decorate(function: Callable[P, Recipe]) -> Callable[P, Recipe]:
        name = function.__name__
        if checks.origin(_REGISTRY.get(name, function)) != checks.origin(function):
            raise ValueError(f"recipe {name!r}: the name is taken by {inspect.getmodule(_REGISTRY[name])}")

        @functools.wraps(function)
        def recipe(*args: P.args, **settings: P.kwargs) -> Recipe:
            try:
                inspect.signature(function).bind(*args, **settings)
            except TypeError as error:
                known = ", ".join(parameters(name)) or "none"
                raise TypeError(f"settings of recipe {name!r}: expected {known}; {error}") from None
            made = function(*args, **settings)
            made.name, made.about = name, about
            return made

        _REGISTRY[name], _ABOUT[name] = recipe, about
        return recipe

    return decorate


def names() -> tuple[str, ...]:
    """The registered names, in alphabetical order."""
    return tuple(sorted(_REGISTRY))


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """The settings that a recipe takes, `dim` first where it has parameters of that width."""
    return inspect.signature(_REGISTRY[checks.choice("recipe", name, names())]).parameters


def about(name: str) -> About:
    """Describe a recipe without building it.

    Raises:
        ValueError: no such name; the message lists them.
    """
    return _ABOUT[checks.choice("recipe", name, names())]


def build(name: str, dim: int | None = None, max_frames: int | None = None, **settings: Any) -> Recipe:
    """The recipe of a registered name.

    Args:
        name: one of `names()`.
        dim: D, the width of the features, for the recipes with parameters of that width; the others ignore it.
        max_frames: N, for those with an encoder of frames; the others ignore it. None: their default.
        settings: of the function of that name.

    Raises:
        ValueError: no such name, the message lists them; or a recipe that needs `dim`, without.
        TypeError: settings that the function does not have; the message lists those that it has.
    """
    known = parameters(name)
    if unknown := settings.keys() - known.keys():
        options = ", ".join(known) or "none"
        raise TypeError(f"settings of recipe {name!r}: expected {options}, got {', '.join(sorted(unknown))}")
    if "dim" in known:
        if dim is not None:
            settings["dim"] = dim
        elif known["dim"].default is inspect.Parameter.empty:
            raise ValueError(f"dim: recipe {name!r} expected the width of the features, got None")
    if max_frames is not None and "max_frames" in known:
        settings["max_frames"] = max_frames
    return _REGISTRY[name](**settings)
