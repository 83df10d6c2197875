"""PooledGrain: candidate tokens pooled into one vector for each query, which is then compared with the query.

    query         [q, D]       one token
    tokens        [c, n, D]    not normalised: PooledGrain takes the cosines
    mask          [c, n]       bool, True = a real token; None = all
    pooled        [q, c, D]    fp32 (fp64 stays)

Poolers are called with padded slots that are zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..aggregators.base import zero_empty
from ..kernels import dispatch
from ..reduce import project, softmax, without_autocast
from ..similarity import TokenWeights, check_sides, nonempty, similarity
from ..tokens import Features, Tokens, unit_vectors


class QueryPooler(nn.Module, ABC):
    """A module that pools a candidate's tokens into one vector for each query. Subclass it and write `forward`.

    A vector may depend on its own pair alone, and not on values behind the mask.
    """

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "q d"],
        tokens: Float[Tensor, "c n d"],
        mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c d"]:
        """Vectors [q, c, D] of tokens [c, n, D] under each query [q, D]."""


class SoftmaxPool(QueryPooler):
    """v = sum_k a_k x_k, a = softmax over the real tokens of cos(query, x_k) / t, of tokens that are not normalised.

    The query scoring of CLIP-Hitchhiker (Bain et al. 2022, arXiv 2205.08508), its mode "feats". Its mode "scores",
    sum_k a_k cos(query, x_k), is `AOSM(t, direction="candidate")` of one query token. It tends to the mean of the
    tokens as the temperature grows and to the best one as it goes to 0.

    Args:
        temperature: sharpness t.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)

    def forward(
        self,
        query: Float[Tensor, "q d"],
        tokens: Float[Tensor, "c n d"],
        mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c d"]:
        """Vectors [q, c, D] of tokens [c, n, D] under each query [q, D]."""
        sim = einsum(unit_vectors(query), unit_vectors(tokens), "q d, c n d -> q c n")
        attention = softmax(sim / self.temperature, None if mask is None else rearrange(mask, "c n -> 1 c n"))
        return einsum(attention, tokens, "q c n, c n d -> q c d")

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"temperature={self.temperature}"


class CrossAttentionPool(QueryPooler):
    """X-Pool's cross-attention of one query over frames (Gorti et al. 2022, arXiv 2203.15086).

        q = W_q LN(query), k = W_k LN(x), v = W_v LN(x)
        o = LN'(W_o sum_k softmax(<q, k> / sqrt(D / heads))_k v_k)
        pooled = LN''(o + dropout(W o))

    The two LN of the inputs share their parameters. All five projections begin as the identity without a bias, so that
    the pool begins as a softmax of normalised tokens.

    Args:
        dim: D, the width of query and tokens.
        heads: attention heads, a divisor of dim.
        dropout: the rate of dropout after W o in training.

    Raises:
        ValueError: heads that do not divide dim, dropout outside [0, 1); in forward, tokens of another width.
    """

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.heads = checks.count("dim", dim), checks.count("heads", heads)
        checks.require(dim % heads == 0, "heads", f"a divisor of dim ({dim})", heads)
        checks.keeps("dropout", checks.SHARE, dropout)
        self.query, self.key, self.value, self.output, self.linear = (_identity(dim) for _ in range(5))
        self.norm_input, self.norm_attended, self.norm_output = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "q d"],
        tokens: Float[Tensor, "c n d"],
        mask: Bool[Tensor, "c n"] | None = None,
    ) -> Float[Tensor, "q c d"]:
        """Vectors [q, c, D] of tokens [c, n, D] under each query [q, D]."""
        checks.width("CrossAttentionPool", self.dim, tokens.shape[-1])
        x = _layer_norm(self.norm_input, tokens)
        q = rearrange(project(self.query, _layer_norm(self.norm_input, query)), "q (h d) -> q h d", h=self.heads)
        k, v = (rearrange(project(layer, x), "c n (h d) -> c n h d", h=self.heads) for layer in (self.key, self.value))
        logits = einsum(q, k, "q h d, c n h d -> q c h n") / q.shape[-1] ** 0.5
        attention = softmax(logits, None if mask is None else rearrange(mask, "c n -> 1 c 1 n"))
        attended = rearrange(einsum(attention, v, "q c h n, c n h d -> q c h d"), "q c h d -> q c (h d)")
        out = _layer_norm(self.norm_attended, project(self.output, attended))
        return _layer_norm(self.norm_output, out + self.dropout(project(self.linear, out)))


class PooledGrain(nn.Module):
    """A grain whose candidate tokens are pooled for each query: cos(query, pool(query, tokens)).

    It goes where a Grain goes, into MultiGrain too. Memory is that of blocks of pairs: the tokens of all pairs
    [q, c, n, D] never exist, and the vectors [q, c, D] only for a block.

    Args:
        query, candidate: names of the grains in the two Features, such as "sentence" and "frame"; the query is one
            token.
        pooler: a QueryPooler.
        name: the name in `scores_by_grain`; default "query-candidate".

    Raises:
        TypeError: no QueryPooler.
        KeyError, ValueError: in forward, a grain that is missing, sides that do not fit, or more than one query token.

    Example:
        >>> grain = PooledGrain("sentence", "frame", SoftmaxPool())
        >>> grain(Features(sentence=torch.randn(3, 16)), Features(frame=torch.randn(5, 4, 16))).shape
        torch.Size([3, 5])
    """

    aggregator: None = None

    def __init__(self, query: str, candidate: str, pooler: QueryPooler, name: str | None = None) -> None:
        super().__init__()
        checks.instances(str, query=query, candidate=candidate)
        self.query, self.candidate = query, candidate
        self.name = checks.instance("name", "" if name is None else name, str) or f"{query}-{candidate}"
        self.pooler = checks.instance("pooler", pooler, QueryPooler)

    def forward(self, query: Features, candidate: Features, backend: str | None = None) -> Float[Tensor, "q c"]:
        """Scores [q, c] of all pairs, fp32 (fp64 stays), before any logit scale.

        Args:
            backend: see `Grain.forward`; "triton" does not serve.

        Raises:
            Unsupported: the backend "triton" was asked for.
        """
        backend = dispatch.choice(backend)
        q, c = self._sides(query, candidate)
        scores = dispatch.by_blocks(self._scores, q, c, backend, size=c.dim + c.length)
        return zero_empty(scores, q.mask, c.mask)

    @property
    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of all grains that the scores depend on, of the query and of the candidate."""
        return frozenset({self.query}), frozenset({self.candidate})

    def similarity(self, query: Features, candidate: Features) -> Float[Tensor, "q c 1 n"]:
        """Cosines [q, c, 1, n] of the query with the candidate's tokens, before any pooling; 0 at padded tokens."""
        return similarity(*self._sides(query, candidate))

    def _sides(self, query: Features, candidate: Features) -> tuple[Tokens, Tokens]:
        checks.instances(Features, query=query, candidate=candidate)
        q, c = query[self.query].tokenwise(), candidate[self.candidate].tokenwise()
        check_sides(self.name, q, c)
        if q.length != 1:
            raise ValueError(f"grain {self.name!r}: expected one query token, got {q.length}; pool them first")
        return q, c

    def _scores(self, query: Tokens, candidate: Tokens, weights: TokenWeights) -> Tensor:
        q, c = rearrange(query.filled(), "q 1 d -> q d"), candidate.filled()
        wide = torch.promote_types(q.dtype, c.dtype)
        q, c = q.to(wide), c.to(wide)
        with without_autocast(q):
            pooled = self.pooler(q, c, nonempty(candidate.mask))
            return reduce(rearrange(unit_vectors(q), "q d -> q 1 d") * unit_vectors(pooled), "q c d -> q c", "sum")

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"{self.query!r}, {self.candidate!r}"


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(
        x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps
    )
