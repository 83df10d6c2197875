"""Towers: frames -> frame features, sentences -> sentence and word features.

`FrameTower` and `TextTower` are all that XCLIP asks of an encoder. `TimmTower` and `WordTower` are the two that
can be trained from scratch, `FeatureTower` takes features that were computed before; CLIP's are in clip/.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..checks import whole_text
from ..heads.transformer import Transformer

_SPREAD = 0.3  # standard deviation of embeddings and positions at the start
_WORD = re.compile(r"\w+|[^\w\s]")


class FrameTower(Protocol):
    """frames [U, 3, H, W], uint8 or floating in [0, 1] -> features [U, D]."""

    dim: int
    size: int
    """height and width of the frames that the tower wants"""

    def __call__(self, frames: Tensor) -> Tensor:
        """Encode frames as features [U, dim], not normalised."""
        ...

    def blank(self, frames: Tensor) -> Tensor:
        """Return a frame [1, 3, H, W] of their size that is zero once normalised: padding where masks are off."""
        ...


class TextTower(Protocol):
    """sentences -> (sentence features [B, D], word features [B, M, D], mask [B, M], True = a real word)."""

    dim: int
    max_words: int

    def __call__(self, sentences: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a list of strings, or whatever else the tower reads, as features of width dim, not normalised."""
        ...

    def words(self, sentence: str) -> list[str]:
        """List the words of a sentence, one for each of its word features."""
        ...


class TimmTower(nn.Module):
    """Any timm vision model, trained from scratch, and a projection without bias.

    Args:
        name: of a timm model.
        dim: D of the features.
        kwargs: for timm.create_model, such as img_size, patch_size, embed_dim, depth. With global_pool="" the
            features of all places go into the projection side by side, so that it can tell them apart.
        mean, std: of the pixels in [0, 1], each one number for all channels or three; None = the model's own.

    Raises:
        ImportError: timm is not installed, or cannot be imported; the message says what to do.
        ValueError: a name or arguments that timm does not know.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        kwargs: Mapping[str, Any] | None = None,
        mean: float | Sequence[float] | None = 0.5,
        std: float | Sequence[float] | None = 0.5,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = create_timm(name, {**(kwargs or {}), "num_classes": 0})
        self.size = _size_of(self.backbone, kwargs or {})
        self.projection = nn.Linear(_features_of(self.backbone, kwargs or {}), dim, bias=False)
        for key, given in (("mean", mean), ("std", std)):
            value: Any = self.backbone.default_cfg[key] if given is None else given  # type: ignore[index]
            value = torch.as_tensor(value).float().reshape(-1)  # one number, or three
            self.register_buffer(key, rearrange(value, "c -> c 1 1"), persistent=False)

    def forward(self, frames: Tensor) -> Float[Tensor, "u d"]:
        """Encode frames [U, 3, H, W], uint8 or floating in [0, 1], as features [U, dim]."""
        pixels = normalized_pixels(frames, self.mean, self.std, self.projection.weight.dtype)
        return self.projection(rearrange(self.backbone(pixels), "u ... -> u (...)"))

    def blank(self, frames: Tensor) -> Tensor:
        """Return a frame [1, 3, H, W] of the mean colour."""
        return self.mean.expand(1, *frames.shape[-3:])


def normalized_pixels(frames: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute (pixels - mean) / std of frames [U, 3, H, W], uint8 or floating in [0, 1]; mean and std are [3, 1, 1].

    Raises:
        ValueError: floating frames that hold 0 to 255, NaN or infinity.
    """
    # 16 rather than 1: interpolation may overshoot, and frames of noise are allowed; the usual mistake is 255.
    if frames.is_floating_point() and frames.numel():
        low, high = map(float, frames.aminmax())
        if not (low >= -16 and high <= 16):  # true of NaN too
            raise ValueError(
                f"frames: expected floating pixels in [0, 1] (or uint8 from 0 to 255), got {low:g} to {high:g}"
            )
    pixels = frames.to(dtype)
    return ((pixels if frames.is_floating_point() else pixels / 255) - mean) / std


class FeatureTower(nn.Module):
    """The identity, for an XCLIP over features that were computed before: of frames, of texts or of both.

    A frame tower takes features [U, D] (so that XCLIP takes [B, N, D]), a text tower a tuple (sentence features [B, D],
    word features [B, M, D], mask [B, M]).

    Args:
        dim: D.
        max_words: the most words of a sentence, for whoever asks the model.
    """

    size = 0  # there are no pixels

    def __init__(self, dim: int, max_words: int = 32) -> None:
        super().__init__()
        self.dim, self.max_words = dim, max_words

    def forward(self, features: Any) -> Any:
        """Return the features as they are.

        Raises:
            ValueError: features of another width.
        """
        got = (features if isinstance(features, Tensor) else features[0]).shape[-1]
        if got != self.dim:
            raise ValueError(f"features: expected width {self.dim}, got {got}")
        return features

    def blank(self, frames: Tensor) -> Tensor:
        """Return one feature [1, D] of zeros."""
        return torch.zeros_like(frames[:1])

    def words(self, sentence: str) -> list[str]:
        """Raise a TypeError: features that were computed before have no words."""
        raise TypeError(f"sentences: expected features that were computed before, got the text {sentence!r}")


def import_library(name: str) -> Any:
    """Import timm or open_clip, or raise an ImportError that says what to do."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name != name:
            raise
        raise ImportError(f'towers need {name}: pip install "multigrain[models]"') from error
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise ImportError(
            f"{name} cannot be imported: the installed torchvision was built for another torch than "
            f"{torch.__version__} ({error}). For a CPU torch: pip install --force-reinstall --no-deps torchvision "
            f"--index-url https://download.pytorch.org/whl/cpu"
        ) from error


def create_timm(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Call timm.create_model(name, **kwargs), with errors that say what to do (see TimmTower)."""
    timm = import_library("timm")
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(
            f"vision name: expected a model of timm {timm.__version__}, got {name!r}"
            + (f"; there are {', '.join(similar)}, ..." if similar else "; timm.list_models() has them all")
        )
    try:
        return timm.create_model(name, **kwargs)
    # Arguments that do not fit make its modules raise any of these.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"vision kwargs: timm's {name!r} does not take {dict(kwargs)}: {reason}") from error


@torch.no_grad()
def _features_of(backbone: nn.Module, kwargs: Mapping[str, Any]) -> int:
    """Count the numbers per frame: the model's width, with global_pool="" times the number of places."""
    if kwargs.get("global_pool") != "":
        return int(backbone.num_features)  # type: ignore[arg-type]
    size = _size_of(backbone, kwargs)
    return backbone.eval()(torch.zeros(1, 3, size, size)).numel()


def _size_of(backbone: nn.Module, kwargs: Mapping[str, Any]) -> int:
    """Return the side of the frames that a timm model was made for."""
    return int(kwargs.get("img_size") or backbone.default_cfg["input_size"][-1])  # type: ignore[index]


def split_words(sentence: str) -> list[str]:
    """Split a sentence into lower-case words and punctuation marks."""
    return _WORD.findall(whole_text(sentence).lower())


def checked_sentences(sentences: object) -> list[str]:
    """Return the sentences as a list, each passed through checks.whole_text.

    Raises:
        TypeError: something else than a list of strings.
        ValueError: no sentence.
    """
    if isinstance(sentences, str):
        raise TypeError(f"sentences: expected a list of strings, got one string {sentences!r}")
    if not isinstance(sentences, Sequence):
        raise TypeError(f"sentences: expected a list of strings, got {type(sentences).__name__}")
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(f"sentences[{i}]: expected a string, got {type(sentence).__name__}")
    if not sentences:
        raise ValueError("sentences: expected at least one, got none")
    return [whole_text(sentence) for sentence in sentences]


def build_vocabulary(sentences: Iterable[str]) -> list[str]:
    """List all words of the sentences, sorted."""
    return sorted({word for sentence in sentences for word in split_words(sentence)})


class WordTower(nn.Module):
    """A transformer over the words of a sentence, from a vocabulary of its own.

    A learned token in front gathers the sentence vector; the words follow, each with a feature. A word outside
    the vocabulary shares one embedding of zeros, so that it says where it stands and nothing else.

    Args:
        vocabulary: the words that have an embedding (see build_vocabulary).
        dim: D of the features.
        width, depth, heads: of the transformer.
        max_words: M; a longer sentence is cut, with a warning.
        dropout: in [0, 1), in training.
        pad_to_max: pad every batch to max_words rather than to its longest sentence; where masks are ignored, a
            score would otherwise depend on the other sentences of the batch.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        dim: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        max_words: int = 48,
        dropout: float = 0.0,
        pad_to_max: bool = False,
    ) -> None:
        super().__init__()
        if not vocabulary:
            raise ValueError("vocabulary: expected at least one word, got none")
        self.vocabulary, self.dim = list(vocabulary), dim
        self.max_words, self.pad_to_max = max_words, pad_to_max
        self._ids = {word: i for i, word in enumerate(self.vocabulary, 1)}
        # Row 0 is for padding and for unknown words: zeros that are never trained.
        self.embedding = nn.Embedding(len(self.vocabulary) + 1, width, padding_idx=0)
        # As large as each other: a position too small to see makes a bag of words at first, and
        # "red ball, blue key" learns slowly that the ball is the red one.
        self.start = nn.Parameter(_SPREAD * torch.randn(width))
        self.position = nn.Parameter(_SPREAD * torch.randn(max_words, width))
        with torch.no_grad():
            self.embedding.weight.mul_(_SPREAD)
        self.transformer = Transformer(width, depth, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, dim, bias=False)

    def words(self, sentence: str) -> list[str]:
        """List the words that have a feature, in order."""
        return split_words(sentence)[: self.max_words]

    def tokenize(self, sentences: Sequence[str]) -> tuple[Int[Tensor, "b m"], Bool[Tensor, "b m"]]:
        """Return word ids (0 = unknown or padding) and their mask, on the device of the model.

        Raises:
            TypeError: something else than a list of strings.
            ValueError: no sentence, or one without a word; its position is named.
        """
        split = [split_words(sentence) for sentence in checked_sentences(sentences)]
        if empty := [i for i, words in enumerate(split) if not words]:
            raise ValueError(f"sentences[{empty[0]}]: expected at least one word, got {sentences[empty[0]]!r}")
        if long := sum(len(words) > self.max_words for words in split):
            warnings.warn(f"{long} of {len(split)} sentences were cut to {self.max_words} words", stacklevel=3)
        length = self.max_words if self.pad_to_max else min(self.max_words, max(map(len, split)))
        ids = torch.zeros(len(split), length, dtype=torch.long)
        mask = torch.zeros(len(split), length, dtype=torch.bool)
        for row, words in enumerate(split):
            known = [self._ids.get(word, 0) for word in words[:length]]
            ids[row, : len(known)] = torch.tensor(known)
            mask[row, : len(known)] = True
        return ids.to(self.start.device), mask.to(self.start.device)

    def forward(
        self, sentences: Sequence[str]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """Return sentence features, word features and the mask of the words."""
        ids, mask = self.tokenize(sentences)
        words = self.embedding(ids) + self.position[: ids.shape[1]]
        tokens = torch.cat([repeat(self.start, "d -> b 1 d", b=len(ids)), words], 1)
        hidden = self.transformer(tokens, torch.cat([mask.new_ones(len(ids), 1), mask], 1))
        features = self.projection(self.norm(hidden))
        return features[:, 0], features[:, 1:], mask
