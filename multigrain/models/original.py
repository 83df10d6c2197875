"""Checkpoints of the code published with X-CLIP (github xuguohai/X-CLIP), read and written.

A checkpoint is the state dict of the original model: CLIP under "clip.", the temporal encoder, and eight learned
matrices. The original multiplies each matrix W into the attention a after its softmax, as (a W); the table below says
where each of them lives here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import files
from ..heads.temporal import TemporalLSTM, TemporalTransformer
from .clip import ClipText, ClipVision
from .clip.weights import openai_architecture
from .config import ClipConfig, ModelConfig, TemporalConfig, mixing_grains
from .state import check_state, distinct_state, read_state, safetensors
from .torchscript import is_torchscript

MATRICES = {
    "global_mat_weight": "recipe.scorer.grains.0.bilinear",
    "word_logit_weight": "recipe.scorer.grains.1.aggregator.inner_query",
    "frame_logit_weight": "recipe.scorer.grains.2.aggregator.inner_candidate",
    "local_mat_weight": "recipe.scorer.grains.3.bilinear",
    "word_mat_weight": "recipe.scorer.grains.3.aggregator.inner_query",
    "frame_mat_weight2": "recipe.scorer.grains.3.aggregator.outer_candidate",
    "frame_mat_weight": "recipe.scorer.grains.3.aggregator.inner_candidate",
    "word_mat_weight2": "recipe.scorer.grains.3.aggregator.outer_query",
}
_POSITIONS, _BLOCKS, _LSTM = "frame_position_embeddings.weight", "transformerClip.resblocks", "lstm_visual"


def is_original(path: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint comes from X-CLIP's code, rather than from CLIP.

    Raises:
        FileNotFoundError, ValueError: no file, or not a checkpoint.
    """
    return not is_torchscript(path) and MATRICES.keys() <= read_state(path, "meta")[0].keys()


def read_original(path: str | os.PathLike[str], masked: bool) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read the settings that a checkpoint of the original implies, and its state dict in fp32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of X-CLIP; the message says what is missing.
    """
    state, _ = read_state(path)
    if missing := [name for name in MATRICES if name not in state]:
        raise ValueError(f"{path}: expected a checkpoint of X-CLIP, there is no {', '.join(missing)}")
    clip = {name.removeprefix("clip."): value for name, value in state.items() if name.startswith("clip.")}
    try:
        architecture = openai_architecture(clip)
    except ValueError as error:
        raise ValueError(f'{path}: expected a checkpoint of X-CLIP, below "clip." {error}') from error
    words, frames = len(state["word_logit_weight"]), len(state["frame_logit_weight"])
    depth = len({name.split(".")[2] for name in state if name.startswith(_BLOCKS)})
    lstm = any(name.startswith(_LSTM) for name in state)
    if lstm:
        state.pop(_POSITIONS, None)  # there, and never used
    kind = "lstm" if lstm else "transformer" if depth else "none"
    config = ModelConfig(
        clip=ClipConfig(architecture=architecture, max_words=words),
        temporal=TemporalConfig(depth, architecture["text_cfg"]["heads"], frames, kind),
        grains=mixing_grains(words, frames),
        masked=masked,
        dropout=0.0,
    )
    return config, state


def load_original(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the state dict of the original into a model of these settings.

    Raises:
        ValueError: tensors that are missing, unexpected or of another shape.
    """
    names, ours = _original_names(model), distinct_state(model)
    check_state({theirs: ours[key] for key, theirs in names.items()}, state, name)
    model.load_state_dict({key: state[theirs] for key, theirs in names.items()}, strict=False)


def save_original(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint of the original (see XCLIP.save_original)."""
    ours = distinct_state(model)
    state = {theirs: ours[key].detach().cpu().contiguous() for key, theirs in _original_names(model).items()}
    if Path(path).suffix == ".safetensors":
        files.write_bytes(path, safetensors().save(state, metadata={"format": "pt"}))
    else:
        files.save_tensors(path, state)


def _original_names(model: nn.Module) -> dict[str, str]:
    """Map the names of the model's state dict to those of the original.

    Raises:
        ValueError: the original has no place for this model.
    """
    encoder: dict[str, str] = {}
    if isinstance(model.temporal, TemporalTransformer):
        encoder = model.temporal.clip_names(_POSITIONS, _BLOCKS)
    elif isinstance(model.temporal, TemporalLSTM):
        encoder = {f"lstm.{name}": f"{_LSTM}.{name}" for name in model.temporal.lstm.state_dict()}
    names = {"recipe.loss.criterion.logit_scale": "clip.logit_scale"}
    names |= {ours: theirs for theirs, ours in MATRICES.items()}
    names |= {f"recipe.video_head.temporal.{ours}": theirs for ours, theirs in encoder.items()}
    state = distinct_state(model)
    for name in state:
        for side in ("vision.", "text."):
            if name.startswith(side):
                names[name] = f"clip.{name.removeprefix(side)}"
    if odd := state.keys() ^ names.keys():
        raise ValueError(
            f"save_original: expected X-CLIP's four grains with all learned matrices (mixing=True), "
            f"{sorted(odd)[0]} has no counterpart"
        )
    if problem := _difference(model.vision, model.text, model.config):
        raise ValueError(f"save_original: expected CLIP as OpenAI's, got {problem}")
    return names


def _difference(vision_tower: object, text_tower: object, config: Any) -> str:
    """Name a part of a model that the original code would build differently; "" where there is none."""
    if not (isinstance(vision_tower, ClipVision) and isinstance(text_tower, ClipText) and config):
        return "towers of another kind"
    sizes: dict[str, Any] = config.clip.architecture
    text, vision = sizes["text_cfg"], sizes["vision_cfg"]
    if not sizes.get("quick_gelu", False):
        return "GELU where the original has QuickGELU"
    if vision.get("head_width", 64) != 64 or text["heads"] != text["width"] // 64:
        return "attention heads that are not 64 wide"
    if not isinstance(vision["layers"], int) or "visual.proj" not in vision_tower.state_dict():
        return "a frame tower that is no vision transformer"
    return ""
