"""Convert a CLIPModel of transformers to open_clip's architecture and names, so that one tower serves both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ... import checks, files
from ..state import read_state
from .tokenizer import import_transformers

_SIZES = ("text_config", "text_config_dict", "vision_config", "vision_config_dict", "projection_dim")

# transformers -> open_clip, parameter by parameter; the layers and their attention are below.
_TEXT_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_VISION_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
_LAYER_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def load_hugging_face(model: nn.Module | str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the arguments of open_clip.CLIP and its state dict in fp32.

    Args:
        model: a transformers.CLIPModel, or a local folder with one.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ImportError: transformers is not installed.
        ValueError: another model than CLIP, or settings that open_clip does not have.
    """
    if not isinstance(model, nn.Module):
        config, state = _read_folder(Path(model))
    elif model.config.model_type == "clip" and hasattr(model, "text_projection"):  # type: ignore[union-attr]
        config, state = cast(Any, model.config), model.state_dict()
    else:
        raise ValueError(f"weights: expected a transformers.CLIPModel, got a {type(model).__name__}")
    text, vision = config.text_config, config.vision_config
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: an old mistake in configs, which stands for the highest
        raise ValueError(
            f"weights: expected the last token's id to be the highest, got eos_token_id {text.eos_token_id}"
        )
    acts = {text.hidden_act, vision.hidden_act}
    if not acts < {"gelu", "quick_gelu"} or len(acts) != 1:
        raise ValueError(
            f"weights: expected hidden_act gelu or quick_gelu in both towers, got {', '.join(sorted(acts))}"
        )
    architecture = {
        "embed_dim": config.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_transformer_sizes(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            **_transformer_sizes(text),
        },
    }
    try:
        return architecture, _converted(state, text.num_hidden_layers, vision.num_hidden_layers)
    except KeyError as error:
        raise ValueError(f"weights: expected the tensors of a transformers.CLIPModel, there is no {error}") from error


def _transformer_sizes(config: Any) -> dict[str, Any]:
    """Return the settings that both towers have."""
    for name in ("hidden_size", "intermediate_size"):
        checks.count(name, getattr(config, name), 1 << 20)
    # open_clip takes the mlp's width as a factor, and rounds down.
    ratio = config.intermediate_size / config.hidden_size
    while int(config.hidden_size * ratio) < config.intermediate_size:
        ratio += 1e-9
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": ratio,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _converted(state: dict[str, Tensor], text_layers: int, vision_layers: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def take(theirs: str, ours: str) -> None:
        if theirs in state:
            out[ours] = state[theirs]
        else:
            out.update({f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")})

    for theirs, ours in (_TEXT_NAMES | _VISION_NAMES).items():
        take(theirs, ours)
    for side, blocks, count in (
        ("text_model", "transformer.resblocks", text_layers),
        ("vision_model", "visual.transformer.resblocks", vision_layers),
    ):
        for i in range(count):
            layer, block = f"{side}.encoder.layers.{i}", f"{blocks}.{i}"
            for theirs, ours in _LAYER_NAMES.items():
                take(f"{layer}.{theirs}", f"{block}.{ours}")
            for kind in ("weight", "bias"):
                parts = [state[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    out["text_projection"] = state["text_projection.weight"].T
    out["visual.proj"] = state["visual_projection.weight"].T
    out["logit_scale"] = state["logit_scale"]
    return {name: value.detach().float().cpu().clone().contiguous() for name, value in out.items()}


def _read_folder(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read the settings and the state dict alone: transformers would follow a folder to adapters that it names."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"weights: expected a folder of transformers, config.json is missing in {folder}")
    transformers = import_transformers()
    values = files.read_json(folder / "config.json")
    if not isinstance(values, dict) or values.get("model_type") != "clip":
        raise ValueError(f"{folder}: expected the folder of a transformers.CLIPModel, got settings of another model")
    try:
        config = transformers.CLIPConfig(**{name: values[name] for name in _SIZES if name in values})
    except Exception as error:  # transformers has its own
        files.refuse(folder / "config.json", error)
    return config, {name: value for path in _weights(folder) for name, value in read_state(path)[0].items()}


def _weights(folder: Path) -> list[Path]:
    """List the files of the weights: one, or the parts that an index lists."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            values = files.read_json(index)
            named = values.get("weight_map") if isinstance(values, dict) else None
            if not isinstance(named, dict) or not all(isinstance(n, str) and Path(n).name == n for n in named.values()):
                raise ValueError(f"{index}: expected the names of files beside it in weight_map")
            return [folder / name for name in sorted(set(named.values()))]
    raise FileNotFoundError(f"weights: expected a folder of transformers, model.safetensors is missing in {folder}")
