"""X-CLIP's own recipe (Ma et al. 2022, arXiv 2207.07285): a model whose settings name no other recipe has this one.

    frames [B,N,D] -> temporal encoder -> mean of unit vectors -> video [B,D]
           '------------------'--- frame_source --------------> frame [B,N,D]
"""

from __future__ import annotations

from einops import rearrange
from torch import nn

from .. import checks
from ..losses import InfoNCE, RetrievalLoss
from ..recipes import Recipe
from ..reduce import mean
from ..scorer import MultiGrain
from ..tokens import Features, Tokens

FRAME_SOURCES = ("raw", "temporal")


class FrameHead(nn.Module):
    """Make the grains video and frame of the features of frames.

    Args:
        temporal: frame features [B, N, D], mask [B, N] or None -> [B, N, D]; None leaves the frames as they are.
        frame_source: the frames of the fine grains: "raw", before the temporal encoder (the paper), or
            "temporal", after it. The video vector is always the mean of the frames after it.

    Raises:
        ValueError: an unknown frame source.
    """

    def __init__(self, temporal: nn.Module | None = None, frame_source: str = "raw") -> None:
        super().__init__()
        self.temporal = temporal
        self.frame_source = checks.choice("frame_source", frame_source, FRAME_SOURCES)

    def forward(self, features: Features) -> Features:
        """Return Features(video [B, D], frame [B, N, D] with its mask) from Features(frame)."""
        frames = features["frame"]
        x, mask = frames.features, frames.mask
        encoded = x if self.temporal is None else self.temporal(x, mask)
        # X-CLIP's code takes the mean of unit vectors, so that a long frame does not outweigh the others.
        unit = Tokens(encoded, mask).normalized().features
        video = mean(unit, None if mask is None else rearrange(mask, "b n -> b n 1"), dim=1)
        return Features(video=video, frame=(encoded if self.frame_source == "temporal" else x, mask))

    def extra_repr(self) -> str:
        """Return the setting that repr shows."""
        return f"frame_source={self.frame_source!r}"


def own_recipe(
    scorer: MultiGrain,
    temporal: nn.Module | None = None,
    criterion: InfoNCE | None = None,
    frame_source: str = "raw",
) -> Recipe:
    """Build X-CLIP's own recipe.

    Args:
        scorer: over the grains sentence, word, video, frame.
        temporal, frame_source: see FrameHead.
        criterion: holds the logit scale; default InfoNCE().
    """
    loss = RetrievalLoss(scorer, InfoNCE() if criterion is None else criterion)
    return Recipe(scorer, loss, video_head=FrameHead(temporal, frame_source))
