"""AOSM and ISA: attention of similarities over themselves, with learned mixing matrices where they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from ..reduce import Reduction, attend, attend_twice
from .base import Axis, LevelAggregator, register_aggregator
from .two_level import TwoLevel


class Mixing(LevelAggregator):
    """Learned matrices that mix the attention over the tokens of a side, one for each side and depth."""

    inner_query: Tensor | None
    outer_query: Tensor | None
    inner_candidate: Tensor | None
    outer_candidate: Tensor | None

    def add_mixing(self, query_tokens: int | None, candidate_tokens: int | None) -> None:
        """Register identities of these sizes: inner and outer of both sides, or the inner one of the side given."""
        both = None not in (query_tokens, candidate_tokens)
        for side, size in (("query", query_tokens), ("candidate", candidate_tokens)):
            for depth in ("inner", "outer"):
                matrix = None
                if size is not None and (both or depth == "inner"):
                    matrix = nn.Parameter(torch.eye(checks.count(f"{side}_tokens", size)))
                self.register_parameter(f"{depth}_{side}", matrix)
        if self.mixes and not both:
            # A single matrix is the inner one: attention over the other side's single token does nothing.
            self.order = "query" if query_tokens is None else "candidate"

    @property
    def mixes(self) -> bool:
        """True where there are learned mixing matrices."""
        return self.inner_query is not None or self.inner_candidate is not None

    def matrix(self, side: str, depth: str, length: int) -> Tensor | None:
        """The matrix [length, length] that mixes the attention over the tokens of a side; None where there is none.

        Raises:
            ValueError: more tokens than the matrices have, or a side without a matrix that is not coarse.
        """
        inner: Tensor | None = getattr(self, f"inner_{side}")
        limit = 1 if inner is None else len(inner)
        if self.mixes and length > limit:
            raise ValueError(
                f"sim: expected at most {limit} {side} tokens (the size of {type(self).__name__}'s mixing matrix; "
                f"1 where it has none), got {length}"
            )
        mixing: Tensor | None = getattr(self, f"{depth}_{side}")
        return None if mixing is None else mixing[:length, :length]


@register_aggregator("aosm")
class AOSM(TwoLevel, Mixing):
    """Attention over the similarity matrix (Ma et al. 2022, arXiv 2207.07285, section 3.3).

    One level is sum_k softmax(x / t)_k x_k. The query direction attends over candidate tokens, then over query
    tokens; the candidate direction the converse; "both" averages them, as the paper. Where a side has one token
    this is the single softmax of the paper's video-word and sentence-frame scores. It tends to MeanMean as the
    temperature grows and to MaxMax as it goes to 0.

    Args:
        temperature: sharpness t, the paper's tau.
        direction: "both", "query" or "candidate".
        query_tokens, candidate_tokens: the most tokens of that side. They switch on the identity-initialised mixing
            matrices that the code of X-CLIP (not the paper) multiplies into the attention after the softmax; shorter
            inputs slice them from the top left. With one of the two given, the other side must be coarse and one
            matrix is learned (`inner_query` or `inner_candidate`); with both, four.

    Raises:
        ValueError: a temperature or direction out of range; in forward, see `matrix`.
    """

    fusable = True

    def __init__(
        self,
        temperature: float = 0.01,
        direction: str = "both",
        query_tokens: int | None = None,
        candidate_tokens: int | None = None,
    ) -> None:
        super().__init__(Reduction("softmax", temperature), Reduction("softmax", temperature), direction)
        self.add_mixing(query_tokens, candidate_tokens)

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """Attention, then the mixing matrix of that side and depth."""
        return attend(x, mask, axis.dim, self.inner.temperature, self.matrix(axis.side, axis.depth, x.shape[axis.dim]))


@register_aggregator("isa")
class ISA(Mixing):
    """UCoFiA's interactive similarity aggregation (Wang et al. 2023, arXiv 2309.10091): a softmax of a softmax.

    One level is sum_k a_k x_k with p = softmax(x / t), a = softmax(p W / t); W is the identity where no matrix is
    learned. The orders of the axes are those of AOSM. As p lies between 0 and 1, the second softmax tends to the mean
    of all where none stands out, and to the maximum where one does.

    Args:
        temperature: sharpness t of both softmaxes.
        direction: "both", as published, "query" or "candidate".
        query_tokens, candidate_tokens: the most tokens of that side. They switch on the identity-initialised W, of
            both sides or of the one that is not coarse, as in AOSM. The code of UCoFiA learns them.

    Raises:
        ValueError: see AOSM.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        direction: str = "both",
        query_tokens: int | None = None,
        candidate_tokens: int | None = None,
    ) -> None:
        super().__init__(direction)
        self.temperature = checks.positive("temperature", temperature)
        self.add_mixing(query_tokens, candidate_tokens)

    def level(self, x: Tensor, mask: Tensor | None, axis: Axis) -> Tensor:
        """Attention to attention, with the mixing matrix of that side and depth between them."""
        return attend_twice(x, mask, axis.dim, self.temperature, self.matrix(axis.side, axis.depth, x.shape[axis.dim]))

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"temperature={self.temperature}, {super().extra_repr()}"
