"""The folder of a model: config.json (all that builds it again), model.safetensors, and a tokenizer/ where it has one.

CLIP's architecture is in config.json as open_clip's settings, so the file that its weights came from is not needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .clip_weights import ClipWeights
from .config import ModelConfig
from .state import distinct_state, safetensors
from .tokenizer import tokenizer_for

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def write_folder(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    vocabulary: list[str] | None,
    model: nn.Module,
    tokenizer: Any = None,
) -> None:
    """Write a model and its settings, the weights last and whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": dataclasses.asdict(config), "vocabulary": vocabulary}
    weights = {name: value.detach().cpu().contiguous() for name, value in distinct_state(model).items()}
    partial = folder / "model.safetensors.tmp"
    safetensors().save_file(weights, partial, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "model.safetensors")


def find_folder(place: str | os.PathLike[str]) -> Path:
    """The folder itself, or the local copy of a repository of the Hugging Face Hub.

    Raises:
        FileNotFoundError: neither, or one of the two files is missing.
    """
    folder = Path(place)
    if not folder.exists() and _REPOSITORY.fullmatch(str(place)):
        folder = _download(str(place))
    if (folder / "model" / "model.safetensors").is_file():
        folder /= "model"  # the folder of a run
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"expected a folder with config.json and model.safetensors, {name} is missing in {folder}"
            )
    return folder


def read_settings(folder: Path) -> tuple[ModelConfig, list[str] | None, ClipWeights | None]:
    """The settings, the vocabulary of a text tower from scratch, and CLIP (without weights) where it is in use.

    Raises:
        ValueError: they are damaged.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config, vocabulary = ModelConfig.from_dict(settings["model"]), settings["vocabulary"]
        if config.clip is None:
            return config, vocabulary, None
        architecture: Any = config.clip.architecture
        vocabulary_size = int(architecture["text_cfg"]["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: not the settings of an XCLIP: {error!r}") from error
    return config, vocabulary, ClipWeights(architecture, None, tokenizer_for(vocabulary_size, folder / "tokenizer"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: they are damaged.
    """
    try:
        return safetensors().load_file(folder / "model.safetensors")
    except ImportError:
        raise
    except Exception as error:  # safetensors raises a type of its own
        raise ValueError(f"{folder / 'model.safetensors'}: not the weights of this model: {error}") from error


def _download(repository: str) -> Path:
    missing = f"expected a folder, there is none at {repository}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(f"{missing}; for the Hugging Face Hub: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors", "tokenizer/*"]))
    except Exception as error:  # of the network, of the Hub, of the name
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{missing}, nor such a repository on the Hugging Face Hub: {reason}") from error
