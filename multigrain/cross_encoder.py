"""Scorers that read the tokens of both sides together, and reranking, which makes them affordable.

    CrossEncoder   a transformer over [CLS; query tokens; candidate tokens] and a matching head: logits [., 2]
    SegmentScorer  a scorer of short segments of the candidate, aggregated over segments
    rerank         the best candidates of a fast scorer, in the order of a slow one

A score depends on its own (query, candidate) pair alone. Every pair costs one pass of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from . import checks
from .aggregators import Aggregator
from .aggregators.base import aggregator_of, zero_empty
from .heads.transformer import Transformer
from .reduce import widen
from .similarity import check_sides, nonempty
from .tokens import Features, Tokens

# Numbers in the token sequences of a block of pairs; each layer of the transformer holds about twelve times as many.
ELEMENTS = 1 << 22


class CrossEncoder(nn.Module):
    """A transformer over all tokens of a query and a candidate that scores their match.

        x      = [cls; sqrt(D) query tokens + side_q; sqrt(D) candidate tokens + side_c]      of unit tokens
        logits = head(LN(Transformer(x)_cls))          [., 2]: no match, match
        score  = logits_1 - logits_0                   the log-odds of a match

    The form that VideoBERT's alignment, LXMERT, OSCAR, ALBEF's matching, CLIP4Clip's tight similarity and TACo's
    fusion share, over features in place of their encoders. No position is added: the order of tokens changes nothing,
    nor does the length of a vector.

    Args:
        dim: D of both grains.
        depth, heads, dropout: of the transformer.
        query, candidate: names of the grains in the two Features.

    Raises:
        ValueError: settings out of range; in a call, features of another width.

    Example:
        >>> scorer = CrossEncoder(16, depth=1, heads=2)
        >>> text, video = mg.Features(word=torch.randn(3, 7, 16)), mg.Features(frame=torch.randn(5, 4, 16))
        >>> scorer(text, video).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        dim: int,
        depth: int = 2,
        heads: int = 8,
        query: str = "word",
        candidate: str = "frame",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        checks.instances(str, query=query, candidate=candidate)
        self.query, self.candidate = query, candidate
        checks.count("dim", dim)
        self.cls = nn.Parameter(0.02 * torch.randn(dim))
        self.sides = nn.Parameter(0.02 * torch.randn(2, dim))
        self.transformer = Transformer(dim, checks.count("depth", depth), checks.count("heads", heads), dropout)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 2)

    def forward(self, query: Features, candidate: Features) -> Float[Tensor, "q c"]:
        """Scores [queries, candidates] of all pairs; 0 where an item has no real token.

        Pairs are scored in blocks, and each block is computed again in the backward pass: memory is that of one block.
        """
        q, c = self._tokens(query, candidate)
        size = self._block(q, c)
        rows = min(len(q), max(1, int(size**0.5)))
        queries, candidates = _split(q, rows), _split(c, max(1, size // rows))
        again = len(queries) * len(candidates) > 1

        def block(a: Tokens, b: Tokens) -> Tensor:
            rows, columns = (torch.arange(len(side), device=side.device) for side in (a, b))
            every = a[repeat(rows, "a -> (a b)", b=len(b))], b[repeat(columns, "b -> (a b)", a=len(a))]
            return rearrange(_log_odds(self._logits(*every)), "(a b) -> a b", a=len(a))

        scores = torch.cat([torch.cat([_computed(block, a, b, again) for b in candidates], 1) for a in queries])
        return zero_empty(scores, q.mask, c.mask)

    @property
    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of the grains that the scores depend on, of the query and of the candidate."""
        return frozenset({self.query}), frozenset({self.candidate})

    def pairs(self, query: Features, candidate: Features) -> Float[Tensor, "b 2"]:
        """Logits [B, 2] (no match, match) of query i with candidate i, in blocks; 0 where one has no real token.

        Raises:
            ValueError: different numbers of queries and candidates.
        """
        q, c = self._tokens(query, candidate)
        checks.require(len(q) == len(c), "candidate", f"as many items as queries, {len(q)}", len(c))
        size = self._block(q, c)
        blocks = zip(_split(q, size), _split(c, size), strict=True)
        logits = torch.cat([_computed(self._logits, a, b, len(q) > size) for a, b in blocks])
        for mask in (q.mask, c.mask):
            logits = logits if mask is None else torch.where(reduce(mask, "b l -> b 1", "any"), logits, 0.0)
        return widen(logits)

    def _tokens(self, query: Features, candidate: Features) -> tuple[Tokens, Tokens]:
        """The two grains, padding zero, in the dtype of the parameters."""
        checks.instances(Features, query=query, candidate=candidate)
        q, c = query[self.query].normalized(), candidate[self.candidate].normalized()
        name = f"{self.query}-{self.candidate}"
        check_sides(name, q, c)
        if q.dim != self.head.in_features:
            raise ValueError(f"grain {name!r}: expected features of width {self.head.in_features}, got {q.dim}")
        return q.to(dtype=self.cls.dtype), c.to(dtype=self.cls.dtype)

    def _block(self, query: Tokens, candidate: Tokens) -> int:
        """The number of pairs in a block."""
        return max(1, ELEMENTS // ((1 + query.length + candidate.length) * query.dim))

    def _logits(self, query: Tokens, candidate: Tokens) -> Tensor:
        """Logits [B, 2] of aligned tokens."""
        scale = query.dim**0.5  # entries of about 1, which the transformer starts from
        sides = [scale * x.features + side for x, side in zip((query, candidate), self.sides, strict=True)]
        x = torch.cat([repeat(self.cls, "d -> b 1 d", b=len(query)), *sides], 1)
        mask = None
        if query.mask is not None or candidate.mask is not None:
            mask = F.pad(torch.cat([query.real_mask, candidate.real_mask], 1), (1, 0), value=True)
        return self.head(self.norm(self.transformer.first(x, mask)))


def _log_odds(logits: Tensor) -> Tensor:
    """The score of logits [..., 2]."""
    logits = widen(logits)
    return logits[..., 1] - logits[..., 0]


def _split(tokens: Tokens, size: int) -> list[Tokens]:
    # Not slices: the backward pass of each slice would allocate the full tensor.
    features = tokens.features.split(size)
    masks = [None] * len(features) if tokens.mask is None else tokens.mask.split(size)
    return [Tokens(x, mask, unit=True) for x, mask in zip(features, masks, strict=True)]


def _computed(function: Callable[[Tokens, Tokens], Tensor], query: Tokens, candidate: Tokens, again: bool) -> Tensor:
    """Compute function(query, candidate), `again` in the backward pass so that nothing is kept for it."""
    if not (again and torch.is_grad_enabled()):
        return function(query, candidate)

    from torch.utils.checkpoint import checkpoint  # here: in torch 2.6 it imports SymPy, a third of a second

    def compute(q: Tensor, c: Tensor) -> Tensor:
        return function(Tokens(q, query.mask, unit=True), Tokens(c, candidate.mask, unit=True))

    out = checkpoint(compute, query.features, candidate.features, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out


class SegmentScorer(nn.Module):
    """Aggregated scores of segments: each segment of a candidate's tokens is scored like a candidate.

    ClipBERT's scores of short clips (Lei et al. 2021, arXiv 2102.06183), pooled by mean (MeanMean), max (MaxMax) or
    log-sum-exp (LogSumExp(temperature=1) of logits) over the segments that have a real token.

    Args:
        scorer: Features x Features -> scores [q, c], such as CrossEncoder or MultiGrain.
        length: tokens of a segment; the last one may have fewer.
        aggregator: an Aggregator or its registered name; it sees sim [q, c, 1, segments].
        grain: the grain of the candidate that is cut into segments. Its other grains go with every segment uncut.

    Raises:
        ValueError: a length below 1, an unknown aggregator.

    Example:
        >>> scorer = SegmentScorer(mg.Grain("sentence", "frame", "mean_mean"), length=2, aggregator="max_max")
        >>> text, video = mg.Features(sentence=torch.randn(3, 8)), mg.Features(frame=torch.randn(5, 7, 8))
        >>> scorer(text, video).shape
        torch.Size([3, 5])
    """

    def __init__(
        self, scorer: nn.Module, length: int, aggregator: Aggregator | str = "mean_mean", grain: str = "frame"
    ) -> None:
        super().__init__()
        self.scorer, self.length = checks.scorer("scorer", scorer), checks.count("length", length)
        self.grain = checks.instance("grain", grain, str)
        self.aggregator = aggregator_of(aggregator)

    def forward(self, query: Features, candidate: Features) -> Float[Tensor, "q c"]:
        """Scores [queries, candidates]; 0 where an item has no real token."""
        checks.instances(Features, query=query, candidate=candidate)
        segments, real = self._segments(candidate)
        sim = rearrange(self.scorer(query, segments), "q (c s) -> q c 1 s", c=len(candidate))
        masks = [] if self.reads is None else [query[name].mask for name in sorted(self.reads[0])]
        found = [mask for mask in masks if mask is not None]
        of_query = torch.cat(found, 1) if found and len(found) == len(masks) else None
        scores = self.aggregator(sim, None, nonempty(real))
        return zero_empty(scores, of_query, real)

    @property
    def reads(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """The names of the grains that the scorer reads and of the one that is cut; None where it has no `reads`."""
        names = getattr(self.scorer, "reads", None)
        return None if names is None else (names[0], names[1] | {self.grain})

    def _segments(self, candidate: Features) -> tuple[Features, Tensor | None]:
        """The segments of all candidates as items [c * s], and a mask [c, s], True where one has a real token."""
        tokens = candidate[self.grain].tokenwise()
        count = -(-tokens.length // self.length)
        missing = count * self.length - tokens.length
        mask = tokens.real_mask if missing else tokens.mask
        cut = Tokens(
            rearrange(F.pad(tokens.features, (0, 0, 0, missing)), "c (s l) d -> (c s) l d", s=count),
            None if mask is None else rearrange(F.pad(mask, (0, missing)), "c (s l) -> (c s) l", s=count),
            unit=tokens.unit,
        )
        rows = repeat(torch.arange(len(tokens), device=tokens.device), "c -> (c s)", s=count)
        others = {name: candidate[name][rows] for name in candidate.names if name != self.grain}
        real = None if cut.mask is None else reduce(cut.mask, "(c s) l -> c s", "any", s=count)
        return Features(**others, **{self.grain: cut}), real


@torch.no_grad()
def rerank(
    scores: Float[Tensor, "q c"],
    scorer: Callable[[Features, Features], Tensor],
    k: int,
    text: Features,
    video: Features,
) -> Float[Tensor, "q c"]:
    """The k best candidates of each row scored anew; they stay above the rest, which keeps its order.

    OSCAR and ALBEF search in this way: `scores` are fast, `scorer` is slow and sees q k pairs in place of q c. The k
    best get the scorer's scores; the rest falls below the lowest of them in even steps, equal ones together. Only the
    order within a row means something. The other direction is
    `rerank(scores.T, lambda video, text: scorer(text, video).T, k, video, text)`.

    Args:
        scores: [queries, candidates] of the first stage; of equal ones the lower index comes first.
        scorer: Features x Features -> scores [q, c], such as CrossEncoder, in eval mode.
        k: from 1 to the number of candidates; all: the scorer's own matrix.
        text, video: queries and candidates of the scorer.

    Raises:
        ValueError: a k out of range, features of other numbers of items than the scores, or a score that is NaN (its
            row and column are named).
    """
    checks.scores(scores)
    checks.scorer("scorer", scorer)
    checks.instances(Features, text=text, video=video)
    expected = [len(text), len(video)]
    checks.require(list(scores.shape) == expected, "scores", f"shape {expected} as the features", checks.shape(scores))
    checks.count("k", k, at_most=len(video))
    checks.not_nan(scores)
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    best = order[:, :k].to(video.device)
    again = widen(torch.cat([scorer(text[i], video[columns]) for i, columns in enumerate(best)])).to(scores.device)
    checks.not_nan(again, columns=order)
    lowest = reduce(again, "q k -> q 1", "min")
    below = 1 + F.pad(ordered[:, k + 1 :] != ordered[:, k:-1], (1, 0)).cumsum(1)[:, : scores.shape[1] - k]
    # The step grows with the scores: a small one would be rounded away.
    rest = lowest - lowest.abs().clamp_min(1) * below
    return again.new_empty(scores.shape).scatter_(1, order, torch.cat([again, rest], 1))
