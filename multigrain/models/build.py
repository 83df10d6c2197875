"""Build the parts of an XCLIP from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..grains import Grain
from ..heads.temporal import TemporalLSTM, TemporalTransformer
from ..losses import InfoNCE
from ..recipes import Recipe
from ..scorer import MultiGrain
from .clip import MEAN, STD, ClipText, ClipVision, freeze_layers
from .clip.weights import ClipWeights, build_clip, load_clip
from .config import ClipConfig, ModelConfig, VisionConfig
from .state import check_state
from .towers import TimmTower, WordTower

# Arguments of timm.create_model that reach files or the network.
ONLINE = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_ORIGINAL_EPS = 1e-12  # of the layer norms in the temporal transformer of X-CLIP's code


def build_parts(
    config: ModelConfig, vocabulary: Sequence[str] | None, weights: ClipWeights | None
) -> tuple[dict[str, Any], ModelConfig]:
    """Build the arguments of XCLIP, and the settings that build them again without the files that they came from.

    Args:
        vocabulary: the words of a text tower trained from scratch.
        weights: CLIP, where it was loaded already; None: as config.clip says.
    """
    if config.clip is None:
        config = dataclasses.replace(config, vision=_offline(config.vision))
        towers = _scratch_towers(config, vocabulary)
    else:
        weights = weights or load_clip(config.clip.weights, config.clip.architecture)
        towers = _clip_towers(config, config.clip, weights)
        vision = None if config.clip.vision is None else _offline(config.clip.vision)
        clip = dataclasses.replace(config.clip, weights=None, architecture=weights.architecture, vision=vision)
        config = dataclasses.replace(config, clip=clip, dim=int(weights.architecture["embed_dim"]))
    criterion = InfoNCE(config.init_logit_scale)
    recipe = config.build_recipe(_temporal(config, weights), criterion)
    if weights is not None and weights.state is not None:
        with torch.no_grad():
            for each in (criterion, *_unset_criteria(recipe)):
                each.logit_scale.copy_(weights.state["logit_scale"].reshape(()))
    if config.clip is not None and isinstance(recipe.scorer, MultiGrain):
        _check_lengths(recipe.scorer, {"word": config.clip.max_words, "frame": config.temporal.max_frames})
    parts = {
        **towers,
        "recipe": recipe,
        "criterion": criterion,
        "masked": config.masked,
        "max_frames": config.temporal.max_frames,
        "word_weights": config.recipe is not None and config.recipe.word_weights,
    }
    return parts, config


def _scratch_towers(config: ModelConfig, vocabulary: Sequence[str] | None) -> dict[str, Any]:
    if vocabulary is None:
        raise ValueError("vocabulary: expected the words of the text tower (see build_vocabulary), got None")
    text = config.text
    words = WordTower(
        vocabulary,
        config.dim,
        text.width,
        text.depth,
        text.heads,
        text.max_words,
        config.dropout,
        pad_to_max=not config.masked,
    )
    return {"vision": TimmTower(config.vision.name, config.dim, config.vision.kwargs), "text": words}


def _clip_towers(config: ModelConfig, settings: ClipConfig, weights: ClipWeights) -> dict[str, Any]:
    clip, dim = build_clip(weights), int(weights.architecture["embed_dim"])
    frames = ClipVision(clip.visual, dim) if settings.vision is None else _timm_vision(settings.vision, weights)
    text = ClipText(
        clip,
        weights.tokenizer,
        settings.max_words,
        pad_to_max=not config.masked,
        include_bos=settings.include_bos,
        include_eos=settings.include_eos,
    )
    for tower in (frames, text):
        freeze(tower, settings)
    if settings.grad_checkpointing:
        (frames.visual if isinstance(frames, ClipVision) else frames.backbone).set_grad_checkpointing(True)  # type: ignore[operator]
        text.transformer.grad_checkpointing = True
    return {"vision": frames, "text": text}


def _unset_criteria(recipe: Recipe) -> list[InfoNCE]:
    """List the criteria that learn a scale which starts where CLIP's training began: they go on from its end."""
    start = InfoNCE().logit_scale
    found = (part for part in recipe.loss.modules() if isinstance(part, InfoNCE))
    return [part for part in found if part.logit_scale.requires_grad and torch.equal(part.logit_scale, start)]


def freeze(tower: nn.Module, settings: ClipConfig) -> None:
    """Freeze the layers of a tower that the settings keep as they are; the rest trains."""
    if settings.frozen:
        tower.requires_grad_(False)
    else:
        freeze_layers(tower, settings.frozen_layers)


def _temporal(config: ModelConfig, weights: ClipWeights | None) -> nn.Module | None:
    settings, dim = config.temporal, config.dim
    if config.recipe is not None or settings.kind == "none":
        return None
    if settings.kind == "lstm":
        return TemporalLSTM(dim)
    if settings.depth == 0:
        return None
    if weights is None:
        return TemporalTransformer(dim, settings.depth, settings.heads, settings.max_frames, config.dropout)
    text = weights.architecture["text_cfg"]
    alike = text["width"] == dim
    encoder = TemporalTransformer(
        dim,
        settings.depth,
        text["heads"] if alike else max(1, dim // 64),
        settings.max_frames,
        config.dropout,
        quick_gelu=bool(weights.architecture.get("quick_gelu", False)),
        norm_eps=_ORIGINAL_EPS,
        positions=text["context_length"],
    )
    if weights.state is not None and alike:
        if settings.depth > text["layers"]:
            raise ValueError(
                f"temporal depth: expected at most {text['layers']} (the layers of CLIP's text), got {settings.depth}"
            )
        names = encoder.clip_names("positional_embedding", "transformer.resblocks")
        encoder.load_state_dict({ours: weights.state[theirs] for ours, theirs in names.items()})
    return encoder


def _timm_vision(vision: VisionConfig, weights: ClipWeights) -> TimmTower:
    """Build a tower of timm, with CLIP's weights where it is CLIP's tower and with its own otherwise."""
    dim = int(weights.architecture["embed_dim"])
    if not is_timm_clip(vision.name):
        return TimmTower(vision.name, dim, vision.kwargs, None, None)
    quick = bool(weights.architecture.get("quick_gelu", False))
    if ("quickgelu" in vision.name) != quick:
        other = vision.name.replace("_clip_", "_clip_quickgelu_") if quick else vision.name.replace("quickgelu_", "")
        raise ValueError(f"vision name: {vision.name} has another activation than the weights; expected {other}")
    tower = TimmTower(vision.name, dim, vision.kwargs, MEAN, STD)
    if weights.state is not None:
        _map_to_timm(tower, weights.state)
    return tower


def is_timm_clip(name: str) -> bool:
    """Tell whether a timm name is one of CLIP's vision transformers, which CLIP's weights fit."""
    return name.startswith("vit_") and "_clip_" in name


def _map_to_timm(tower: TimmTower, state: Mapping[str, Tensor]) -> None:
    if "visual.proj" not in state:
        raise ValueError("vision name: expected weights of a vision transformer, got those of a ResNet")
    from timm.models.vision_transformer import checkpoint_filter_fn

    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    backbone: dict[str, Tensor] = dict(checkpoint_filter_fn(visual, tower.backbone))  # type: ignore[arg-type]
    backbone.pop("head.bias", None)  # zeros: CLIP's projection has no bias
    mapped = {f"backbone.{name}": value for name, value in backbone.items() if name != "head.weight"}
    mapped["projection.weight"] = state["visual.proj"].T
    check_state(tower.state_dict(), mapped, "vision")
    tower.load_state_dict(mapped)


def _offline(vision: VisionConfig) -> VisionConfig:
    """Drop the arguments that say where weights come from."""
    return dataclasses.replace(vision, kwargs={k: v for k, v in vision.kwargs.items() if k not in ONLINE})


def _check_lengths(scorer: MultiGrain, lengths: Mapping[str, int]) -> None:
    """Refuse mixing matrices that are smaller than the longest sequences."""
    for grain in cast("Iterable[Grain]", scorer.grains):
        for side in ("query", "candidate"):
            matrix, tokens = getattr(grain.aggregator, f"inner_{side}", None), getattr(grain, side)
            if matrix is not None and len(matrix) < lengths.get(tokens, 0):
                raise ValueError(
                    f"max_{tokens}s: expected at most {len(matrix)} (the mixing matrix of grain {grain.name!r}), "
                    f"got {lengths[tokens]}"
                )
