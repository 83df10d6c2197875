"""open_clip: a loss with the call signature of its ClipLoss and SigLipLoss, over any scorer. It is not imported."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..grains import Grain
from ..losses import InfoNCE, RetrievalLoss
from ._features import Value, as_features, grain_names


class ClipLoss(nn.Module):
    """The loss criterion(logit_scale * scorer(text, image) + logit_bias).

    With its defaults it is open_clip's ClipLoss, and as exact over ranks as RetrievalLoss.

    Args:
        scorer: Features x Features -> scores [texts, images]; None: the dot product of one vector each.
        criterion: of logits [texts, images]; None: InfoNCE. One that scales has to leave the logits as they are:
            `InfoNCE(init_logit_scale=0, learn_logit_scale=False)`; with `Sigmoid(0, 0, learn=False)` it is open_clip's
            SigLipLoss.
        gather: see RetrievalLoss.

    Raises:
        ValueError: a criterion with a logit scale or bias of its own.
    """

    def __init__(
        self, scorer: nn.Module | None = None, criterion: nn.Module | None = None, gather: str = "auto"
    ) -> None:
        super().__init__()
        self.scorer = Grain("text", "image") if scorer is None else scorer
        self.criterion = InfoNCE(init_logit_scale=0.0, learn_logit_scale=False) if criterion is None else criterion
        self.gather = gather
        for path, own in self.criterion.named_parameters():
            name = path.rpartition(".")[2]
            if name in ("logit_scale", "logit_bias") and (own.requires_grad or own != 0):
                raise ValueError(
                    f"criterion: expected {name} 0, not trained, since {name} is an argument of the call; "
                    f"got {own.item():.4g}, {'trained' if own.requires_grad else 'not trained'}"
                )

    def forward(
        self,
        image_features: Value,
        text_features: Value,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Float[Tensor, ""] | dict[str, Tensor]:
        """Compute the loss, a scalar, or {"contrastive_loss": the loss}.

        Args:
            image_features, text_features: tensors [B, D] or [B, L, D], or (tensor, mask [B, L]), which are compared
                as they are, as in ClipLoss: the model has normalised them. Or Features, which the scorer normalises;
                where it reads several grains, these.
            logit_scale: the multiplier itself, not its logarithm.
        logit_bias: added to the logits, as for SigLIP; None: nothing.
        output_dict: return a dict, as open_clip's trainer asks.
        """
        texts, images = grain_names(self.scorer)
        text = as_features("text_features", text_features, texts)
        image = as_features("image_features", image_features, images)
        logits = _Logits(self.scorer, logit_scale, logit_bias)
        loss = RetrievalLoss(logits, self.criterion, self.gather)(text, image)
        return {"contrastive_loss": loss} if output_dict else loss


class _Logits(nn.Module):
    """A scorer whose scores are logits."""

    def __init__(self, scorer: nn.Module, *line: Any) -> None:
        super().__init__()
        self.scorer = scorer
        self.line = line  # a tuple: an attribute that is a parameter would become one of this module

    @property
    def reads(self) -> Any:
        return getattr(self.scorer, "reads", None)

    def forward(self, text: Any, image: Any) -> Tensor:
        scale, bias = self.line
        logits = scale * self.scorer(text, image)
        return logits if bias is None else logits + bias
