"""Captions that an encoder from elsewhere has encoded: a table that networks look them up in.

Labels are then rows of one number (B, 1): that of a caption in the table, and NO_LABEL for the empty one. The table is
no part of a network or of its weights. Who opens the data, or is given prompts, provides it for the process.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import NO_LABEL, InputError
from cmcore.diffusion.precond import Condition, Labels, as_condition
from cmcore.diffusion.words import Text, Words
from cmcore.layers.linear import linear
from cmcore.layers.words import WordEncoder

_tables: dict[str, tuple[Tensor, dict[str, int]]] = {}  # by the digest of the encoder


def provide(encoder: str, captions: Sequence[str], vectors: np.ndarray) -> None:
    """Make captions known by number, in place of those that were: vectors (1 + M, T, D), the first of no caption."""
    _tables[encoder] = (torch.from_numpy(vectors), {caption: number for number, caption in enumerate(captions)})


def add(encoder: str, captions: Sequence[str], vectors: np.ndarray) -> None:
    """Make captions known beside those that are, which keep their numbers; vectors (1 + M, T, D) as of `provide`."""
    if encoder not in _tables:
        return provide(encoder, captions, vectors)
    table, numbers = _tables[encoder]
    more = {caption: len(table) - 1 + index for index, caption in enumerate(captions)}
    _tables[encoder] = (torch.cat([table, torch.from_numpy(vectors[1:]).to(table)]), numbers | more)
    return None


def number(encoder: str, caption: str) -> int:
    """The number of a caption; a ValueError where it is not known."""
    if not caption:
        return NO_LABEL
    _, numbers = _tables.get(encoder, (None, {}))
    if caption not in numbers:
        raise ValueError(f"prompt: expected one of the {len(numbers)} captions that were encoded, got {caption!r}")
    return numbers[caption]


def captions_of(encoder: str) -> list[str]:
    """The captions that are known, by their numbers."""
    return list(_tables[encoder][1])


class TextTable(nn.Module):
    """Labels (B, 1) int64 -> the vectors of their captions (B, T, D), and the condition without them."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text
        self.words = text  # as the encoder of words names what it reads

    def forward(self, labels: Labels) -> tuple[Tensor, Condition]:
        """The vectors, and the condition without the labels.

        Raises:
            InputError: there are no labels, or none of one number.
            RuntimeError: no table of the encoder was provided.
        """
        condition, text = as_condition(labels), self.text
        rows = condition.labels
        if rows is None or rows.shape[1:] != (1,):
            wanted = "numbers of encoded captions (B, 1), as the network reads them"
            raise InputError("labels", wanted, rows, "`conditional` in the parameters")
        if rows.is_meta:
            return torch.zeros(len(rows), text.tokens, text.width, device=rows.device), condition._replace(labels=None)
        if text.encoder not in _tables:
            raise RuntimeError(f"expected captions encoded by {text.encoder[:16]}..., got none; see `data.text`")
        table, numbers = _tables[text.encoder]
        if table.device != rows.device:
            table = table.to(rows.device)
            _tables[text.encoder] = (table, numbers)
        return table[rows[:, 0] + 1], condition._replace(labels=None)


class TextProjection(TextTable):
    """The same with the vectors brought to the width of a network, (B, T, channels)."""

    def __init__(self, text: Text, channels: int) -> None:
        super().__init__(text)
        self.layer = linear(text.width, channels)

    def forward(self, labels: Labels) -> tuple[Tensor, Condition]:
        """The projected vectors, and the condition without the labels."""
        vectors, condition = super().forward(labels)
        return self.layer(vectors.to(self.layer.weight.dtype)), condition


def caption_encoder(words: Words | Text, channels: int) -> WordEncoder | TextTable:
    """The encoder of captions for a network that attends to vectors of so many channels."""
    return WordEncoder(words, channels) if isinstance(words, Words) else TextProjection(words, channels)
