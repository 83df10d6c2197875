"""Encoder: the methods of a model that search, extraction, evaluation and pictures call, whoever wrote it.

    class Mine(nn.Module):
        frame_size, max_frames = 224, 12

        def __init__(self):
            super().__init__()
            self.scorer = mg.MultiGrain(mg.VideoSentence())

        def encode_text(self, sentences):                # list[str]
            return mg.Features(sentence=...)             # [B, D]

        def encode_video(self, frames, mask):            # [B, N, 3, H, W], [B, N]
            return mg.Features(video=...)                # [B, D]

    search(Mine(), "a dog catches a frisbee", "features/")

`XCLIP` is one of them.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import checks
from ..recipes import Recipe
from ..tokens import Features, Tokens


class Encoder(Protocol):
    """An encoder of sentences, an encoder of videos, and the scorer of what they give.

    It may have more, each of which has a default:

    - `words(sentence)`: one word for each of its word features, for pictures (default: numbers).
    - `recipe`: a Recipe, whose reverse scorer and reranker then take part in an evaluation.
    - `fingerprint()`: plain values that change whenever video features do: a folder of features remembers them
      (default: the name of the class and a digest of all weights).
    - a parameter `index` of `encode_video`, [B, N]: it is then given each distinct frame of a batch once, [U, 3, H, W],
      and the row of each frame.
    """

    @property
    def scorer(self) -> nn.Module:
        """Features x Features -> scores [texts, videos], such as MultiGrain."""
        ...

    @property
    def frame_size(self) -> int:
        """Height and width of the frames that the model wants, in pixels; 0: it takes no frames."""
        ...

    @property
    def max_frames(self) -> int:
        """The most frames of a video."""
        ...

    def encode_text(self, sentences: list[str], /) -> Features:
        """Encode sentences."""
        ...

    def encode_video(self, frames: Tensor, mask: Tensor, /) -> Features:
        """Encode videos: frames [B, N, 3, H, W], uint8, and mask [B, N], True = a real frame."""
        ...


_NEEDED = ("scorer", "frame_size", "max_frames", "encode_text", "encode_video")


def check_encoder(model: object) -> None:
    """Check that a model has all that an `Encoder` must have.

    Raises:
        TypeError: it lacks something; all that is missing is named.
    """
    if missing := [name for name in _NEEDED if not hasattr(model, name)]:
        raise TypeError(
            f"model: expected an encoder with {', '.join(_NEEDED)}, "
            f"got {type(model).__name__} without {', '.join(missing)}"
        )


def check_encoded(name: str, found: object, count: int) -> Features:
    """Return what an encoder's method gave, once it is the Features of so many items.

    Raises:
        TypeError: it is something else.
        ValueError: Features of another number of items.
    """
    features = checks.instance(name, found, Features)
    checks.require(len(features) == count, name, f"Features of {count} items", len(features))
    return features


@contextmanager
def evaluating(model: Encoder | nn.Module) -> Generator[None]:
    """Use a model in eval mode, without gradients; afterwards it is in the mode that it was in."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def device_of(model: Encoder | nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer, the CPU where it has none."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def ranker_of(model: Encoder) -> nn.Module:
    """Return what ranks for a model: its recipe, where it has one, else its scorer."""
    recipe = getattr(model, "recipe", None)
    return recipe if isinstance(recipe, Recipe) else model.scorer


def words_of(model: Encoder, sentence: str, tokens: Tokens) -> list[str]:
    """List what to call the words of a sentence, one for each real token of its features [1, M, D]."""
    words = getattr(model, "words", None)
    return [f"word {i + 1}" for i in range(int(tokens.real_mask.sum()))] if words is None else words(sentence)


def takes_index(model: Encoder) -> bool:
    """Tell whether a model takes the distinct frames of a batch and the row of each."""
    return "index" in inspect.signature(model.encode_video).parameters


def fingerprint(model: Encoder) -> dict[str, Any]:
    """Return plain values that change whenever the video features of a model do."""
    own = getattr(model, "fingerprint", None)
    if own is not None:
        return own()
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    return {"class": type(model).__qualname__, "max_frames": model.max_frames, "weights": digest(state.items())}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in hexadecimal."""
    found = hashlib.sha256()
    for name, value in tensors:
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
