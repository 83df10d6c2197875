"""Decorrelation: matched tokens agree channel by channel, and no two channels say the same."""

from __future__ import annotations

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from .. import checks
from ..aggregators import Aggregator
from ..distributed import Group
from ..reduce import without_autocast
from ..similarity import check_sides
from ..tokens import Features, Tokens
from .batch import Reads, WholeBatchLoss, given_weights
from .criterion import Ids

# A channel that varies less than this over the batch is constant: it correlates with nothing.
VARIANCE = 1e-12


class Decorrelation(WholeBatchLoss):
    """DRL's channel decorrelation regularisation (CDCR) of the matched tokens of pairs.

        partner(m) = the token of item i's candidate with the highest cosine to its query token m, and the converse
        z          = (x - mean) / std of unit tokens over those of the batch, channel by channel
        C          = 1/2 (sum_m w_m z_m z'_m^T / sum w over query tokens, partners z'  +  the same of candidates')
        L          = on_diagonal sum_d (C_dd - 1)^2 + off_diagonal sum_{d != e} C_de^2

    Sums over real tokens alone; a constant channel has z = 0. std divides by the number of tokens (the code of DRL by
    one less). The choice of the partner has no gradient. Text i and video i have to be a pair.
    Sources: DRL (Wang et al. 2022, arXiv 2203.07111) and its code, which adds .001 times this, with 1 and .06 by
    default, .11 and 0 for MSR-VTT; Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230).

    Args:
        query, candidate: the grains, such as "word" and "frame", of one width.
        weights: None (w = 1); the grains of w [B, M, 1] in text and [B, N, 1] in video; or an aggregator whose weights
            w are, such as the scorer's TokenWeighted, which then learns from this loss too (DRL's type 3).
        on_diagonal, off_diagonal: as in the formula.
        gather, group, exchange_dtype: see WholeBatchLoss.

    Raises:
        KeyError, ValueError: a grain that is missing, or sides that are no pairs or of two widths.
    """

    def __init__(
        self,
        query: str = "word",
        candidate: str = "frame",
        weights: tuple[str, str] | Aggregator | None = None,
        on_diagonal: float = 1.0,
        off_diagonal: float = 0.06,
        gather: str = "auto",
        group: Group = None,
        exchange_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(gather, group, exchange_dtype)
        known = weights is None or isinstance(weights, Aggregator) or (isinstance(weights, tuple) and len(weights) == 2)
        checks.require(known, "weights", "two names of grains, an aggregator or None", weights)
        checks.instances(str, query=query, candidate=candidate)
        self.query, self.candidate, self.weights = query, candidate, weights
        self.on_diagonal = checks.number("on_diagonal", on_diagonal)
        self.off_diagonal = checks.number("off_diagonal", off_diagonal)

    @property
    def reads(self) -> Reads:
        """The grains of tokens and weights."""
        if isinstance(self.weights, Aggregator):
            more = self.weights.reads("query"), self.weights.reads("candidate")
        else:
            more = ((), ()) if self.weights is None else tuple((name,) for name in self.weights)
        return frozenset({self.query, *more[0]}), frozenset({self.candidate, *more[1]})

    def compute(self, text: Features, video: Features, ids: Ids | None) -> Float[Tensor, ""]:
        """Compute the loss of the whole batch, which needs no ids."""
        if len(text) != len(video):
            raise ValueError(f"video: expected as many as texts ({len(text)}), text i with video i, got {len(video)}")
        query, candidate = text[self.query].normalized(), video[self.candidate].normalized()
        q_weights, c_weights = self._weigh("query", text, self.query), self._weigh("candidate", video, self.candidate)
        check_sides(f"{self.query}-{self.candidate}", query, candidate)
        c = (_correlation(query, candidate, q_weights) + _correlation(candidate, query, c_weights).mT) / 2
        diagonal = c.diagonal()
        off = c.square().sum() - diagonal.square().sum()
        return self.on_diagonal * (diagonal - 1).square().sum() + self.off_diagonal * off

    def _weigh(self, side: str, features: Features, grain: str) -> Tensor:
        """The weights [B, L] of a side's tokens."""
        name = self.weights[side == "candidate"] if isinstance(self.weights, tuple) else None
        found = self.weights.weigh(side, features, grain) if isinstance(self.weights, Aggregator) else None
        return given_weights(features, grain, name) if found is None else found


def _correlation(tokens: Tokens, others: Tokens, weights: Tensor) -> Tensor:
    """Correlation C [D, D] of the channels of real tokens with those of their partners on the other side."""
    with without_autocast(tokens.features):
        sim = (tokens.features @ rearrange(others.features, "b n d -> b d n")).detach()
        real = torch.ones_like(sim[..., 0], dtype=torch.bool) if tokens.mask is None else tokens.mask
        if others.mask is not None:
            sim = torch.where(rearrange(others.mask, "b n -> b 1 n"), sim, torch.finfo(sim.dtype).min)
            real = real & reduce(others.mask, "b n -> b 1", "any")
        partner = repeat(sim.argmax(2), "b m -> b m d", d=others.dim)
        z, z_partner = _standard(tokens.features[real]), _standard(others.features.gather(1, partner)[real])
        w = rearrange(weights[real], "t -> t 1").to(z.dtype)
        return rearrange(z, "t d -> d t") @ (w * z_partner) / w.sum().clamp_min(torch.finfo(w.dtype).tiny)


def _standard(x: Tensor) -> Tensor:
    """Standardise each channel of x [t, D] to (x - mean) / std; 0 where it is constant."""
    if len(x) == 0:
        return x
    x = x - reduce(x, "t d -> 1 d", "mean")
    variance = reduce(x.square(), "t d -> 1 d", "mean")
    varies = variance > VARIANCE
    return torch.where(varies, x * torch.where(varies, variance, 1.0).rsqrt(), 0.0)
