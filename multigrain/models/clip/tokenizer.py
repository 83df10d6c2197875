"""From a caption to the token ids that CLIP's text tower reads, and back to the words that they stand for.

Of a folder only vocabularies are read; the class that its settings name, and code that it brings, are not asked for.
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
    """Captions -> ids; the last id is the highest of the vocabulary, which is how CLIP finds the end."""

    def ids(self, sentence: str) -> list[int]:
        """The ids of a caption, the first and the last token included."""
        ...

    def words(self, ids: list[int]) -> list[str]:
        """What each id stands for."""
        ...


class BytePairs:
    """The tokenizer that open_clip ships: CLIP's own byte pairs, no download."""

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
        vocabulary_size: of the text tower.

    Raises:
        ValueError: its vocabulary is not the tower's. Where files are missing and there is no network, transformers
            makes a tokenizer of two tokens and says nothing.
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
    """The tokenizer in a folder of transformers, else open_clip's where the vocabulary is CLIP's, else none.

    Raises:
        ImportError: there is a tokenizer of transformers, and transformers is not installed.
        OSError, ValueError: a tokenizer of another vocabulary, or one that cannot be read.
    """
    if folder is not None and any((Path(folder) / name).is_file() for name in _FILES):
        return HuggingFaceTokenizer(_from_folder(Path(folder)), vocabulary_size)
    return _byte_pairs() if vocabulary_size == CLIP_VOCABULARY else None


@lru_cache(maxsize=1)
def _byte_pairs() -> BytePairs:
    return BytePairs()


def _from_folder(folder: Path) -> Any:
    try:
        from transformers import CLIPTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError('tokenizers of transformers need it: pip install "multigrain[hf]"') from error
    try:
        if (whole := folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(whole))
        lines = files.read_text(folder / "merges.txt").split("\n")
        merges: Any = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return CLIPTokenizer(vocab=files.read_json(folder / "vocab.json"), merges=merges)
    except Exception as error:  # tokenizers raises types of its own
        files.refuse(folder, error)
