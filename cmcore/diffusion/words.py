"""Captions as rows of words, which networks see where they see class labels. Imports no torch.

A word is a run of letters, digits and underscores, or one other sign; case is ignored. A data set has one vocabulary,
and networks learn its words along with the images. A caption is a row of as many indices as the longest caption has
words, NO_LABEL after its last one; so a dropped caption, and the empty one, is a row of NO_LABEL alone.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cmcore.config import require
from cmcore.diffusion.inputs import NO_LABEL

Conditional = bool | Literal["words"]
"""Whether networks see labels: none, class indices, or rows of words."""
_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    return _WORD.findall(caption.lower())


@dataclass(frozen=True)
class Text:
    """Captions encoded by an encoder from elsewhere, which networks see by their numbers (layers/text.py)."""

    encoder: str  # digest of its weights and of its tokenizer
    tokens: int  # vectors of a caption
    width: int  # numbers of a vector

    @property
    def length(self) -> int:
        """Numbers of a label."""
        return 1


@dataclass(frozen=True)
class Words:
    """The vocabulary of a data set of captions, and the number of words of its longest caption."""

    vocabulary: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        ordered = bool(self.vocabulary) and list(self.vocabulary) == sorted(set(self.vocabulary))
        require(ordered, "vocabulary", "at least one word, each once and in order", self.vocabulary[:8])
        require(self.length >= 1, "length", "at least 1", self.length)

    @classmethod
    def of(cls, captions: Iterable[str]) -> "Words":
        """The words of some captions; a ConfigError where there are none."""
        split = [split_words(caption) for caption in captions]
        return cls(tuple(sorted({word for words in split for word in words})), max(map(len, split), default=0))

    @property
    def digest(self) -> str:
        """Hex digest of the vocabulary, whose order gives the indices their meaning."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: k for k, word in enumerate(self.vocabulary)}

    def encode(self, caption: str) -> list[int]:
        """The row of a caption.

        Raises:
            ValueError: it has a word that is not in the vocabulary, or more words than the longest caption.
        """
        words = split_words(caption)
        unknown = next((word for word in words if word not in self._index), None)
        if unknown is not None:
            known = ", ".join(self.vocabulary[:40]) + (", ..." if len(self.vocabulary) > 40 else "")
            raise ValueError(f"prompt: expected words of the captions that were learned ({known}), got {unknown!r}")
        if len(words) > self.length:
            raise ValueError(f"prompt: expected at most {self.length} words, got {len(words)}")
        return [self._index[word] for word in words] + [NO_LABEL] * (self.length - len(words))

    def decode(self, row: Iterable[int]) -> str:
        """The caption of a row, its words with spaces between."""
        return " ".join(self.vocabulary[index] for index in row if index != NO_LABEL)
