"""Losses of features that need the batches of all ranks at once, on each of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..distributed import Group, gather, world
from ..reduce import widen
from ..tokens import Features, Tokens
from .base import Loss
from .criterion import Ids, pair

Reads: TypeAlias = "tuple[frozenset[str], frozenset[str]]"


class WholeBatchLoss(Loss):
    """A loss of (text, video, ids) over the batches of all ranks. Subclass it and write `whole`, and `reads`.

    Every rank gathers the grains that it reads and computes the same; as with gather "global" of RetrievalLoss, the
    gradients that DDP and its like average over ranks are those of one process with the whole batch.

    Args:
        gather: "none"; "auto" or "global": where torch.distributed has more than one rank. Ranks have to agree as in
            RetrievalLoss.
        group, exchange_dtype: as in RetrievalLoss.

    Raises:
        ValueError: an unknown gather.
    """

    def __init__(self, gather: str = "auto", group: Group = None, exchange_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.gather = checks.choice("gather", gather, ("auto", "global", "none"))
        self.group, self.exchange_dtype = group, exchange_dtype

    @abstractmethod
    def whole(self, text: Features, video: Features, ids: Ids | None) -> Float[Tensor, ""]:
        """The loss of the whole batch."""

    @property
    def reads(self) -> Reads | None:
        """The grains of text and video that `whole` reads: no other travels. None: all."""
        return None

    def forward(self, text: Features, video: Features, ids: Ids | None = None) -> Float[Tensor, ""]:
        """The loss, a scalar: text i belongs to video i, or to those of the same id (see InfoNCE).

        Raises:
            KeyError, ValueError: features or ids that are missing or do not fit together; over several ranks, the same
                error on each.
        """
        checks.instances(Features, text=text, video=video)
        if (names := self.reads) is not None:
            text, video = only(text, names[0]), only(video, names[1])
        if self.gather == "none" or world(self.group)[1] == 1:
            if wrong := problem(text, video, ids):
                raise ValueError(wrong)
        else:
            text, video, ids = whole_batch(text, video, ids, self.group, self.exchange_dtype)
        return self.whole(text, video, ids)


def whole_batch(
    text: Features, video: Features, ids: Ids | None, group: Group, exchange_dtype: torch.dtype | None
) -> tuple[Features, Features, Ids | None]:
    """Texts, videos and ids of all ranks, on each of them."""
    given = () if ids is None else pair(ids) if isinstance(ids, tuple) else (ids,)
    wrong = problem(text, video, ids)
    batch = gather({"text": text, "video": video}, given, group, exchange_dtype, wrong)
    everyone = (batch.ids[0], batch.ids[1]) if len(batch.ids) == 2 else batch.ids[0] if batch.ids else None
    return batch.features["text"], batch.features["video"], everyone


def grains_read(scorer: nn.Module) -> Reads | None:
    """The grains of text and video that a scorer reads; None where it does not say."""
    return getattr(scorer, "reads", None)


def only(features: Features, names: Iterable[str]) -> Features:
    """The grains of these names; those that are missing are the scorer's to miss."""
    kept = {name: features[name] for name in features.names if name in set(names)}
    return Features(**kept) if kept else features


def problem(
    text: Features, video: Features, ids: Ids | None, keys: tuple[Features, Features] | None = None
) -> str | None:
    """What is wrong with this rank's sizes and ids, to be raised on every rank."""
    texts, videos = len(text), len(video)
    if text.device != video.device:
        return f"video: expected on {text.device} as text, got it on {video.device}"
    if keys is not None and (len(keys[0]), len(keys[1])) != (texts, videos):
        return f"keys: expected {texts} texts and {videos} videos, got {len(keys[0])} and {len(keys[1])}"
    if not isinstance(ids, tuple) and texts != videos:
        return f"expected as many videos as texts ({texts}; a pair of ids says otherwise which match), got {videos}"
    try:
        for name, side, length in zip(
            ("texts", "videos"), pair(ids) if ids is not None else (), (texts, videos), strict=False
        ):
            checks.labels(f"ids of the {name}", side, length)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def text_and_video(name: str, value: object) -> tuple[Features, Features]:
    """A pair of Features, or an error that names it."""
    if not isinstance(value, (tuple, list)) or len(pair := cast("Sequence[object]", value)) != 2:
        raise ValueError(f"{name}: expected (text, video), got {checks.short(value)}")
    return checks.instance(f"text of {name}", pair[0], Features), checks.instance(f"video of {name}", pair[1], Features)


def token_weights(features: Features, grain: str, weights: str | None) -> Float[Tensor, "b m"]:
    """What a grain [B, M, 1] of weights gives the tokens of another, 1 without one; 0 where a token is not real."""
    tokens = features[grain].tokenwise()
    given = Tokens(torch.ones_like(tokens.features[..., :1])) if weights is None else features[weights].tokenwise()
    expected = [tokens.batch_size, tokens.length, 1]
    if list(given.features.shape) != expected:
        raise ValueError(
            f"{weights}: expected weights of shape {expected}, one for each token of {grain}, "
            f"got {checks.shape(given.features)}"
        )
    values = widen(given.features[..., 0])
    for mask in (tokens.mask, given.mask):
        values = values if mask is None else torch.where(mask, values, 0.0)
    return values
