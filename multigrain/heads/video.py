"""Heads: Features -> Features with more grains, in front of a recipe's scorer."""

from __future__ import annotations

from torch import nn

from .. import checks
from ..tokens import Features, Tokens
from .pool import MeanPool, Pool, check_target
from .temporal import TemporalLSTM, TemporalTransformer

TEMPORAL = ("mean", "lstm", "transformer")


class Encode(nn.Module):
    """Adds the grain `target`: the tokens of `source` behind an encoder of tokens, with the same mask.

    Args:
        source, target: names of grains; the same name replaces it.
        encoder: tokens [B, L, D], mask [B, L] or None -> [B, L, D'], such as TemporalTransformer.

    Raises:
        KeyError, ValueError: in forward, features without the source, or that have another target already.
    """

    def __init__(self, source: str, target: str, encoder: nn.Module) -> None:
        super().__init__()
        self.source, self.target, self.encoder = source, target, encoder

    def forward(self, features: Features) -> Features:
        """The features with one grain more."""
        checks.instance("features", features, Features)
        tokens = features[self.source].tokenwise()
        if self.target != self.source:
            check_target(self.target, features, self.source)
        # Features may be kept in half precision beside an encoder that is not.
        dtype = next((p.dtype for p in self.encoder.parameters()), tokens.dtype)
        encoded = Tokens(self.encoder(tokens.features.to(dtype), tokens.mask), tokens.mask, self.target)
        return Features(**{name: features[name] for name in features.names} | {self.target: encoded})

    def extra_repr(self) -> str:
        """The settings that repr shows."""
        return f"{self.source!r}, {self.target!r}"


def temporal_encoder(kind: str, dim: int, max_frames: int, depth: int, heads: int | None = None) -> nn.Module | None:
    """An encoder of frames that lets them know each other: None for "mean", an LSTM, or a transformer.

    Args:
        dim: D of the frames.
        depth, heads, max_frames: of the transformer; heads: one for every 64 of D by default, as in CLIP.

    Raises:
        ValueError: an unknown kind; sizes that do not fit.
    """
    checks.choice("temporal", kind, TEMPORAL)
    if kind == "mean":
        return None
    if kind == "lstm":
        return TemporalLSTM(dim)
    return TemporalTransformer(dim, depth, number_of_heads(dim, heads), max_frames)


def number_of_heads(dim: int, heads: int | None) -> int:
    """Attention heads for tokens of width D: as given, or one for every 64 of D, as in CLIP, or fewer that divide D."""
    if heads is not None:
        return heads
    return next(n for n in range(max(1, checks.count("width", dim) // 64), 0, -1) if dim % n == 0)


def video_head(encoder: nn.Module | None = None) -> nn.Module:
    """frame -> frame, video: the mean of unit frames; of those behind an encoder, as "context", where there is one.

    The fine grain stays what the tower gave, as in the equations and the code of X-CLIP.
    """
    if encoder is None:
        return Pool("frame", "video", MeanPool(normalize=True))
    return nn.Sequential(Encode("frame", "context", encoder), Pool("context", "video", MeanPool(normalize=True)))
