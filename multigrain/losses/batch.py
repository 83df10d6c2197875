"""Losses of features that need the batches of all ranks at once, and how any loss of features reads its inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence, Set
from typing import TypeAlias, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..distributed import Group, gather, world
from ..reduce import widen
from ..tokens import Features, Tokens
from .base import Loss
from .criterion import Ids, split_ids

Reads: TypeAlias = "tuple[frozenset[str], frozenset[str]]"


class WholeBatchLoss(Loss):
    """A loss of (text, video, ids) over the batches of all ranks. Subclass it and write `compute`, and `reads`.

    Every rank gathers the grains that it reads and computes the same; like gather "global" of RetrievalLoss, the
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
    def compute(self, text: Features, video: Features, ids: Ids | None) -> Float[Tensor, ""]:
        """Compute the loss of the whole batch."""

    @property
    def reads(self) -> Reads | None:
        """The grains of text and video that `compute` reads: no other travels. None: all."""
        return None

    def forward(self, text: Features, video: Features, ids: Ids | None = None) -> Float[Tensor, ""]:
        """Compute the loss, a scalar: text i belongs to video i, or to those of the same id (see InfoNCE).

        Raises:
            KeyError, ValueError: features or ids that are missing or do not fit together; over several ranks, the same
                error on each.
        """
        checks.instances(Features, text=text, video=video)
        text, video = select_read(self.reads, text, video)
        if self.gather == "none" or world(self.group)[1] == 1:
            if problem := find_problem(text, video, ids):
                raise ValueError(problem)
        else:
            text, video, ids = whole_batch(text, video, ids, self.group, self.exchange_dtype)
        return self.compute(text, video, ids)


def whole_batch(
    text: Features, video: Features, ids: Ids | None, group: Group, exchange_dtype: torch.dtype | None
) -> tuple[Features, Features, Ids | None]:
    """Gather texts, videos and ids of all ranks on each of them. Collective."""
    problem = find_problem(text, video, ids)
    batch = gather({"text": text, "video": video}, id_sets(ids), group, exchange_dtype, problem)
    all_ids = (batch.ids[0], batch.ids[1]) if len(batch.ids) == 2 else batch.ids[0] if batch.ids else None
    return batch.features["text"], batch.features["video"], all_ids


def id_sets(ids: Ids | None) -> tuple[Tensor, ...]:
    """Ids as a tuple: none, one set for both sides, or one for each."""
    return () if ids is None else ids if isinstance(ids, tuple) else (ids,)


def grains_read(scorer: nn.Module) -> Reads | None:
    """The grains of text and video that a scorer reads; None where it does not say."""
    return getattr(scorer, "reads", None)


def select_read(reads: Reads | None, text: Features, video: Features) -> tuple[Features, Features]:
    """Keep the grains of text and video that are read; the reader raises where one is missing."""
    return (text, video) if reads is None else (_only(text, reads[0]), _only(video, reads[1]))


def _only(features: Features, names: Set[str]) -> Features:
    kept = {name: features[name] for name in features.names if name in names}
    return Features(**kept) if kept else features


def find_problem(
    text: Features, video: Features, ids: Ids | None, keys: tuple[Features, Features] | None = None
) -> str | None:
    """Say what is wrong with this rank's sizes and ids, to be raised on every rank; None: nothing."""
    texts, videos = len(text), len(video)
    if text.device != video.device:
        return f"video: expected on {text.device} as text, got it on {video.device}"
    if keys is not None and (len(keys[0]), len(keys[1])) != (texts, videos):
        return f"keys: expected {texts} texts and {videos} videos, got {len(keys[0])} and {len(keys[1])}"
    if not isinstance(ids, tuple) and texts != videos:
        return f"expected as many videos as texts ({texts}; a pair of ids says otherwise which match), got {videos}"
    if ids is None:
        return None
    try:
        for name, side, length in zip(("texts", "videos"), split_ids(ids), (texts, videos), strict=True):
            checks.labels(f"ids of the {name}", side, length)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def text_and_video(name: str, value: object) -> tuple[Features, Features]:
    """Return a pair of Features, or raise an error that names it."""
    if not isinstance(value, (tuple, list)) or len(sides := cast("Sequence[object]", value)) != 2:
        raise ValueError(f"{name}: expected (text, video), got {checks.short(value)}")
    text, video = sides
    return checks.instance(f"text of {name}", text, Features), checks.instance(f"video of {name}", video, Features)


def given_weights(features: Features, grain: str, weights: str | None) -> Float[Tensor, "b m"]:
    """Read the weight of each token of a grain from another grain [B, M, 1]; 1 without one, 0 at padding."""
    tokens = features[grain].tokenwise()
    given = Tokens(torch.ones_like(tokens.features[..., :1])) if weights is None else features[weights].tokenwise()
    expected = [tokens.batch_size, tokens.length, 1]
    if list(given.features.shape) != expected:
        raise ValueError(
            f"{weights}: expected weights of shape {expected}, one for each token of {grain}, "
            f"got {checks.shape(given.features)}"
        )
    values = widen(rearrange(given.features, "b m 1 -> b m"))
    for mask in (tokens.mask, given.mask):
        values = values if mask is None else torch.where(mask, values, 0.0)
    return values
