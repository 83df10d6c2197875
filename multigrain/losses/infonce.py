"""InfoNCE: the symmetric contrastive loss over a matrix of scores."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
        rows, columns = self._targets(scores, ids)
        return self.one_way(scores, rows).mean() + self.one_way(scores.T, columns).mean()

    def one_way(self, scores: Float[Tensor, "q c"], positives: Tensor) -> Float[Tensor, "q"]:
        """The share of each row in one direction: the loss is the mean over rows, plus the mean over columns.

        What a process needs that holds some of the rows, or more columns than rows.

        Args:
            scores: [queries, candidates].
            positives: the column of each row's only positive, integers [queries], or bool [queries, candidates].
        """
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(max=self.max_logit_scale)
        with without_autocast(scores):
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            logits = self.logit_scale.exp().to(scores.dtype) * scores
            if positives.ndim == 2:
                positives = positives / positives.sum(1, keepdim=True).to(scores.dtype)
            losses = F.cross_entropy(logits, positives, label_smoothing=self.label_smoothing, reduction="none")
            return losses / 2 if self.reduction == "mean" else losses

    def _targets(self, scores: Tensor, ids: Ids | None) -> tuple[Tensor, Tensor]:
        """For rows and for columns: the diagonal as indices, or the positives as a bool matrix."""
        if ids is None:
            checks.square(scores, "pass ids otherwise")
            diagonal = torch.arange(len(scores), device=scores.device)
            return diagonal, diagonal
        queries, candidates = ids if isinstance(ids, tuple) else (ids, ids)
        checks.labels("ids of the queries", queries, scores.shape[0])
        checks.labels("ids of the candidates", candidates, scores.shape[1])
        positives = queries[:, None] == candidates[None]
        if isinstance(ids, tuple):
            checks.positives(positives)
        return positives, positives.T
