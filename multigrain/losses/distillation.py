"""Distillation: a scorer learns how another one ranks."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from .. import checks
from ..aggregators.base import DIRECTIONS
from ..distributed import Group
from ..reduce import bounded
from ..tokens import Features
from .base import Loss
from .batch import Reads, WholeBatchLoss, grains_read
from .criterion import Ids

# Probabilities whose distance from their mean is shorter than this are all equal: they correlate with nothing.
LENGTH = 1e-12


class Distillation(WholeBatchLoss):
    """The distance of a student's scores from a teacher's, row by row and column by column.

        p_i = softmax_j(scale * student_ij),   t_i = softmax_j(teacher_scale * teacher_ij)
        row = 1 - Pearson correlation of p_i and t_i   ("pearson")   or   sum_j t_ij (log t_ij - log p_ij)   ("kl")
        L   = mean over rows + the same down the columns   ("sum", as TeachCLIP)   or half of that   ("mean")

    No gradient reaches the teacher: it scores features of its own, such as grains of other names in the same text and
    video. The correlation with equal probabilities is 0. Source: TeachCLIP (Tian et al., CVPR 2024) and its code, whose
    loss is .2 InfoNCE + this ("pearson") + a term of the frames' weights.

    Args:
        student, teacher: scorers, (text, video) -> scores [texts, videos]. Freeze the teacher's parameters where it
            has any.
        kind: "pearson" or "kl".
        scale, teacher_scale: multipliers of the scores, above 0; CLIP's ends at 100. None: that of the student.
        reduction, direction: of the two directions, as in InfoNCE.
        gather, group, exchange_dtype: see WholeBatchLoss.

    Raises:
        ValueError: settings out of range, or scores of two shapes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        kind: str = "pearson",
        scale: float = 100.0,
        teacher_scale: float | None = None,
        reduction: str = "sum",
        direction: str = "both",
        gather: str = "auto",
        group: Group = None,
        exchange_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(gather, group, exchange_dtype)
        self.student = checks.scorer("student", student, but=Loss)
        self.teacher = checks.scorer("teacher", teacher, but=Loss)
        self.kind = checks.choice("kind", kind, ("pearson", "kl"))
        self.scale = checks.positive("scale", scale)
        self.teacher_scale = self.scale if teacher_scale is None else checks.positive("teacher_scale", teacher_scale)
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum"))
        self.direction = checks.choice("direction", direction, DIRECTIONS)

    @property
    def reads(self) -> Reads | None:
        """The grains of both scorers."""
        student, teacher = grains_read(self.student), grains_read(self.teacher)
        return None if student is None or teacher is None else (student[0] | teacher[0], student[1] | teacher[1])

    def compute(self, text: Features, video: Features, ids: Ids | None) -> Float[Tensor, ""]:
        """Compute the loss of the whole batch, which needs no ids."""
        with torch.no_grad():
            teacher = self.teacher(text, video)
        student = self.student(text, video)
        if student.shape != teacher.shape:
            raise ValueError(f"teacher: expected scores {checks.shape(student)}, got {checks.shape(teacher)}")
        checks.contrasted(student, name="scores of student")
        checks.contrasted(teacher, name="scores of teacher")
        student, teacher = bounded(self.scale * bounded(student)), bounded(self.teacher_scale * bounded(teacher))
        distance = _pearson if self.kind == "pearson" else _divergence
        losses: list[Tensor] = []
        if self.direction != "candidate":
            losses.append(distance(student, teacher).mean())
        if self.direction != "query":
            losses.append(distance(rearrange(student, "q c -> c q"), rearrange(teacher, "q c -> c q")).mean())
        return torch.stack(losses).sum() if self.reduction == "sum" else torch.stack(losses).mean()


def _pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - correlation of each row's probabilities, [q]."""
    return 1 - reduce(_centred(student.softmax(1)) * _centred(teacher.softmax(1)), "q c -> q", "sum")


def _centred(p: Tensor) -> Tensor:
    """Subtract each row's mean and divide by the length; 0 where all are equal."""
    p = p - reduce(p, "q c -> q 1", "mean")
    square = reduce(p.square(), "q c -> q 1", "sum")
    differs = square > LENGTH**2
    return torch.where(differs, p * torch.where(differs, square, 1.0).rsqrt(), 0.0)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row from the teacher's, [q]."""
    t = teacher.log_softmax(1)
    return reduce(t.exp() * (t - student.log_softmax(1)), "q c -> q", "sum")
