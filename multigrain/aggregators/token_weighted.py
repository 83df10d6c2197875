"""TokenWeighted: each token's best match, weighted by a learned or a given weight of the token."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..reduce import Reduction, project, softmax, total, without_autocast
from ..tokens import Features
from .base import Axis, register_aggregator
from .two_level import TwoLevel


@register_aggregator("token_weighted")
class TokenWeighted(TwoLevel):
    """1/2 (sum_i w_i max_j x_ij + sum_j v_j max_i x_ij), w and v the weights of query and candidate tokens.

    The weighted token interaction of DRL (Wang et al. 2022, arXiv 2203.07111) with `dim`: w = softmax(MLP(token))
    over the real tokens, MLP = linear, ReLU, linear to one number, one for each side. As in DRL's code it reads the
    tokens as given, before they are normalised, so that their length counts: normalising a collection beforehand
    changes these scores. With names, the weights are given, such as words' IDF (TACo). With neither they are uniform,
    which is MeanMax.

    Args:
        dim: D, the width of the tokens: learn the weights of every side that has no name.
        query_weights, candidate_weights: a grain of width 1 of that side, [B, L, 1], which holds the weights of the
            compared tokens. They are divided by the sum of their absolute values over the real tokens, so that their
            scale does not count; a token that the mask of either grain excludes weighs nothing, and an item whose
            weights are all 0 scores 0. `Features.normalized` makes signs of them, unless they are Tokens(unit=True).
        direction: "both", "query" (w alone) or "candidate" (v alone).

    Raises:
        ValueError: dim below 1, an unknown direction; through a grain, tokens of another width, or weights of another
            width than 1 or another number of tokens than the compared grain.
        KeyError: features without the grain of a name.

    Example:
        >>> text = Features(word=torch.randn(3, 7, 16), word_idf=torch.rand(3, 7, 1))
        >>> video = Features(frame=torch.randn(5, 4, 16))
        >>> aggregator = mg.TokenWeighted(query_weights="word_idf", direction="query")
        >>> mg.Grain("word", "frame", aggregator)(text, video).shape
        torch.Size([3, 5])
    """

    fusable = True

    def __init__(
        self,
        dim: int | None = None,
        query_weights: str | None = None,
        candidate_weights: str | None = None,
        direction: str = "both",
    ) -> None:
        super().__init__(Reduction("mean"), Reduction("max"), direction)
        for name, given in (("query_weights", query_weights), ("candidate_weights", candidate_weights)):
            if given is not None:
                checks.instance(name, given, str)
        self.names = {"query": query_weights, "candidate": candidate_weights}
        size = None if dim is None else checks.count("dim", dim)
        self.mlps = nn.ModuleDict()
        for side, name in self.names.items():
            if size is not None and name is None and self.weighs(side):
                self.mlps[side] = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))

    def weighs(self, side: str) -> bool:
        """Tell whether the direction has a sum over the tokens of a side."""
        return self.direction in ("both", side)

    def reads(self, side: str) -> tuple[str, ...]:
        """The grain of the given weights."""
        name = self.names[side]
        return (name,) if name is not None and self.weighs(side) else ()

    def weigh(self, side: str, features: Features, grain: str) -> Float[Tensor, "b l"] | None:
        """Weights [B, L] of a side's tokens in fp32 (fp64 stays), 0 at padding; None where they are uniform."""
        tokens, name = features[grain].tokenwise(), self.names[side]
        if name is not None and self.weighs(side):
            given = features[name].tokenwise()
            if given.dim != 1 or given.length != tokens.length:
                raise ValueError(
                    f"{name}: expected one weight for each of the {tokens.length} tokens of {grain!r}, "
                    f"[B, {tokens.length}, 1], got {checks.shape(given.features)}"
                )
            w = rearrange(given.filled(), "b l 1 -> b l")
            if tokens.mask is not None:
                w = torch.where(tokens.mask, w, 0.0)
            size = reduce(w.abs(), "b l -> b 1", "sum")
            return torch.where(size > 0, w / torch.where(size > 0, size, 1.0), 0.0)
        if side not in self.mlps:
            return None
        first, relu, last = self.mlps[side]  # type: ignore[misc]
        checks.width(f"TokenWeighted of {grain!r}", first.in_features, tokens.dim)
        with without_autocast(tokens.features):
            logits = project(last, relu(project(first, tokens.filled())))
            return softmax(rearrange(logits, "b l 1 -> b l"), tokens.mask)

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """The best match, then the sum under the weights, where there are some."""
        if axis.weights is None:
            return super().level(x, mask, axis)
        return total(x * axis.weights.to(x.dtype), mask, axis.dim)
