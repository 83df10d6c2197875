"""Grain: the similarity of two named grains of query and candidate, then an aggregator."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..aggregators import AOSM, Aggregator
from ..aggregators.base import aggregator_of, zero_empty
from ..kernels import dispatch
from ..reduce import without_autocast
from ..similarity import UNWEIGHTED, TokenWeights, check_sides, similarity
from ..tokens import Features, Tokens


class Grain(nn.Module):
    """A way to compare: the cosine of every query token with every candidate token, aggregated.

    Args:
        query, candidate: names of the grains in the two Features, such as "word" and "frame".
        aggregator: an Aggregator, its registered name, or None where both sides are one token.
        bilinear: D, the feature width: puts an identity-initialised D x D matrix G between the two sides,
            sim = q G c, as the code of X-CLIP does in its video-sentence and frame-word scores.
        name: the name in `scores_by_grain`; default "query-candidate".

    Raises:
        ValueError: an unknown aggregator name; in forward, features that do not fit together.
        KeyError: in forward, a grain that the features lack.

    Example:
        >>> grain = Grain("word", "frame", "mean_max")
        >>> text = Features(word=torch.randn(3, 7, 16))
        >>> video = Features(frame=torch.randn(5, 4, 16))
        >>> grain(text, video).shape
        torch.Size([3, 5])
    """

    aggregator: Aggregator | None
    bilinear: Tensor | None

    def __init__(
        self,
        query: str,
        candidate: str,
        aggregator: Aggregator | str | None = None,
        bilinear: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        checks.instances(str, query=query, candidate=candidate)
        self.query, self.candidate = query, candidate
        self.name = checks.instance("name", "" if name is None else name, str) or f"{query}-{candidate}"
        self.aggregator = None if aggregator is None else aggregator_of(aggregator)
        size = None if bilinear is None else checks.count("bilinear", bilinear)
        self.register_parameter("bilinear", None if size is None else nn.Parameter(torch.eye(size)))

    def forward(self, query: Features, candidate: Features, backend: str | None = None) -> Float[Tensor, "q c"]:
        """Scores [q, c] of all pairs, fp32 (fp64 stays), before any logit scale.

        Args:
            backend: "auto", "eager", "blocked" or "triton"; None: the variable MULTIGRAIN_BACKEND, else "auto".

        Raises:
            KeyError, ValueError: a grain that the features lack, or sides that do not fit together.
            Unsupported: a backend asked for by name cannot serve.
        """
        backend = dispatch.choice(backend)
        q, c = self._sides(query, candidate)
        if self.aggregator is None:
            if (q.length, c.length) != (1, 1):
                raise ValueError(
                    f"grain {self.name!r}: expected one token on each side, got {q.length} and {c.length}; "
                    f"pass an aggregator, as in Grain(..., aggregator=AOSM())"
                )
            scores = rearrange(similarity(q, c), "q c 1 1 -> q c")
        else:
            scores = dispatch.scores(self.aggregator, q, c, backend, self.weigh(query, candidate))
        return zero_empty(scores, q.mask, c.mask)

    @property
    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of all grains that the scores depend on, of the query and of the candidate."""
        more = [() if self.aggregator is None else self.aggregator.reads(side) for side in ("query", "candidate")]
        return frozenset({self.query, *more[0]}), frozenset({self.candidate, *more[1]})

    def weigh(self, query: Features, candidate: Features) -> TokenWeights:
        """The weights [q, m] and [c, n] that the aggregator gives to tokens; None where it gives none.

        Raises:
            KeyError, ValueError: see the aggregator.
        """
        if self.aggregator is None:
            return UNWEIGHTED
        return (
            self.aggregator.weigh("query", query, self.query),
            self.aggregator.weigh("candidate", candidate, self.candidate),
        )

    def similarity(self, query: Features, candidate: Features) -> Float[Tensor, "q c m n"]:
        """Cosines [q, c, m, n] of all token pairs of all item pairs; 0 at padded tokens."""
        return similarity(*self._sides(query, candidate))

    def _sides(self, query: Features, candidate: Features) -> tuple[Tokens, Tokens]:
        """The two grains, checked, the query multiplied by the bilinear matrix."""
        checks.instances(Features, query=query, candidate=candidate)
        q, c = query[self.query].tokenwise(), candidate[self.candidate].tokenwise()
        check_sides(self.name, q, c)
        if self.bilinear is not None:
            if q.dim != (size := len(self.bilinear)):
                raise ValueError(
                    f"grain {self.name!r}: expected features of width {size} (its bilinear matrix), got {q.dim}"
                )
            unit = q.normalized().features
            with without_autocast(unit):
                q = Tokens(unit @ self.bilinear.to(unit.dtype), q.mask, unit=True)
        return q, c

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"{self.query!r}, {self.candidate!r}" + ("" if self.bilinear is None else ", bilinear")


def VideoSentence(aggregator: Aggregator | str | None = None, bilinear: int | None = None) -> Grain:
    """Grain("sentence", "video"): one vector each (X-CLIP's S_V-S; all that CLIP has).

    Args:
        aggregator, bilinear: see Grain.
    """
    return Grain("sentence", "video", aggregator, bilinear)


def VideoWord(aggregator: Aggregator | str | None = None, bilinear: int | None = None) -> Grain:
    """Grain("word", "video"): each word against the whole video (X-CLIP's S_V-W).

    Args:
        aggregator, bilinear: see Grain; aggregator None: AOSM().
    """
    return Grain("word", "video", AOSM() if aggregator is None else aggregator, bilinear)


def SentenceFrame(aggregator: Aggregator | str | None = None, bilinear: int | None = None) -> Grain:
    """Grain("sentence", "frame"): the sentence against each frame (X-CLIP's S_F-S).

    Args:
        aggregator, bilinear: see Grain; aggregator None: AOSM().
    """
    return Grain("sentence", "frame", AOSM() if aggregator is None else aggregator, bilinear)


def FrameWord(aggregator: Aggregator | str | None = None, bilinear: int | None = None) -> Grain:
    """Grain("word", "frame"): each word against each frame (X-CLIP's S_F-W).

    Args:
        aggregator, bilinear: see Grain; aggregator None: AOSM().
    """
    return Grain("word", "frame", AOSM() if aggregator is None else aggregator, bilinear)
