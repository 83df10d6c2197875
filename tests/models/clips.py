"""Tiny CLIPs with random weights, and the files that they come in."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

# CLIP's vocabulary, so that captions can be strings; small everywhere else.
SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}
CAPTIONS = ["a man rides a horse", "two dogs!! play in the snow, and a cat sleeps"]


def sizes(**changes: Any) -> dict[str, Any]:
    """SIZES with some of them changed: text_cfg and vision_cfg by their own settings."""
    out = copy.deepcopy(SIZES)
    for name, value in changes.items():
        out[name] = {**out[name], **value} if isinstance(value, dict) else value
    return out


def tiny_clip(**changes: Any) -> Any:
    """An open_clip.CLIP of these sizes, biases included in what is random."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**sizes(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def saved(model: nn.Module, path: Path) -> Path:
    """The state dict in a file."""
    torch.save(model.state_dict(), path)
    return path


class _Archive(nn.Module):
    """Parameters by their dotted names, without the code that uses them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def torchscript(state: dict[str, Tensor], path: Path) -> Path:
    """An archive as OpenAI's: TorchScript, in half precision, with three numbers beside the weights."""
    root = _Archive()
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    for name, value in {**state, **numbers}.items():
        *parents, leaf = name.split(".")
        module: nn.Module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module._modules[parent]  # type: ignore[assignment]
        module.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(root, torch.zeros(1), check_trace=False), path)
    return path
