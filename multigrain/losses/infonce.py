"""InfoNCE: the symmetric contrastive loss over a matrix of scores."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..reduce import without_autocast

Ids: TypeAlias = "Tensor | tuple[Tensor, Tensor]"


class InfoNCE(nn.Module):
    """Cross-entropy of exp(logit_scale) * scores in both directions.

        L_q = -1/q sum_i sum_j y_ij log softmax_j(s x_ij),   L_c the same down the columns
        L   = (L_q + L_c) / 2    ("mean", as CLIP and the code of X-CLIP)   or their sum ("sum", ALIGN)

    y_i is spread evenly over the positives of row i: the diagonal, or all columns with the same id, so that
    captions of one video are not each other's negatives. Sources: Radford et al. 2021 (arXiv 2103.00020);
    X-CLIP (arXiv 2207.07285) section 3.4.

    Args:
        init_logit_scale: start of `logit_scale`, the logarithm of the multiplier s.
        learn_logit_scale: train it, or keep it as it is.
        max_logit_scale: its upper limit, enforced in training before every forward pass (on the parameter
            itself, so that its gradient never vanishes).
        label_smoothing: in [0, 1): the share of y spread over all columns.
        reduction: "mean" or "sum" of the two directions.

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
    ) -> None:
        super().__init__()
        if not init_logit_scale <= max_logit_scale:
            raise ValueError(
                f"init_logit_scale: expected a number up to max_logit_scale = {max_logit_scale}, got {init_logit_scale}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing}")
        self.max_logit_scale = max_logit_scale
        self.label_smoothing = label_smoothing
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum"))
        self.logit_scale = nn.Parameter(torch.tensor(float(init_logit_scale)), requires_grad=learn_logit_scale)

    def forward(self, scores: Float[Tensor, "q c"], ids: Ids | None = None) -> Float[Tensor, ""]:
        """The loss, a scalar.

        Args:
            scores: [queries, candidates]; square unless both ids are given.
            ids: integers [B] shared by both sides (row i and column i are a pair), or a pair
                ([queries], [candidates]); equal ids are positives. None: the diagonal.

        Raises:
            ValueError: scores or ids of the wrong shape; a row or column without a positive.
        """
        checks.scores(scores)
        positives = self._positives(scores, ids)
        rows, columns = self.partial(scores, positives), self.partial(scores.T, positives.T)
        return self.join(rows[None]).mean() + self.join(columns[None]).mean()

    def partial(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q 6"]:
        """What `join` needs of some columns of each row: who holds no whole row exchanges this in place of scores.

        With z = s x - m: m = max_j s x_j (a constant to autograd), log sum_j exp z_j, the sum of z over positives and
        their number, the sum of z over all columns and their number.
        """
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(max=self.max_logit_scale)
        with without_autocast(scores):
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            logits = self.logit_scale.exp().to(scores.dtype) * scores
            highest = logits.detach().amax(1)
            z = logits - highest[:, None]
            of_positives, positives_number = torch.where(positives, z, 0.0).sum(1), positives.sum(1).to(z.dtype)
            number = torch.full_like(highest, z.shape[1])
            return torch.stack([highest, z.logsumexp(1), of_positives, positives_number, z.sum(1), number], 1)

    def join(self, parts: Float[Tensor, "parts q 6"]) -> Float[Tensor, "q"]:
        """Each row's share of the loss in one direction, from all its columns, part by part.

        The loss is the mean over rows, plus the mean over columns in the rows' place.
        """
        highest, log_sum, of_positives, positives_number, of_all, number = parts.unbind(2)
        shift = highest - highest.amax(0)
        positive = (of_positives + positives_number * shift).sum(0) / positives_number.sum(0)
        mean = (of_all + number * shift).sum(0) / number.sum(0)
        loss = (log_sum + shift).logsumexp(0) - torch.lerp(positive, mean, self.label_smoothing)
        return loss / 2 if self.reduction == "mean" else loss

    def _positives(self, scores: Tensor, ids: Ids | None) -> Tensor:
        """bool [queries, candidates]: the diagonal, or equal ids."""
        if ids is None:
            checks.square(scores, "pass ids otherwise")
            return torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        queries, candidates = ids if isinstance(ids, tuple) else (ids, ids)
        checks.labels("ids of the queries", queries, scores.shape[0])
        checks.labels("ids of the candidates", candidates, scores.shape[1])
        positives = queries[:, None] == candidates
        if isinstance(ids, tuple):
            checks.positives(positives)
        return positives
