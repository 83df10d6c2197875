"""MarginRanking: positives above negatives by a margin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from .. import checks
from ..reduce import bounded
from .criterion import Criterion


class MarginRanking(Criterion):
    """The ranking hinge over the negatives of each row, or its smooth form.

        row(x_i) = mean over positives p of row i, over its negatives n, of w_in l(x_in - x_ip)
        l(d)     = max(0, margin + d)    ("hinge")    or    log(1 + exp(margin + d))    ("lse")

    w_in is `hard_weight` for the `hard_pool` highest negatives of the row (and those tied with the last of them),
    `easy_weight` for the others. A row without a negative has loss 0.
    Sources: HERO (Li et al. 2020, arXiv 2005.00200) and its code: margin .1, hard_pool 20, hard_weight 10,
    easy_weight .1, reduction "sum", and margin 0 with "lse"; ClipBERT (Lei et al. 2021, arXiv 2102.06183): margin .2.
    hard_pool 1 with easy_weight 0 and over "sum" is the hinge of the hardest negative (VSE++, arXiv 1707.05612).

    Args:
        margin: in units of the scores.
        hard_pool: how many negatives of each row are hard; None: all weigh 1.
        hard_weight, easy_weight: from 0.
        form: "hinge" or "lse".
        over: "mean" or "sum" over the negatives of a row.
        reduction, direction: of the two directions, as in InfoNCE.

    Raises:
        ValueError, TypeError: settings out of range.
    """

    def __init__(
        self,
        margin: float = 0.1,
        hard_pool: int | None = None,
        hard_weight: float = 10.0,
        easy_weight: float = 0.1,
        form: str = "hinge",
        over: str = "mean",
        reduction: str = "mean",
        direction: str = "both",
    ) -> None:
        super().__init__(direction, reduction)
        self.margin = checks.number("margin", margin, 0)
        self.hard_weight = checks.number("hard_weight", hard_weight, 0)
        self.easy_weight = checks.number("easy_weight", easy_weight, 0)
        self.hard_pool = None if hard_pool is None else checks.count("hard_pool", hard_pool)
        self.form = checks.choice("form", form, ("hinge", "lse"))
        self.over = checks.choice("over", over, ("mean", "sum"))

    def rows(self, scores: Float[Tensor, "q c"], positives: Bool[Tensor, "q c"]) -> Float[Tensor, "q"]:
        """Compute the loss of each query, from its scores of all candidates."""
        negatives = ~positives & ~scores.isneginf()
        scores = bounded(scores)
        weights = self._weights(scores.detach(), negatives)
        if self.over == "mean":
            weights = weights / reduce(negatives, "q c -> q 1", "sum").clamp_min(1)
        total = scores.new_zeros(len(scores))
        # One positive of every row at a time: no row's positives times its negatives need to be held at once.
        order = positives.to(torch.uint8).argsort(1, descending=True)
        number = reduce(positives, "q c -> q", "sum")
        for k in range(int(number.max())):
            difference = self.margin + scores - scores.gather(1, order[:, k : k + 1])
            of_one = difference.clamp_min(0) if self.form == "hinge" else F.softplus(difference)
            total = total + torch.where(k < number, reduce(weights * of_one, "q c -> q", "sum"), 0.0)
        return total / number

    def _weights(self, scores: Tensor, negatives: Tensor) -> Tensor:
        """Weigh each negative [q, c]; positives weigh 0."""
        if self.hard_pool is None:
            return negatives.to(scores.dtype)
        among = torch.where(negatives, scores, torch.finfo(scores.dtype).min)
        last = among.topk(min(self.hard_pool, scores.shape[1]), 1).values[:, -1:]
        weights = torch.full_like(scores, self.easy_weight).masked_fill(scores >= last, self.hard_weight)
        return torch.where(negatives, weights, 0.0)
