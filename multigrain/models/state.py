"""State dicts: read from every kind of file that CLIP and X-CLIP come in, and compared with a model.

Only tensors are unpickled; OpenAI's archives are TorchScript and are read as data (see torchscript.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from .torchscript import is_torchscript, read_torchscript

OPENAI = "openai"
_MARKERS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's archives and nowhere else
_SMALL = 1 << 20  # numbers that are fine in a file of any size


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, with a tensor that several names share under the first name alone."""
    found: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    for name, value in module.state_dict().items():
        # Tensors without elements share no storage and have no address.
        if value.numel() == 0 or names.setdefault((value.data_ptr(), value.shape), name) == name:
            found[name] = value
    return found


def check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Compare the names and shapes of a state dict with those of a model.

    Raises:
        ValueError: they differ; the first few are named, with the number of all.
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


def read_state(path: str | os.PathLike[str], device: str = "cpu") -> tuple[dict[str, Tensor], str]:
    """Read a state dict in fp32, and the kind of file: "openai", "training" (a checkpoint of open_clip) or "plain".

    Args:
        device: "meta" reads names and shapes alone, so that the numbers of a torch.save'd file are not read.

    Raises:
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
        ValueError: not a state dict, a damaged one, or one of more numbers than bytes.
    """
    path = files.check_file(path, "weights")
    try:
        values, kind = _read_values(path, device)
    except ImportError:
        raise
    except Exception as error:  # zipfile, torch.load and safetensors each have their own
        files.refuse(path, error)
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values, kind = values["state_dict"], "training"
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(f"{path}: expected a state dict, got {type(values).__name__}")
    if sum(value.numel() for value in values.values()) > max(path.stat().st_size, _SMALL):  # one number seen as many
        raise ValueError(f"{path}: expected tensors that are together no larger than the file")
    if all(key.startswith("module.") for key in values):  # DistributedDataParallel's
        values = {key.removeprefix("module."): value for key, value in values.items()}
    if values.keys() & _MARKERS:
        kind = OPENAI
    state = {key: value for key, value in values.items() if key not in _MARKERS | {"attn_mask"}}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, kind


def _read_values(path: Path, device: str) -> tuple[Any, str]:
    if path.suffix == ".safetensors":
        return safetensors().load_file(path), "plain"
    if is_torchscript(path):
        return read_torchscript(path), OPENAI
    return files.load_tensors(path, device), "plain"


def safetensors() -> Any:
    """Import safetensors.torch, or raise an ImportError that says how to install it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('checkpoints need safetensors: pip install "multigrain[models]"') from error
    return safetensors.torch
