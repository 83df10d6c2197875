"""Tokenizers: from a caption to the ids that CLIP's text tower reads, and back to the words that they stand for.

Only the vocabularies of a folder are read: no class that its settings name is loaded, and no code that it brings.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ... import files
from ..towers import import_library

CLIP_VOCABULARY = 49408
_FILES = ("tokenizer.json", "vocab.json")


class Tokenizer(Protocol):
    """Turn captions into ids. The id of the last token is the highest of the vocabulary: CLIP finds the end by it."""

    def ids(self, sentence: str) -> list[int]:
        """Return the ids of a caption, the first and the last token included."""
        ...

    def words(self, ids: list[int]) -> list[str]:
        """Return the text of each id."""
        ...


class BytePairs:
    """The tokenizer that open_clip ships: CLIP's own byte pairs, without a download."""

    def __init__(self) -> None:
        self._pairs = import_library("open_clip").SimpleTokenizer()

    def ids(self, sentence: str) -> list[int]:
        """See Tokenizer."""
        return [self._pairs.sot_token_id, *self._pairs.encode(sentence), self._pairs.eot_token_id]

    def words(self, ids: list[int]) -> list[str]:
        """See Tokenizer."""
        return [self._pairs.decode([i]).strip() for i in ids]


class HuggingFaceTokenizer:
    """A tokenizer of transformers.

    Args:
        tokenizer: the instance.
        vocabulary_size: the number of tokens that the text tower knows.

    Raises:
        ValueError: the tokenizer has another vocabulary. Where files are missing and there is no network,
            transformers makes a tokenizer of two tokens and says nothing.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        if len(tokenizer) != vocabulary_size:
            raise ValueError(
                f"tokenizer: expected a vocabulary of {vocabulary_size} tokens, as the text tower's, "
                f"got {len(tokenizer)}; are its files ({', '.join(_FILES)}) in the folder that it came from?"
            )
        self.tokenizer = tokenizer

    def ids(self, sentence: str) -> list[int]:
        """See Tokenizer."""
        return self.tokenizer(sentence)["input_ids"]

    def words(self, ids: list[int]) -> list[str]:
        """See Tokenizer."""
        return [self.tokenizer.decode([i]).removesuffix("</w>").strip() for i in ids]  # CLIP's end of a word


def tokenizer_for(vocabulary_size: int, folder: str | os.PathLike[str] | None = None) -> Tokenizer | None:
    """Return the tokenizer in a folder of transformers, else open_clip's where the vocabulary is CLIP's, else None.

    Raises:
        ImportError: there is a tokenizer of transformers, and transformers is not installed.
        OSError, ValueError: a tokenizer of another vocabulary, or one that cannot be read.
    """
    if folder is not None and any((Path(folder) / name).is_file() for name in _FILES):
        return HuggingFaceTokenizer(_read_tokenizer(Path(folder)), vocabulary_size)
    return _byte_pairs() if vocabulary_size == CLIP_VOCABULARY else None


_byte_pairs = lru_cache(maxsize=1)(BytePairs)


def import_transformers() -> Any:
    """Import transformers, or raise an ImportError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError('models and tokenizers of transformers need it: pip install "multigrain[hf]"') from error
    return transformers


def _read_tokenizer(folder: Path) -> Any:
    transformers = import_transformers()
    try:
        if (file := folder / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
        lines = files.read_text(folder / "merges.txt").split("\n")
        merges: Any = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return transformers.CLIPTokenizer(vocab=files.read_json(folder / "vocab.json"), merges=merges)
    except Exception as error:  # tokenizers raises types of its own
        files.refuse(folder, error)
