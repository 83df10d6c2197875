"""The folder of a model: config.json (all that builds it again, and digests of the other files), model.safetensors, and
a tokenizer/ where it has one.

CLIP's architecture is in config.json as open_clip's settings, so the file that its weights came from is not needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import files
from .clip_weights import ClipWeights
from .config import ModelConfig
from .state import distinct_state, safetensors
from .tokenizer import tokenizer_for

TOKENIZER = "tokenizer"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def write_folder(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    vocabulary: list[str] | None,
    model: nn.Module,
    tokenizer: Any = None,
) -> None:
    """Write a model and its settings; the settings, which have the digests of all other parts, come last.

    Raises:
        OSError: it cannot be written, and the model from before is whole; or another process is writing there.
    """
    folder = files.open_folder(folder, "folder")
    weights = {name: value.detach().cpu().contiguous() for name, value in distinct_state(model).items()}
    parts = {"model.safetensors": safetensors().save(weights, metadata={"format": "pt"}), **_saved(tokenizer)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    settings = {"model": dataclasses.asdict(config), "vocabulary": vocabulary, "sha256": digests}
    with files.lock(folder):
        if tokenizer is not None:
            files.remove_partial(files.open_folder(folder / TOKENIZER, "folder"))
        files.write_together(folder, {**parts, "config.json": json.dumps(settings, indent=2).encode() + b"\n"})
        for old in _tokenizer_files(folder) - parts.keys():
            (folder / old).unlink()


def _saved(tokenizer: Any) -> dict[str, bytes]:
    """The files of a tokenizer of transformers, by their path in the folder of a model."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(Path(folder, TOKENIZER))
        return {name: Path(folder, name).read_bytes() for name in sorted(_tokenizer_files(Path(folder)))}


def _tokenizer_files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in (folder / TOKENIZER).rglob("[!.]*") if path.is_file())
    return {name for name in found if not name.endswith(".tmp")}


def _check_parts(folder: Path, settings: Any) -> None:
    """That weights and tokenizer are those that were written with the settings.

    Raises:
        ValueError: they are not.
    """
    digests = settings.get("sha256") if isinstance(settings, dict) else None
    if not isinstance(digests, dict) or digests.keys() != {"model.safetensors", *_tokenizer_files(folder)}:
        raise ValueError(
            f"{folder / 'config.json'}: expected digests (sha256) of model.safetensors and of the files that are in "
            f"{TOKENIZER}/, got others: parts of two models, or a save that was killed; save the model again"
        )
    for name, sha256 in digests.items():
        files.check_digest(folder / name, sha256)


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
    settings = files.read_json(folder / "config.json")
    _check_parts(folder, settings)
    try:
        config, vocabulary = ModelConfig.from_dict(settings["model"]), settings["vocabulary"]
        if config.clip is None:
            return config, vocabulary, None
        architecture: Any = config.clip.architecture
        vocabulary_size = int(architecture["text_cfg"]["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: not the settings of an XCLIP: {error!r}") from error
    return config, vocabulary, ClipWeights(architecture, None, tokenizer_for(vocabulary_size, folder / TOKENIZER))


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
