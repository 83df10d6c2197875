"""CLIP4Clip's loop, and those that grew from it (X-CLIP, TS2-Net, DRL): its tensors as Features."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tokens import Features
from ._features import video_features


def to_features(
    sequence_output: Float[Tensor, "b 1 d"],
    visual_output: Float[Tensor, "b f d"],
    video_mask: Int[Tensor, "b f"],
    word_output: Float[Tensor, "b w d"] | None = None,
    attention_mask: Int[Tensor, "b w"] | None = None,
) -> tuple[Features, Features]:
    """Make (text, video) of the arguments of `get_similarity_logits`.

    Args:
        sequence_output: [B, 1, D] or [B, D], the sentences.
        visual_output: [B, F, D], the frames; X-CLIP and others call it `visual_output` too.
        video_mask: [B, F] or, as the data loader gives it, [B, 1, F]; not 0 = a real frame.
        word_output: [B, W, D], where the text tower keeps all tokens, as X-CLIP's `seq_features`.
        attention_mask: of the words, [B, W] or [B, 1, W].

    Returns:
        Features(sentence[, word]) and Features(frame, video); the video is the mean of the normalised frames ("meanP").

    Raises:
        ValueError: words without their mask, or shapes that do not fit.
    """
    if (word_output is None) != (attention_mask is None):
        raise ValueError("attention_mask: expected with word_output, and only then")
    video = video_features(visual_output, _mask(video_mask))
    if word_output is None or attention_mask is None:
        return Features(sentence=sequence_output), video
    return Features(sentence=sequence_output, word=(word_output, _mask(attention_mask))), video


def _mask(value: Tensor) -> Bool[Tensor, "b l"]:
    return value.reshape(-1, value.shape[-1]) != 0
