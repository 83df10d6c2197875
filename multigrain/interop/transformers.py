"""transformers: the outputs of its encoders as Features. transformers is not imported.

`XCLIP.from_clip` takes over a whole CLIPModel; here it stays as it is.
"""

from __future__ import annotations

import sys
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..heads.pool import MeanPool
from ..tokens import Features
from . import _features


def encoder_features(
    output: Any,
    attention_mask: Int[Tensor, "b l"] | None = None,
    token: str = "word",
    pooled: str = "sentence",
    projection: nn.Module | None = None,
) -> Features:
    """Make Features of the output of any encoder of transformers: all its tokens, and one vector.

    Args:
        output: with `last_hidden_state` [B, L, H], and `pooler_output` [B, D]; without the latter, the vector is the
            mean of the real tokens.
        attention_mask: not 0 = a real token, as the tokenizer returns it; None: all are.
        token, pooled: the names of the two grains, such as "frame" and "video".
        projection: of the tokens, H -> D. The pooled output is taken as it is.
    """
    mask = None if attention_mask is None else attention_mask != 0
    tokens = output.last_hidden_state if projection is None else projection(output.last_hidden_state)
    vector = getattr(output, "pooler_output", None)
    if vector is None:
        vector = MeanPool()(tokens, mask)
    return Features(**{pooled: vector, token: (tokens, mask)})


def text_features(model: Any, input_ids: Int[Tensor, "b w"], attention_mask: Int[Tensor, "b w"]) -> Features:
    """Make Features(sentence, word) by a CLIPModel, or another model with `get_text_features` and `text_projection`.

    The words go through the projection too, so that they meet frames in one space.

    Args:
        model: a CLIPModel.
        input_ids: [B, W] of its tokenizer.
        attention_mask: [B, W], not 0 = a real token.

    Raises:
        ImportError: transformers is older than 5.
    """
    output = _output(model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))
    return encoder_features(output, attention_mask, projection=model.text_projection)


def video_features(
    model: Any, pixel_values: Float[Tensor, "b n 3 h w"], mask: Int[Tensor, "b n"] | None = None
) -> Features:
    """Make Features(frame, video) of the frames of videos by a model with `get_image_features`, such as CLIPModel.

    Args:
        model: a CLIPModel.
        pixel_values: [B, N, 3, H, W] of its image processor.
        mask: [B, N], not 0 = a real frame; None: all are. The video is the mean of the real, normalised frames.

    Raises:
        ImportError: transformers is older than 5.
    """
    frames = _output(model.get_image_features(pixel_values=pixel_values.flatten(0, 1))).pooler_output
    return _features.video_features(frames.unflatten(0, pixel_values.shape[:2]), None if mask is None else mask != 0)


def _output(output: Any) -> Any:
    if isinstance(output, Tensor):
        version = getattr(sys.modules.get("transformers"), "__version__", "an unknown version")
        raise ImportError(
            "transformers: expected version 5 or newer, where get_text_features and get_image_features return all "
            f"tokens, got a tensor from {version}: "
            'pip install --upgrade "multigrain[hf]"'
        )
    return output
