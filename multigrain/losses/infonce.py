"""InfoNCE: the symmetric contrastive loss over a matrix of scores."""

from __future__ import annotations

import math

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..reduce import bounded, without_autocast
from .criterion import Ids, PartialCriterion, matches

Targets = Tensor | tuple[Tensor, Tensor]


class InfoNCE(PartialCriterion):
    """Cross-entropy of exp(logit_scale) * scores in both directions.

        L_q = -1/q sum_i sum_j y_ij log softmax_j(s x_ij),   L_c the same down the columns
        L   = (L_q + L_c) / 2    ("mean", as CLIP and the code of X-CLIP)   or their sum ("sum", ALIGN)

    y_i is spread evenly over the positives of row i: the diagonal, or all columns with the same id, so that
    captions of one video are not each other's negatives. Or it is given: soft targets. Sources: Radford et al. 2021
    (arXiv 2103.00020); X-CLIP (arXiv 2207.07285) section 3.4; ALIGN (arXiv 2102.05918).

    Args:
        init_logit_scale: start of `logit_scale`, the logarithm of the multiplier s.
        learn_logit_scale: train it, or keep it as it is.
        max_logit_scale, min_logit_scale: its limits, enforced in training before every forward pass (on the
            parameter itself, so that its gradient never vanishes).
        label_smoothing: in [0, 1): the share of y spread over all columns that no -inf leaves out.
        reduction: "mean" or "sum" of the two directions.
        direction: "both", or only "query" (L_q) or "candidate" (L_c).

    Raises:
        ValueError: settings out of range.
    """

    logit_scale: Tensor

    def __init__(
        self,
        init_logit_scale: float = math.log(1 / 0.07),
        learn_logit_scale: bool = True,
        max_logit_scale: float = math.log(100),
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        direction: str = "both",
        min_logit_scale: float = -math.inf,
    ) -> None:
        super().__init__(direction, reduction)
        checks.number("init_logit_scale", init_logit_scale, -80, 80)
        max_logit_scale, min_logit_scale = (
            limit if isinstance(limit, float) and math.isinf(limit) else checks.number(name, limit)
            for name, limit in (("max_logit_scale", max_logit_scale), ("min_logit_scale", min_logit_scale))
        )
        if not min_logit_scale <= init_logit_scale <= max_logit_scale:
            least = "" if min_logit_scale == -math.inf else f" from min_logit_scale = {min_logit_scale}"
            raise ValueError(
                f"init_logit_scale: expected a number{least} up to max_logit_scale = {max_logit_scale}, "
                f"got {init_logit_scale}"
            )
        checks.keeps("label_smoothing", checks.SHARE, label_smoothing)
        self.max_logit_scale, self.min_logit_scale = max_logit_scale, min_logit_scale
        self.label_smoothing = label_smoothing
        self.logit_scale = nn.Parameter(torch.tensor(float(init_logit_scale)), requires_grad=learn_logit_scale)

    def forward(
        self, scores: Float[Tensor, "q c"], ids: Ids | None = None, targets: Targets | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss, a scalar.

        Args:
            scores: [queries, candidates]; square unless both ids or targets are given.
            ids: integers [B] shared by both sides (row i and column i are a pair), or a pair
                ([queries], [candidates]); equal ids are positives. None: the diagonal.
            targets: in place of ids, weights [queries, candidates] from 0, which are normalised in each row for L_q
                and in each column for L_c; or a pair of them, for L_q and for L_c. No gradient reaches them.

        Raises:
            ValueError: scores, ids or targets of the wrong shape, ids beside targets; a row or column without a
                positive; NaN or infinity, as in Criterion.
        """
        if targets is None:
            positives = matches(scores, ids)
            return self._both_ways(scores, positives, positives)
        if ids is not None:
            raise ValueError("targets: expected without ids, got both")
        checks.scores(scores)
        both = targets if isinstance(targets, tuple) else (targets, targets)
        expected = "weights [queries, candidates] or a pair of them"
        checks.require(len(both) == 2, "targets", expected, f"{len(both)} of them")
        of_rows, of_columns = both
        for share, weights, axis in zip(self.shares, (of_rows, of_columns), (1, 0), strict=True):
            if share:
                _check_targets(weights, scores, axis)
        return self._both_ways(scores, of_rows.detach(), of_columns.detach())

    def partial(self, scores: Float[Tensor, "q c"], positives: Tensor) -> Float[Tensor, "q 6"]:
        """Compute the numbers that `join` needs from some columns of each row.

        With z = s x - m: m = max_j s x_j (a constant to autograd), log sum_j exp z_j, the sum of z over positives and
        their number (or by soft targets and theirs), the sum of z over all columns and their number.
        """
        logits = self.logits(scores)
        with without_autocast(logits):
            highest = reduce(logits.detach(), "q c -> q", "max")
            z = logits - rearrange(highest, "q -> q 1")
            of_positives = reduce(torch.where(positives > 0, positives * z, 0.0), "q c -> q", "sum")
            number = reduce(positives.to(z.dtype), "q c -> q", "sum")
            of_all, columns = reduce(z, "q c -> q", "sum"), torch.full_like(highest, z.shape[1])
            if self.label_smoothing:
                kept = ~scores.isneginf()
                of_all = reduce(torch.where(kept, z, 0.0), "q c -> q", "sum")
                columns = reduce(kept.to(z.dtype), "q c -> q", "sum")
            return torch.stack([highest, z.logsumexp(1), of_positives, number, of_all, columns], 1)

    def join(self, parts: Float[Tensor, "parts q 6"]) -> Float[Tensor, "q"]:
        """Compute the loss of each row in one direction, from the numbers of all parts of it."""
        highest, log_sum, of_positives, positives_number, of_all, number = rearrange(parts, "parts q k -> k parts q")
        shift = highest - reduce(highest, "parts q -> q", "max")
        positive = _mean_of_parts(of_positives + positives_number * shift, positives_number)
        if self.label_smoothing:
            mean = _mean_of_parts(of_all + number * shift, number)
            positive = torch.lerp(positive, mean, self.label_smoothing)
        return (log_sum + shift).logsumexp(0) - positive

    def logits(self, scores: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
        """Scores times s, fp32 or wider; in training the scale is held to its limits first."""
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(self.min_logit_scale, self.max_logit_scale)
        return scaled(scores, self.logit_scale)

    @torch.no_grad()
    def distilled(self, scores: Tensor, positives: Tensor, alpha: float) -> Float[Tensor, "q c"]:
        """Make soft targets: alpha softmax_j(s x_ij) of another model's scores x, the rest to the positives.

        Each row sums to 1. The momentum distillation of ALBEF (Li et al. 2021, arXiv 2107.07651).
        """
        soft = self.logits(scores).softmax(1)
        hard = positives.to(soft.dtype)
        return torch.lerp(hard / reduce(hard, "q c -> q 1", "sum"), soft, alpha)


def _mean_of_parts(sums: Float[Tensor, "parts q"], numbers: Float[Tensor, "parts q"]) -> Float[Tensor, "q"]:
    return reduce(sums, "parts q -> q", "sum") / reduce(numbers, "parts q -> q", "sum")


def scaled(scores: Float[Tensor, "q c"], logit_scale: Tensor) -> Float[Tensor, "q c"]:
    """Scale scores by exp(logit_scale) in fp32 or wider; -inf becomes the lowest number, with a gradient of 0."""
    x = bounded(scores)
    return bounded(logit_scale.exp().to(x.dtype) * x)


def _check_targets(value: Tensor, scores: Tensor, axis: int) -> None:
    """Check weights from 0 of the shape of scores [q, c], with one above 0 along `axis`."""
    checks.floating("targets", checks.instance("targets", value, Tensor), "weights")
    checks.require(value.device == scores.device, "targets", f"device {scores.device} as scores", str(value.device))
    if value.shape != scores.shape:
        raise ValueError(f"targets: expected the shape of scores, {checks.shape(scores)}, got {checks.shape(value)}")
    if checks.readable(value):
        checks.first_bad("targets", "finite weights from 0", value, (value >= 0) & (value < math.inf))
        lonely = ~(value > 0).any(axis)
        if lonely.any():
            raise ValueError(
                f"targets: expected a weight above 0 in every {'row' if axis else 'column'}, got none in "
                f"{int(lonely.nonzero()[0])}"
            )
