"""State dicts: read from files of every kind that CLIP and X-CLIP come in, and compared with a model.

Nothing is unpickled but tensors (torch.load with weights_only=True); OpenAI's archives are TorchScript and are read by
torch.jit.load, as open_clip does.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPENAI = "openai"
_MARKERS = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's archives and nowhere else


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, where a tensor that several names share is there under the first."""
    found: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    for name, value in module.state_dict().items():
        # Tensors without elements share no storage and have no address.
        if value.numel() == 0 or names.setdefault((value.data_ptr(), value.shape), name) == name:
            found[name] = value
    return found


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


def read_state(path: str | os.PathLike[str], device: str = "cpu") -> tuple[dict[str, Tensor], str]:
    """A state dict in fp32, and the kind of file: "openai", "training" (a checkpoint of open_clip) or "plain".

    Args:
        device: "meta": names and shapes will do, so that a torch.save'd file need not be read whole.

    Raises:
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
        ValueError: not a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file, there is none at {path}")
    try:
        values, kind = _read(path, device)
    except ImportError:
        raise
    except Exception as error:  # torch.load, torch.jit and safetensors each have their own
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to unpickle anything
            reason = "it is none of these, or holds more than tensors"
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


def _read(path: Path, device: str) -> tuple[Any, str]:
    if path.suffix == ".safetensors":
        return safetensors().load_file(path), "plain"
    if is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            return dict(torch.jit.load(path, map_location="cpu").state_dict()), OPENAI
    return torch.load(path, map_location=device, weights_only=True), "plain"


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an archive of torch.jit, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def safetensors() -> Any:
    """safetensors.torch.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('checkpoints need safetensors: pip install "multigrain[models]"') from error
    return safetensors.torch
