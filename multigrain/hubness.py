"""Corrections of a whole matrix of scores for hubs: candidates that come first for many queries.

    scores     [q, c]   rows rank candidates; for the other direction pass scores.T, and transpose what comes back
    bank       [b, c]   scores of other queries against the same candidates
    corrected  [q, c]   fp32 (fp64 stays), a new tensor; only the order within a row means something

What a score becomes depends on the scores of other queries: on those that are ranked (transductive: a search that
answers one query at a time cannot do it), or on a bank of queries known before, such as those of the training. A
figure that was reached with a correction has to say so, and which of the two it was.

The normalisation of each candidate runs over *queries*. Over candidates it would multiply a row by one number and
leave its order as it was, which is what reusing the t2v matrix, transposed, for v2t does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from . import checks
from .reduce import widen

__all__ = ["TRANSDUCTIVE", "dual_softmax", "dynamic_inverted_softmax", "inverted_softmax", "sinkhorn"]


def dual_softmax(scores: Float[Tensor, "q c"], beta: float = 100.0) -> Float[Tensor, "q c"]:
    """scores_ij * softmax_i(beta scores_ij): each score times how much of its candidate the query claims.

    DSL at inference (Cheng et al. 2021, arXiv 2109.04290). Transductive. As beta goes to 0 the ranks are those of the
    scores, and so they are for a single query. Shares too small for the dtype tie at 0.

    Args:
        beta: multiplies the scores in the softmax; 100 is where CLIP's logit scale ends.

    Raises:
        TypeError, ValueError: scores that are no matrix of finite numbers (the first other one is named), or a beta
            that is not positive and finite.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.9, 0.1]])  # both queries like candidate 0 best
        >>> dual_softmax(scores, beta=10).argmax(1)
        tensor([1, 0])
    """
    x, beta = _checked(scores, beta)
    return x * (beta * (x - reduce(x, "q c -> 1 c", "max"))).softmax(0)


def inverted_softmax(
    scores: Float[Tensor, "q c"], bank: Float[Tensor, "b c"], beta: float = 20.0
) -> Float[Tensor, "q c"]:
    """scores_ij - 1/beta log mean_b exp(beta bank_bj): a score beyond what its candidate has for queries at large.

    The logarithm of the inverted softmax exp(beta scores_ij) / sum_b exp(beta bank_bj) (Smith et al. 2017, arXiv
    1702.03859), in the unit of the scores: the same order, and finite for every beta. Transductive with the scores
    themselves as the bank; not with a bank of training queries. It tends to score - mean of the bank as beta goes
    to 0, and to score - maximum of the bank as it grows.

    Args:
        bank: scores of a bank of queries against the same candidates.
        beta: sharpness; 20 as the code of QB-Norm.

    Raises:
        TypeError, ValueError: as dual_softmax; a bank of other candidates.
    """
    x, beta = _checked(scores, beta)
    return x - _soft_mean(_bank(bank, x), beta, 0)


def dynamic_inverted_softmax(
    scores: Float[Tensor, "q c"], bank: Float[Tensor, "b c"], k: int = 1, beta: float = 20.0
) -> Float[Tensor, "q c"]:
    """inverted_softmax in the rows whose best candidate is a hub, one among the k best of a query of the bank.

    QB-Norm (Bogolin et al. 2022, arXiv 2112.12777); k and beta as its code. Not transductive with a bank of training
    queries. The other rows are the scores as they are. Equal scores at the k-th place all count.

    Args:
        bank, beta: as in inverted_softmax.
        k: how deep a candidate may be in the ranking of a query of the bank to be a hub.

    Raises:
        TypeError, ValueError: as inverted_softmax; a k beyond the number of candidates.
    """
    x, beta = _checked(scores, beta)
    bank = _bank(bank, x)
    k = checks.count("k", k, at_most=x.shape[1])
    hubs = reduce(bank >= bank.topk(k, 1).values[:, -1:], "b c -> 1 c", "any")
    led_by_hub = reduce((x == reduce(x, "q c -> q 1", "max")) & hubs, "q c -> q 1", "any")
    return torch.where(led_by_hub, x - _soft_mean(bank, beta, 0), x)


def sinkhorn(scores: Float[Tensor, "q c"], beta: float = 100.0, iterations: int = 50) -> Float[Tensor, "q c"]:
    """scores_ij - u_i - v_j such that exp(beta .) has the mean 1 in every row and column: all are equally in demand.

    Sinkhorn's alternating normalisation, in log space, where nothing under- or overflows; in retrieval: UCoFiA's
    normalisation of its scores; Yakovlev et al. 2023 (arXiv 2311.08143). Transductive. One iteration ranks as the
    inverted softmax with the scores themselves as the bank. The rows are normalised last: they are exact, and the
    columns the closer, the more iterations there are.

    Args:
        beta: multiplies the scores in the exponential.
        iterations: of columns, then rows.

    Raises:
        TypeError, ValueError: as dual_softmax; less than one iteration.
    """
    x, beta = _checked(scores, beta)
    for _ in range(checks.count("iterations", iterations)):
        x = x - _soft_mean(x, beta, 0)
        x = x - _soft_mean(x, beta, 1)
    return x


# By name, those that need nothing but the scores: all of them transductive.
TRANSDUCTIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "dual_softmax": dual_softmax,
    "inverted_softmax": lambda scores: inverted_softmax(scores, scores),
    "sinkhorn": sinkhorn,
}
"""Corrections that see all queries of a test, by name."""


def _soft_mean(x: Tensor, beta: float, dim: int) -> Tensor:
    """1/beta log mean exp(beta x) along `dim`, which stays. The maximum comes off first: beta x may be infinite."""
    highest = x.amax(dim, keepdim=True)
    z = beta * (x - highest)
    below = z.expm1().mean(dim, keepdim=True)
    # For a small beta the logarithm is near 0, and its rounding is divided by beta: no difference of large numbers.
    log_mean = torch.where(below > -0.5, below.log1p(), z.logsumexp(dim, keepdim=True) - math.log(x.shape[dim]))
    return highest + log_mean / beta


def _checked(scores: Tensor, beta: float) -> tuple[Tensor, float]:
    scores = _matrix("scores", scores)
    return scores, checks.positive("beta", beta, 1 / checks.LARGEST, torch.finfo(torch.float32).max)


def _matrix(name: str, value: Tensor) -> Tensor:
    """A checked matrix of finite scores that fp32 can add up, widened."""
    checks.scores(value, name)
    value = widen(value)
    if not torch.compiler.is_compiling() and not checks.transformed():
        checks.first_bad(name, f"finite numbers up to {checks.LARGEST:g}", value, value.abs() <= checks.LARGEST)
    return value


def _bank(bank: Tensor, scores: Tensor) -> Tensor:
    bank = _matrix("bank", bank)
    if bank.shape[1] != scores.shape[1] or bank.device != scores.device:
        raise ValueError(
            f"bank: expected scores against the same {scores.shape[1]} candidates, on {scores.device}, "
            f"got {checks.shape(bank)} on {bank.device}"
        )
    return bank.to(scores.dtype)
