"""TokenNCE: each chosen word finds its video among the others."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from .. import checks
from ..aggregators import MeanMax
from ..distributed import Group
from ..grains import Grain
from ..tokens import Features, Tokens
from .batch import Reads, WholeBatchLoss, given_weights
from .criterion import Ids
from .infonce import InfoNCE


class TokenNCE(WholeBatchLoss):
    """InfoNCE of single weighted query tokens against candidates.

        x_tj = max over tokens n of candidate j of cos(token t, token n)
        L_q  = -sum_t w_t log softmax_j(s x_tj)_p(t) / sum_t w_t       p(t): t's candidate, evenly where several
        L_c  = -1/c' sum_j sum_{t of j} y_jt log p_jt,   p_jt = w_t exp(s x_tj) / sum_u w_u exp(s x_uj)

    t runs over the tokens of the batch with w_t > 0, y_jt = w_t / sum of w over the tokens that belong to candidate j,
    and c' counts the candidates that have one. Only ratios of weights count. Tokens of weight 0, such as all but nouns
    and verbs, take no part and have no gradient; weights themselves get none. One token per item of weight 1 is InfoNCE
    of the max scores. Source: TACo (Yang et al. 2021, arXiv 2108.09980), where a noun or verb weighs its inverse
    document frequency.

    Args:
        query, candidate: the grains, such as "word" and "frame".
        weights: the grain of the weights w [B, M, 1] (or [B, 1]), masked or not; None: 1 for all real tokens.
        criterion: with scale, label smoothing, reduction and direction; default InfoNCE(), with a scale of its own.
        gather, group, exchange_dtype: see WholeBatchLoss.

    Raises:
        KeyError, ValueError: a grain that is missing, weights of another shape than their tokens, or ids without a
            positive.
    """

    def __init__(
        self,
        query: str = "word",
        candidate: str = "frame",
        weights: str | None = "word_weight",
        criterion: InfoNCE | None = None,
        gather: str = "auto",
        group: Group = None,
        exchange_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(gather, group, exchange_dtype)
        if weights is not None:
            checks.instance("weights", weights, str)
        self.scorer, self.weights = Grain(query, candidate, MeanMax("query")), weights
        self.criterion = InfoNCE() if criterion is None else checks.instance("criterion", criterion, InfoNCE)

    @property
    def reads(self) -> Reads:
        """The grains of tokens and weights."""
        tokens, candidates = self.scorer.reads
        return tokens if self.weights is None else tokens | {self.weights}, candidates

    def compute(self, text: Features, video: Features, ids: Ids | None) -> Float[Tensor, ""]:
        """Compute the loss of the whole batch."""
        tokens = text[self.scorer.query].tokenwise()
        weights = given_weights(text, self.scorer.query, self.weights).detach()
        chosen = weights > 0
        owners, candidates = ids if isinstance(ids, tuple) else (ids, ids)
        of_items = torch.arange(len(text), device=text.device) if owners is None else owners.to(text.device)
        of_candidates = torch.arange(len(video), device=text.device) if candidates is None else candidates
        if not chosen.any():
            return self.criterion.logit_scale * 0.0
        query = Features(**{self.scorer.query: Tokens(tokens.features[chosen], unit=tokens.unit)})
        scores = self.scorer(query, video)
        belong = rearrange(of_items, "b -> b 1") == of_candidates.to(text.device)
        if isinstance(ids, tuple):
            checks.positives(belong)
        positives = belong.repeat_interleave(reduce(chosen, "b m -> b", "sum"), 0)
        return self._loss(scores, weights[chosen].to(scores.dtype), positives)

    def _loss(self, scores: Tensor, weights: Tensor, positives: Tensor) -> Tensor:
        """Compute the loss from scores [t, c] of tokens with candidates."""
        checks.contrasted(scores, positives)
        by_query, by_candidate = self.criterion.shares
        rows = self.criterion.rows(scores, positives)
        loss = by_query * (weights * rows).sum() / weights.sum()
        if by_candidate:
            has = reduce(positives, "t c -> c", "any")
            # A weight in front of exp(s x) is an addition to x.
            w = rearrange(weights, "t -> t 1")
            shifted = scores + w.log() / self.criterion.logit_scale.exp().to(scores.dtype)
            columns = self.criterion.rows(*(rearrange(x, "t c -> c t")[has] for x in (shifted, w * positives)))
            loss = loss + by_candidate * columns.mean()
        return loss
