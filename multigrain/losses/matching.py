"""Matching: is this text of this video, yes or no, asked of a scorer that reads both together.

Each of its pairs costs a pass of a transformer, so a few negatives are chosen for every text and video.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import checks
from ..aggregators.base import DIRECTIONS
from ..reduce import logsumexp, mean, widen
from ..tokens import Features
from .base import Loss

Negatives: TypeAlias = 'tuple[Int[Tensor, "q k"], Bool[Tensor, "q k"]]'


class _Pairs(Protocol):
    def pairs(self, query: Features, candidate: Features) -> Tensor: ...


def random_negatives(positives: Bool[Tensor, "q c"], k: int = 1) -> Negatives:
    """Draw k candidates of each query that are no positives of it, evenly and without replacement.

    Torch's generator of the device is drawn from.

    Args:
        positives: which candidates belong to which query.
        k: how many; a query with fewer negatives has them all.

    Returns:
        Columns [q, k], and a mask [q, k] that is True where there is one.

    Raises:
        ValueError: k below 1.
    """
    checks.instance("positives", positives, Tensor)
    return hard_negatives(torch.zeros(positives.shape, device=positives.device), positives, k)


def hard_negatives(scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"], k: int = 1) -> Negatives:
    """Draw like `random_negatives`, with the chances softmax(scores) over the negatives of a row (ALBEF, k = 1).

    Args:
        scores: of a ranker, times its logit scale; -inf is never drawn.
        positives, k: as for `random_negatives`, and so is what it returns.

    Raises:
        ValueError: positives of another shape than the scores, k below 1.
    """
    checks.scores(scores)
    logits = widen(scores.detach())
    # Gumbel's trick: the k largest are a draw without replacement, and no chance ever underflows.
    return cascade_negatives(logits - torch.empty_like(logits).exponential_().log(), positives, k)


def cascade_negatives(scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"], k: int = 8) -> Negatives:
    """Choose the k negatives of each query that a cheap ranker scores highest, best first (TACo; its k is 8).

    Args:
        scores, positives, k: as for `hard_negatives`, and so is what it returns.

    Raises:
        ValueError: positives of another shape than the scores, k below 1; NaN among the scores (the first is named).
    """
    checks.count("k", k)
    checks.scores(scores)
    checks.instance("positives", positives, Tensor)
    checks.require(positives.device == scores.device, "positives", f"device {scores.device}", str(positives.device))
    same = positives.shape == scores.shape and positives.dtype == torch.bool
    checks.require(same, "positives", f"a bool matrix of shape {checks.shape(scores)}", checks.shape(positives))
    if checks.readable(scores):
        checks.not_nan(scores)
    best = torch.where(positives, -torch.inf, scores.detach()).topk(min(k, scores.shape[1]), 1)
    return best.indices, best.values > -torch.inf


class Matching(Loss):
    """Cross-entropy of a scorer's logits [., 2] over pairs that belong together and chosen ones that do not.

        L = mean over B pairs, k negatives of each text and k of each video of CE(logits, belongs together)

    LXMERT, OSCAR and VideoBERT ("random"), ALBEF ("hard", "both", k = 1); TACo's cascade with contrastive=True:
    the mean over texts, and over videos, of the softmax cross-entropy of logits_1 - logits_0 of a pair against its
    negatives. Over several ranks it is of this rank's batch.

    Args:
        scorer: has pairs(text, video) -> logits [B, 2] of aligned pairs, as CrossEncoder.
        negatives: "random"; "hard": drawn from softmax(ranker's scores / temperature); "cascade": the ranker's best.
        ranker: Features x Features -> scores [texts, videos], without a gradient; None: the scorer itself, at the
            cost of all pairs.
        k: negatives of each text and each video; None: 1, and 8 for the cascade. An item may have fewer.
        temperature: of the draw of hard negatives.
        direction: "query": negative videos for each text alone; "candidate": texts for each video; "both".
        contrastive: choose among a pair and its negatives in place of deciding on each.

    Raises:
        ValueError: settings out of range.
        TypeError: a scorer without `pairs`.

    Example:
        >>> loss = Matching(mg.cross_encoder.CrossEncoder(16, depth=1, heads=2), "hard", ranker=mg.VideoSentence())
        >>> text = mg.Features(sentence=torch.randn(4, 16), word=torch.randn(4, 7, 16))
        >>> video = mg.Features(video=torch.randn(4, 16), frame=torch.randn(4, 3, 16))
        >>> loss(text, video).shape
        torch.Size([])
    """

    def __init__(
        self,
        scorer: nn.Module,
        negatives: str = "hard",
        ranker: nn.Module | None = None,
        k: int | None = None,
        temperature: float = 0.07,
        direction: str = "both",
        contrastive: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(scorer, type) or not callable(getattr(scorer, "pairs", None)):
            raise TypeError(f"scorer: expected one with a method pairs, as CrossEncoder, got {checks.named(scorer)}")
        self.scorer, self.ranker = scorer, None if ranker is None else checks.scorer("ranker", ranker, but=Loss)
        self.negatives = checks.choice("negatives", negatives, ("random", "hard", "cascade"))
        self.k = checks.count("k", (8 if negatives == "cascade" else 1) if k is None else k)
        self.temperature = checks.positive("temperature", temperature)
        self.direction = checks.choice("direction", direction, DIRECTIONS)
        self.contrastive = contrastive

    def forward(self, text: Features, video: Features, ids: Int[Tensor, "b"] | None = None) -> Float[Tensor, ""]:
        """Compute the loss of a batch in which text i belongs to video i.

        Args:
            ids: [B]; a negative never has the id of its pair. None: all differ.

        Raises:
            ValueError: other numbers of texts than of videos, or ids that do not fit.
        """
        checks.instances(Features, text=text, video=video)
        size = len(text)
        checks.require(len(video) == size, "video", f"as many videos as texts, {size}", len(video))
        checks.require(not isinstance(ids, tuple), "ids", "integers [B] that both sides share", "a pair")
        own = torch.arange(size, device=text.device)
        if ids is None:
            ids = own
        checks.labels("ids", ids, size)
        ids = ids.to(text.device)
        positives = rearrange(ids, "b -> b 1") == ids
        pairs, real = [(own, own)], [torch.ones_like(own, dtype=torch.bool)]
        scores = self._rank(text, video)
        transposed = (rearrange(x, "q c -> c q") for x in (scores, positives))
        for direction, chances, belong in (("query", scores, positives), ("candidate", *transposed)):
            if self.direction in ("both", direction):
                others, exist = (rearrange(x, "b k -> k b") for x in self._choose(chances, belong))
                mine = own.expand_as(others)
                chosen = (mine, others) if direction == "query" else (others, mine)
                pairs.append((rearrange(chosen[0], "k b -> (k b)"), rearrange(chosen[1], "k b -> (k b)")))
                real.append(rearrange(exist, "k b -> (k b)"))
        texts, videos = (torch.cat(side) for side in zip(*pairs, strict=True))
        logits = widen(cast("_Pairs", self.scorer).pairs(text[texts], video[videos]))
        checks.contrasted(logits, name="logits of scorer")
        if not self.contrastive:
            labels = (torch.arange(len(logits), device=own.device) < size).long()
            return mean(F.cross_entropy(logits, labels, reduction="none"), torch.cat(real))
        odds = (logits[:, 1] - logits[:, 0]).split([len(mask) for mask in real])
        among = [
            tuple(rearrange(torch.cat(x), "(k b) -> k b", b=size) for x in ((odds[0], of_negatives), (real[0], exist)))
            for of_negatives, exist in zip(odds[1:], real[1:], strict=True)
        ]
        losses = [logsumexp(x, exist, 0) for x, exist in among]
        return (sum(losses[1:], losses[0]) / len(losses) - odds[0]).mean()

    @torch.no_grad()
    def _rank(self, text: Features, video: Features) -> Tensor:
        """Scores [texts, videos] by which negatives are chosen."""
        if self.negatives == "random":
            return torch.zeros(len(text), len(video), device=text.device)
        return (self.scorer if self.ranker is None else self.ranker)(text, video)

    def _choose(self, scores: Tensor, positives: Tensor) -> Negatives:
        if self.negatives == "cascade":
            return cascade_negatives(scores, positives, self.k)
        return hard_negatives(scores / self.temperature, positives, self.k)
