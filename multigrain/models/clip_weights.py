"""Where CLIP's weights come from: files and names -> an architecture and a state dict, in open_clip's terms.

Nothing is unpickled but tensors (torch.load with weights_only=True); OpenAI's archives are TorchScript and are read by
torch.jit.load, as open_clip does.

GELU or QuickGELU: the weights do not say which one they were trained with, and the wrong one changes every feature
without an error. OpenAI's need QuickGELU, most others GELU. So a file that is known to be OpenAI's refuses an
architecture with GELU, a named download refuses the activation that is not its own, a checkpoint of open_clip's
training must be given its architecture, and a bare state dict without one is read as OpenAI's with a warning.
"""

from __future__ import annotations

import difflib
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .tokenizer import CLIP_VOCABULARY, HuggingFaceTokenizer, Tokenizer, tokenizer_for
from .towers import import_library

OPENAI = "openai"
_MARKERS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's archives and nowhere else
_SETTINGS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}  # of open_clip.CLIP that are supported


@dataclass(frozen=True)
class ClipWeights:
    """CLIP before it is built.

    Args:
        architecture: arguments of open_clip.CLIP: embed_dim, vision_cfg, text_cfg, quick_gelu.
        state: its state dict in fp32; None = random numbers.
        tokenizer: None = captions come as ids.
    """

    architecture: dict[str, Any]
    state: dict[str, Tensor] | None = None
    tokenizer: Tokenizer | None = None


def load_clip(
    weights: Any = None, architecture: str | Mapping[str, Any] | None = None, tokenizer: Any = None
) -> ClipWeights:
    """CLIP from a file, a folder, a name or an instance.

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
    _supported(sizes)
    return ClipWeights(sizes, state, _tokenizer(tokenizer, sizes))


def _tokenizer(given: Any, sizes: Mapping[str, Any], folder: Any = None) -> Tokenizer | None:
    """The given one, in our terms; else the one that fits."""
    size = int(sizes["text_cfg"].get("vocab_size", CLIP_VOCABULARY))
    if given is None:
        return tokenizer_for(size, folder)
    return given if hasattr(given, "words") else HuggingFaceTokenizer(given, size)


def build_clip(weights: ClipWeights) -> Any:
    """The open_clip.CLIP of an architecture, with the weights where there are some.

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


def check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """The state dict has the names and the shapes of a model.

    Raises:
        ValueError: it has not; the first few are named, with the number of all.
    """
    shapes = [
        f"{key} is {list(state[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = (
        ("missing", sorted(expected.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - expected.keys())),
        ("other shapes", shapes),
    )
    if told := [
        f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' * (len(found) > 3)})" for kind, found in problems if found
    ]:
        raise ValueError(f"{name}: a checkpoint of another architecture: {'; '.join(told)}")


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """A state dict in fp32, and the kind of file: "openai", "training" (a checkpoint of open_clip) or "plain".

    Raises:
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
        ValueError: not a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file, there is none at {path}")
    try:
        values, kind = _read(path)
    except ImportError:
        raise
    except Exception as error:  # torch.load, torch.jit and safetensors each have their own
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path}: expected weights (TorchScript, a torch.save'd state dict, safetensors): {reason}"
        ) from error
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values, kind = values["state_dict"], "training"
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(f"{path}: expected a state dict, got {type(values).__name__}")
    if all(key.startswith("module.") for key in values):  # DistributedDataParallel's
        values = {key.removeprefix("module."): value for key, value in values.items()}
    if values.keys() & _MARKERS:
        kind = OPENAI
    state = {key: value for key, value in values.items() if key not in _MARKERS | {"attn_mask"}}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, kind


def _read(path: Path) -> tuple[Any, str]:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError('checkpoints need safetensors: pip install "multigrain[models]"') from error
        return load_file(path), "plain"
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            return dict(torch.jit.load(path, map_location="cpu").state_dict()), OPENAI
    return torch.load(path, map_location="cpu", weights_only=True), "plain"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def named_architecture(architecture: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of an open_clip name, or a copy of settings.

    Raises:
        ValueError: an unknown name; similar ones are listed.
    """
    if isinstance(architecture, Mapping):
        return {**architecture}
    name = str(architecture).replace("/", "-")
    sizes = (
        import_library("open_clip").get_model_config(name)
        if name in import_library("open_clip").list_models()
        else None
    )
    if sizes is None:
        similar = difflib.get_close_matches(name, import_library("open_clip").list_models(), 5, 0.5)
        raise ValueError(
            f"architecture: expected a name of open_clip, got {name!r}"
            + (f"; there are {', '.join(similar)}, ..." if similar else "; open_clip.list_models() has them all")
        )
    return sizes


def openai_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of OpenAI's CLIP from the shapes of its weights: heads are 64 wide, the activation is QuickGELU.

    Raises:
        ValueError: tensors that every CLIP has are missing.
    """
    needed = ["visual.conv1.weight", "text_projection", "positional_embedding", "token_embedding.weight"]
    needed += ["ln_final.weight", "logit_scale"]
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"weights: expected OpenAI's names of CLIP's tensors, got none of {', '.join(missing)}")
    conv = state["visual.conv1.weight"]
    vit = "visual.proj" in state
    places = state["visual.positional_embedding" if vit else "visual.attnpool.positional_embedding"].shape[0]
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
        "heads": width // 64,
        "layers": _count(state, "transformer.resblocks."),
    }
    embed_dim = state["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered layers there are below a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _file_or_download(weights: str, architecture: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Architecture and state of a file or of a name."""
    if not Path(weights).is_file():
        name = weights.replace("/", "-")
        if architecture not in (None, OPENAI) and isinstance(architecture, str):
            named_architecture(architecture)
            return _download(architecture.replace("/", "-"), weights, True)
        if name not in import_library("open_clip").list_models():
            if Path(weights).suffix or Path(weights).is_absolute():
                raise FileNotFoundError(f"weights: expected a file, there is none at {weights}")
            named_architecture(name)  # which names similar ones
        return _download(name, OPENAI, False)
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


def _download(name: str, tag: str, strict: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip's weights of a name and a tag; `strict`: the name must have their activation."""
    open_clip = import_library("open_clip")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"weights: expected a file, or with architecture {name!r} one of {tags}; got {tag!r}")
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


def _supported(sizes: Mapping[str, Any]) -> None:
    """Only CLIP's own text tower gives a feature for every word in the way that is used here."""
    text: Mapping[str, Any] = sizes.get("text_cfg", {})
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
