"""RetrievalLoss: features in, loss out."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..tokens import Features
from .infonce import Ids


class RetrievalLoss(nn.Module):
    """criterion(scorer(text, video), ids).

    Args:
        scorer: Features x Features -> scores [texts, videos], such as MultiGrain.
        criterion: scores [texts, videos], ids -> scalar, such as InfoNCE.

    Example:
        >>> scorer = mg.MultiGrain(mg.Grain("sentence", "video"))
        >>> text, video = mg.Features(sentence=torch.randn(4, 8)), mg.Features(video=torch.randn(4, 8))
        >>> RetrievalLoss(scorer, mg.InfoNCE())(text, video).shape
        torch.Size([])
    """

    def __init__(self, scorer: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.scorer, self.criterion = scorer, criterion

    def forward(self, text: Features, video: Features, ids: Ids | None = None) -> Float[Tensor, ""]:
        """The loss of a batch of pairs: text i belongs to video i, or to those of the same id (see InfoNCE)."""
        return self.criterion(self.scorer(text, video), ids)
