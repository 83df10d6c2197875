"""CLIP's weights: files and names -> an architecture and a state dict, in open_clip's terms.

GELU or QuickGELU: the weights do not say which one they were trained with, and the wrong one changes every feature
without an error. OpenAI's need QuickGELU, most others GELU. So a file that is known to be OpenAI's refuses an
architecture with GELU, a named download refuses the activation that is not its own, a checkpoint of open_clip's
training must be given its architecture, and a bare state dict without one is read as OpenAI's with a warning.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..state import OPENAI, check_state, read_state
from ..towers import import_library
from . import MEAN
from .tokenizer import CLIP_VOCABULARY, HuggingFaceTokenizer, Tokenizer, tokenizer_for

_POOL = "visual.attnpool.positional_embedding"  # of a ResNet
# The sizes of a text tower whose settings do not say them.
_TEXT_SIZES = {"context_length": 77, "vocab_size": CLIP_VOCABULARY, "width": 512, "heads": 8, "layers": 12}
_SETTINGS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}  # of open_clip.CLIP that are supported


@dataclass(frozen=True)
class ClipWeights:
    """CLIP before it is built.

    Args:
        architecture: arguments of open_clip.CLIP: embed_dim, vision_cfg, text_cfg, quick_gelu.
        state: the state dict in fp32; None = random numbers.
        tokenizer: None = captions come as ids.
    """

    architecture: dict[str, Any]
    state: dict[str, Tensor] | None = None
    tokenizer: Tokenizer | None = None


def load_clip(
    weights: Any = None, architecture: str | Mapping[str, Any] | None = None, tokenizer: Any = None
) -> ClipWeights:
    """Load CLIP from a file, a folder, a name or an instance.

    Args:
        weights: one of
            - a file: OpenAI's TorchScript archive, or a state dict (.pt, .bin, .safetensors) with the names of OpenAI
              and open_clip, or a checkpoint of open_clip's training;
            - a folder of transformers (config.json and weights of a CLIPModel), or a transformers.CLIPModel;
            - an open_clip name such as "ViT-B-32" or "ViT-B/32": OpenAI's weights of that name, downloaded;
            - with `architecture`, a tag of open_clip such as "laion2b_s34b_b79k": downloaded;
            - None: `architecture` with random weights.
        architecture: an open_clip name, or its settings as a dict. "openai": sizes from the shapes of the weights,
            and QuickGELU, which is also the default, with a warning where the file does not tell (see above).
        tokenizer: a Tokenizer or one of transformers; default that of the folder, else open_clip's where the
            vocabulary is CLIP's.

    Raises:
        FileNotFoundError: no such file.
        ImportError: open_clip, safetensors or transformers is not installed.
        ValueError: an unknown name, a file that is no CLIP, another activation than the architecture's, a
            kind of text tower that gives no word features.
    """
    if isinstance(weights, nn.Module) or (isinstance(weights, str | Path) and Path(weights).is_dir()):
        from .huggingface import load_hugging_face

        sizes, state = load_hugging_face(weights)
        folder = None if isinstance(weights, nn.Module) else weights
        return ClipWeights(sizes, state, _tokenizer(tokenizer, sizes, folder))
    state: dict[str, Tensor] | None = None
    if weights is None:
        if architecture in (None, OPENAI):
            raise ValueError("weights: expected a file, a folder or an open_clip name, or else an architecture")
        sizes = named_architecture(architecture)
    else:
        sizes, state = _file_or_download(str(weights), architecture)
    check_architecture(sizes)
    sizes = {**sizes, "text_cfg": {**_TEXT_SIZES, **sizes["text_cfg"]}}
    return ClipWeights(sizes, state, _tokenizer(tokenizer, sizes))


def _tokenizer(given: Any, sizes: Mapping[str, Any], folder: Any = None) -> Tokenizer | None:
    """Wrap the tokenizer that is given, or find the one that fits."""
    size = int(sizes["text_cfg"]["vocab_size"])
    if given is None:
        return tokenizer_for(size, folder)
    return given if hasattr(given, "words") else HuggingFaceTokenizer(given, size)


def build_clip(weights: ClipWeights) -> Any:
    """Build the open_clip.CLIP of an architecture, with the weights where there are some.

    Raises:
        ValueError: weights of another architecture; missing, unexpected and differently shaped ones are named.
    """
    sizes = weights.architecture
    if weights.state is None:
        return import_library("open_clip").CLIP(**sizes)
    # Random numbers for 150 million weights that are replaced at once would take seconds.
    lazy = "timm_model_name" not in sizes["vision_cfg"]
    with torch.device("meta" if lazy else "cpu"):
        model = import_library("open_clip").CLIP(**sizes)
    check_state(model.state_dict(), weights.state, "weights")
    model.load_state_dict(weights.state, assign=True)
    model.attn_mask = torch.full((model.context_length,) * 2, float("-inf")).triu_(1)  # no part of the state dict
    return model.requires_grad_(True)


def named_architecture(architecture: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of an open_clip name, or a copy of settings.

    Raises:
        ValueError: an unknown name; similar ones are listed.
    """
    if isinstance(architecture, Mapping):
        return {**architecture}
    open_clip, name = import_library("open_clip"), str(architecture).replace("/", "-")
    if name in open_clip.list_models():
        return open_clip.get_model_config(name)
    similar = difflib.get_close_matches(name, open_clip.list_models(), 5, 0.5)
    raise ValueError(
        f"architecture: expected a name of open_clip, got {name!r}"
        + (f"; there are {', '.join(similar)}, ..." if similar else "; open_clip.list_models() has them all")
    )


def openai_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell the sizes of OpenAI's CLIP from the shapes of its weights: heads are 64 wide, the activation is QuickGELU.

    Raises:
        ValueError: tensors that every CLIP has are missing.
    """
    vit = "visual.proj" in state
    needed = ["visual.conv1.weight", "text_projection", "positional_embedding", "token_embedding.weight"]
    needed += ["ln_final.weight", "logit_scale"]
    needed += ["visual.positional_embedding"] if vit else [_POOL, "visual.layer1.0.conv1.weight"]
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"weights: expected OpenAI's names of CLIP's tensors, got none of {', '.join(missing)}")
    conv = state["visual.conv1.weight"]
    places = state["visual.positional_embedding" if vit else _POOL].shape[0]
    grid = round((places - 1) ** 0.5)
    if vit:
        vision = {"image_size": grid * conv.shape[-1], "layers": _count(state, "visual.transformer.resblocks.")}
        vision |= {"width": conv.shape[0], "patch_size": conv.shape[-1]}
    else:
        vision = {"image_size": grid * 32, "layers": [_count(state, f"visual.layer{i}.") for i in range(1, 5)]}
        vision |= {"width": state["visual.layer1.0.conv1.weight"].shape[0], "patch_size": None}
    width = state["ln_final.weight"].shape[0]
    text = {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "width": width,
        "heads": max(width // 64, 1),
        "layers": _count(state, "transformer.resblocks."),
    }
    embed_dim = state["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered layers below a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _file_or_download(weights: str, architecture: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the architecture and the state dict of a file, or of a name whose weights are downloaded."""
    if not Path(weights).is_file():
        name = weights.replace("/", "-")
        if architecture not in (None, OPENAI) and isinstance(architecture, str):
            named_architecture(architecture)
            return _download_weights(architecture.replace("/", "-"), weights, True)
        if name not in import_library("open_clip").list_models():
            if Path(weights).suffix or Path(weights).is_absolute():
                raise FileNotFoundError(f"weights: expected a file, there is none at {weights}")
            named_architecture(name)  # which names similar ones
        return _download_weights(name, OPENAI, False)
    state, kind = read_state(weights)
    if architecture in (None, OPENAI):
        if architecture is None and kind == "training":
            raise ValueError(
                f"{weights}: a checkpoint of open_clip's training does not say its activation: expected "
                'architecture="ViT-B-32" or whatever it was trained as'
            )
        if architecture is None and kind == "plain":
            warnings.warn(
                f"{weights} does not say its activation and is read as OpenAI's, with QuickGELU. "
                'If it is, pass architecture="openai"; if not, its open_clip name, such as "ViT-B-32"',
                stacklevel=4,
            )
        return openai_architecture(state), state
    sizes = named_architecture(architecture)
    if kind == OPENAI:
        _same_activation(sizes, True, weights, architecture)
    return sizes, state


def _download_weights(name: str, tag: str, strict: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Download open_clip's weights of a name and a tag; with `strict`, the name must have their activation."""
    open_clip = import_library("open_clip")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"weights: expected a file, or with architecture {name!r} one of {tags}; got {tag!r}")
    if tuple(found.get("mean") or MEAN) != MEAN:
        raise ValueError(f"weights: expected CLIP's normalisation of frames, {tag!r} has the mean {found['mean']}")
    sizes, quick = named_architecture(name), bool(found.get("quick_gelu", False))
    if strict:
        _same_activation(sizes, quick, tag, name)
    sizes["quick_gelu"] = quick
    return sizes, read_state(open_clip.download_pretrained(found))[0]


def _same_activation(sizes: Mapping[str, Any], quick: bool, weights: str, architecture: Any) -> None:
    if bool(sizes.get("quick_gelu", False)) != quick:
        have, want = ("GELU", "QuickGELU") if quick else ("QuickGELU", "GELU")
        remedy = f"{architecture}-quickgelu" if quick else str(architecture).removesuffix("-quickgelu")
        advice = f"pass architecture={remedy!r}" if isinstance(architecture, str) else f"set quick_gelu to {quick}"
        raise ValueError(f"architecture: {weights} was trained with {want}, {architecture!r} has {have}; {advice}")


def check_architecture(sizes: Mapping[str, Any]) -> None:
    """Refuse settings of open_clip.CLIP that cannot be used here, or that reach files or the network.

    A text tower other than CLIP's own does not give a feature for every word in the way that is needed here.

    Raises:
        ValueError: settings that are missing, or others; they are named.
    """
    if missing := sorted({"embed_dim", "vision_cfg", "text_cfg"} - sizes.keys()):
        raise ValueError(f"architecture: expected the settings of open_clip.CLIP, got none of {', '.join(missing)}")
    text, vision = sizes["text_cfg"], sizes["vision_cfg"]
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ValueError("architecture: expected settings by name in text_cfg and vision_cfg")
    if vision.get("timm_model_pretrained") or ":" in str(vision.get("timm_model_name", "")):
        raise ValueError("architecture: expected a tower of timm by its name, without weights of its own")
    odd = sorted(sizes.keys() - _SETTINGS)
    odd += [
        f"text_cfg.{k}" for k in ("hf_model_name", "hf_tokenizer_name", "no_causal_mask", "embed_cls") if text.get(k)
    ]
    odd += [
        f"text_cfg.{k}"
        for k, usual in (("pool_type", "argmax"), ("proj_type", "linear"))
        if text.get(k, usual) != usual
    ]
    odd += ["text_cfg.proj_bias"] * bool(text.get("proj_bias"))
    if odd:
        raise ValueError(f"architecture: expected CLIP's own text tower, got one with {', '.join(odd)}")
