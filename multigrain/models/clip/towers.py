"""CLIP's two towers, through open_clip's modules, behind the protocols of towers.py.

    frames   -> pixels normalised as CLIP's -> vision transformer -> [U, D]
    captions -> ids [B, W] -> embedding + position -> causal transformer -> layer norm -> projection -> words [B, W, D]
                              sentence [B, D] = the word at the end-of-text token

A caption ends at its highest id, the end-of-text token: mask = arange <= ids.argmax. Padding has id 0, which is also
"!", so `ids != 0` would be wrong.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..towers import checked_sentences, normalized_pixels
from .tokenizer import Tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Texts: TypeAlias = "Sequence[str] | Tensor | tuple[Tensor, Tensor]"

_TOKEN = 100  # letters that a token stands for at most; of CLIP's the longest has 32
_LAYER_NUMBER = re.compile(r"(?:resblocks|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:conv1|class_embedding|positional_embedding|token_embedding|ln_pre"
    r"|patch_embed|cls_token|pos_embed|norm_pre)(?:\.|$)"
)


class ClipVision(nn.Module):
    """The vision side of an open_clip model.

    Args:
        visual: model.visual.
        dim: D of its features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, dim: int) -> None:
        super().__init__()
        self.visual, self.dim = visual, dim
        size: Any = visual.image_size
        self.size = int(size[0] if isinstance(size, Sequence) else size)
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, rearrange(torch.tensor(value), "c -> c 1 1"), persistent=False)

    def forward(self, frames: Tensor) -> Float[Tensor, "u d"]:
        """Encode frames [U, 3, size, size], uint8 or floating in [0, 1], as features [U, dim], not normalised.

        Raises:
            ValueError: frames of another size.
        """
        if frames.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"frames: expected shape [U, 3, {self.size}, {self.size}], got {list(frames.shape)}")
        return self.visual(normalized_pixels(frames, self.mean, self.std, next(self.visual.parameters()).dtype))

    def blank(self, frames: Tensor) -> Tensor:
        """Return a frame [1, 3, H, W] of the mean colour: zeros after normalisation, as the original pads videos."""
        return self.mean.expand(1, *frames.shape[-3:])


class ClipText(nn.Module):
    """The text side of an open_clip model, with a feature for every token.

    Args:
        clip: the open_clip model.
        tokenizer: None where captions come as ids only.
        max_words: W; longer captions are cut before their last token, with a warning.
        pad_to_max: pad every batch to max_words rather than to its longest caption, where masks are ignored.
        include_bos, include_eos: count the first and the last token among the words.

    Raises:
        ValueError: max_words above CLIP's context length.
    """

    def __init__(
        self,
        clip: Any,
        tokenizer: Tokenizer | None = None,
        max_words: int = 32,
        pad_to_max: bool = False,
        include_bos: bool = True,
        include_eos: bool = True,
    ) -> None:
        super().__init__()
        if max_words > clip.context_length:
            raise ValueError(f"max_words: expected at most {clip.context_length} (CLIP's positions), got {max_words}")
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        self.transformer, self.ln_final, self.text_projection = clip.transformer, clip.ln_final, clip.text_projection
        self.dim: int = clip.text_projection.shape[1]
        self.vocabulary_size: int = clip.token_embedding.num_embeddings
        self.tokenizer, self.max_words, self.pad_to_max = tokenizer, max_words, pad_to_max
        self.include_bos, self.include_eos = include_bos, include_eos

    def words(self, sentence: str) -> list[str]:
        """List the tokens that have a feature, in order."""
        ids, end = self.tokenize([sentence])
        start, stop = 0 if self.include_bos else 1, int(end[0]) + (1 if self.include_eos else 0)
        assert self.tokenizer is not None  # or tokenize had raised
        return self.tokenizer.words(ids[0, start:stop].tolist())

    def tokenize(self, text: Texts) -> tuple[Int[Tensor, "b w"], Int[Tensor, "b"]]:
        """Return ids [B, W], 0 where padded, and the position [B] of each last token, on the device of the model.

        Args:
            text: captions, or ids [B, any length], each row from its first to its last token (the highest id) and
                then padding, or (ids, mask), where the mask says which are tokens.

        Raises:
            TypeError, ValueError: neither; a caption without a word; ids or a mask that do not fit.
        """
        device = self.positional_embedding.device
        if isinstance(text, Tensor):
            ids, end = self._checked(text, None)
        elif isinstance(text, tuple) and len(text) == 2 and isinstance(text[0], Tensor) and isinstance(text[1], Tensor):
            ids, end = self._checked(text[0], text[1])
        else:
            ids = self._encode(text)
            end = ids.argmax(1)
        ids, end = ids.to(device), end.to(device)
        long = end >= self.max_words
        if cut := int(long.sum()):
            warnings.warn(f"{cut} of {len(ids)} captions were cut to {self.max_words} tokens", stacklevel=3)
            last = ids[torch.arange(len(ids), device=device), end]
            ids = ids[:, : self.max_words].clone()
            ids[long, -1] = last[long]
            end = end.clamp_max(self.max_words - 1)
        length = self.max_words if self.pad_to_max else int(end.max()) + 1
        ids = nn.functional.pad(ids[:, :length], (0, max(0, length - ids.shape[1])))
        return ids.masked_fill(torch.arange(length, device=device) > rearrange(end, "b -> b 1"), 0), end

    def forward(self, text: Texts) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b w d"], Bool[Tensor, "b w"]]:
        """Return sentence features, word features and the mask of the words (see tokenize)."""
        ids, end = self.tokenize(text)
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
        words = self.ln_final(self.transformer(x, attn_mask=causal)) @ self.text_projection
        sentence = words[torch.arange(len(ids), device=ids.device), end]
        last = end if self.include_eos else end - 1
        real = torch.arange(length, device=ids.device) <= rearrange(last, "b -> b 1")
        return (sentence, words, real) if self.include_bos else (sentence, words[:, 1:], real[:, 1:])

    def _encode(self, sentences: object) -> Tensor:
        captions = checked_sentences(sentences)
        if self.tokenizer is None:
            raise TypeError(
                f"sentences: expected token ids [B, W] of type torch.long, got strings: no tokenizer is known "
                f"for this text tower's vocabulary of {self.vocabulary_size} tokens"
            )
        rows = [self.tokenizer.ids(_beginning(caption, self.max_words)) for caption in captions]
        if empty := [i for i, row in enumerate(rows) if len(row) < 3]:
            raise ValueError(f"sentences[{empty[0]}]: expected at least one word, got {captions[empty[0]]!r}")
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def _checked(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check ids and their mask; return the ids and the position of each row's last token."""
        if ids.ndim != 2 or 0 in ids.shape:
            raise ValueError(f"ids: expected shape [B, W], got {list(ids.shape)}")
        if ids.dtype != torch.long:
            raise TypeError(f"ids: expected dtype torch.long, got {ids.dtype}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocabulary_size:
            raise ValueError(f"ids: expected numbers from 0 to {self.vocabulary_size - 1}, got {low} to {high}")
        if mask is None:
            return ids, ids.argmax(1)
        if mask.shape != ids.shape or mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool {list(ids.shape)}, got {mask.dtype} {list(mask.shape)}")
        end = reduce(mask, "b w -> b", "sum") - 1
        first = torch.arange(mask.shape[1], device=mask.device) <= rearrange(end, "b -> b 1")
        if not torch.equal(mask, first) or (end < 0).any():
            raise ValueError("mask: expected in each row at least one True, and none after a False")
        return ids, end.to(ids.device)


def _beginning(caption: str, tokens: int) -> str:
    """Cut a caption to the letters that may matter: byte pairs take time quadratic in the letters of a word."""
    most = _TOKEN * tokens
    return caption if len(caption) <= most else " ".join(caption.split())[:most]


def freeze_layers(tower: nn.Module, layers: int | None) -> None:
    """Keep the embeddings and the first layers of a transformer tower as they are, and let the rest train.

    Args:
        tower: CLIP's vision or text, or a vision transformer of timm.
        layers: how many; all of them where there are fewer. The last norm and the projection always train. None
            freezes nothing, not even the embeddings.

    Raises:
        ValueError: the tower has no numbered layers.
    """
    tower.requires_grad_(True)
    if layers is None:
        return
    numbers = {name: _LAYER_NUMBER.search(name) for name, _ in tower.named_parameters()}
    if not any(numbers.values()):
        raise ValueError(f"frozen_layers: expected a transformer, got a {type(tower).__name__} without numbered layers")
    for name, parameter in tower.named_parameters():
        number = numbers[name]
        frozen = int(number[1]) < layers if number else _EMBEDDING.search(name) is not None
        parameter.requires_grad_(not frozen)
