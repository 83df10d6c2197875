"""The folder of a model: config.json (settings, and digests of the other files), model.safetensors, perhaps tokenizer/.

CLIP's architecture is in config.json as open_clip's settings, so the file that its weights came from is not needed.
Nothing in a folder can make the reader open another file, reach an address or import a module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import files
from .build import ONLINE
from .clip.tokenizer import tokenizer_for
from .clip.weights import ClipWeights, check_architecture
from .config import ModelConfig, import_trusted
from .state import distinct_state, safetensors

TOKENIZER = "tokenizer"
_HUB = re.compile(r"hub:([\w-][\w.-]*/[\w.-]+)")
_FETCHED = ["config.json", "model.safetensors", f"{TOKENIZER}/*.json", f"{TOKENIZER}/*.txt"]


def write_folder(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    vocabulary: list[str] | None,
    model: nn.Module,
    tokenizer: Any = None,
) -> None:
    """Write a model and its settings; the settings come last, since they hold the digests of all other parts.

    Raises:
        OSError: it cannot be written, and the model from before is intact; or another process is writing there.
    """
    folder = files.open_folder(folder, "folder")
    weights = {name: value.detach().cpu().contiguous() for name, value in distinct_state(model).items()}
    parts = {"model.safetensors": safetensors().save(weights, metadata={"format": "pt"}), **_tokenizer_parts(tokenizer)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    settings = {"model": dataclasses.asdict(config), "vocabulary": vocabulary, "sha256": digests}
    with files.lock(folder):
        if tokenizer is not None:
            files.remove_partial(files.open_folder(folder / TOKENIZER, "folder"))
        files.write_together(folder, {**parts, "config.json": json.dumps(settings, indent=2).encode() + b"\n"})
        for old in _tokenizer_files(folder) - parts.keys():
            (folder / old).unlink()


def _tokenizer_parts(tokenizer: Any) -> dict[str, bytes]:
    """Return the files of a tokenizer of transformers, by their path in the folder of a model."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(Path(folder, TOKENIZER))
        return {name: Path(folder, name).read_bytes() for name in sorted(_tokenizer_files(Path(folder)))}


def _tokenizer_files(folder: Path) -> set[str]:
    """List the vocabularies and settings of a tokenizer; nothing else in its folder is read."""
    found = (path for path in (folder / TOKENIZER).glob("[!.]*") if path.suffix in (".json", ".txt") and path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def _check_parts(folder: Path, settings: Any) -> None:
    """Refuse weights or a tokenizer that were not written together with the settings."""
    digests = settings.get("sha256") if isinstance(settings, dict) else None
    if not isinstance(digests, dict) or digests.keys() != {"model.safetensors", *_tokenizer_files(folder)}:
        raise ValueError(
            f"{folder / 'config.json'}: expected digests (sha256) of model.safetensors and of the files that are in "
            f"{TOKENIZER}/, got others: parts of two models, or a save that was killed; save the model again"
        )
    for name, sha256 in digests.items():
        files.check_digest(folder / name, sha256)


def find_folder(place: str | os.PathLike[str]) -> Path:
    """Find the folder, or for "hub:owner/name" the local copy of that repository of the Hugging Face Hub.

    Raises:
        FileNotFoundError: there is none, or one of the two files is missing.
    """
    repository = _HUB.fullmatch(os.fspath(place))
    folder = _fetch(repository[1]) if repository else Path(place)
    if (folder / "model" / "model.safetensors").is_file():
        folder /= "model"  # the folder of a run
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"expected a folder with config.json and model.safetensors, {name} is missing in {folder}"
            )
    return folder


def read_settings(folder: Path, trust: Sequence[str] = ()) -> tuple[ModelConfig, list[str] | None, ClipWeights | None]:
    """Read the settings, the vocabulary of a text tower from scratch, and CLIP (without weights) where it is in use.

    Args:
        trust: see XCLIP.from_pretrained.

    Raises:
        ValueError: they are damaged, or reach for files, the network or code of others.
    """
    path = folder / "config.json"
    settings = files.read_json(path)
    _check_parts(folder, settings)
    try:
        config, vocabulary = ModelConfig.from_dict(settings["model"]), settings["vocabulary"]
        if vocabulary is not None and not all(isinstance(word, str) for word in vocabulary):
            raise ValueError("vocabulary: expected words")
        for vision in (config.vision, None if config.clip is None else config.clip.vision):
            if vision is not None and (named := [name for name in ONLINE if name in vision.kwargs]):
                raise ValueError(f"vision.kwargs: expected nothing from files or the network, got {named[0]}")
        import_trusted(config, trust)
        if config.clip is None:
            return config, vocabulary, None
        architecture = config.clip.architecture
        if not isinstance(architecture, dict):
            raise ValueError(f"clip.architecture: expected settings by name, got {architecture!r}")
        check_architecture(architecture)
        size = int(architecture["text_cfg"]["vocab_size"])
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not the settings of an XCLIP: {reason}") from error
    return config, vocabulary, ClipWeights(architecture, None, tokenizer_for(size, folder / TOKENIZER))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights.

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


def _fetch(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("the Hugging Face Hub needs it: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=_FETCHED))
    except Exception as error:  # of the network, of the Hub, of the name
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"no repository {repository} on the Hugging Face Hub: {reason}") from error
