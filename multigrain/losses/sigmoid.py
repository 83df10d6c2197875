"""Sigmoid: every pair of a query and a candidate is a yes-or-no question."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from .criterion import PartialCriterion
from .infonce import scaled


class Sigmoid(PartialCriterion):
    """The pairwise sigmoid loss of SigLIP.

        row(x_i) = -sum_j log sigmoid(z_ij (s x_ij + b)),   z_ij = 1 for positives, else -1,   s = exp(logit_scale)
        L        = 1/q sum_i row(x_i)

    The mean over rows of the sum over columns, as in the paper; with direction "both" the mean of that and of the same
    down the columns, which for a square matrix is the same number. Columns with the id of a row are its positives.
    Source: Zhai et al. 2023 (arXiv 2303.15343).

    Args:
        init_logit_scale: start of `logit_scale`, the logarithm of the multiplier s. It has no limit.
        init_logit_bias: start of `logit_bias`, b: about minus the logarithm of the number of negatives of a row.
        learn: train scale and bias, or keep them as they are.
        reduction, direction: as in InfoNCE. Over queues and keys each direction has pairs of its own.

    Raises:
        ValueError: an unknown direction or reduction.
    """

    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(
        self,
        init_logit_scale: float = math.log(10),
        init_logit_bias: float = -10.0,
        learn: bool = True,
        reduction: str = "mean",
        direction: str = "both",
    ) -> None:
        super().__init__(direction, reduction)
        scale = checks.number("init_logit_scale", init_logit_scale, -80, 80)
        bias = checks.number("init_logit_bias", init_logit_bias)
        self.logit_scale = nn.Parameter(torch.tensor(scale), requires_grad=learn)
        self.logit_bias = nn.Parameter(torch.tensor(bias), requires_grad=learn)

    def partial(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q 1"]:
        """Sum over some columns of each row."""
        logits = scaled(scores, self.logit_scale)
        logits = logits + self.logit_bias.to(logits.dtype)
        return reduce(F.softplus(torch.where(positives, -logits, logits)), "q c -> q 1", "sum")

    def join(self, parts: Float[Tensor, "parts q 1"]) -> Float[Tensor, "q"]:
        """Sum over all columns of each row."""
        return reduce(parts, "parts q 1 -> q", "sum")
