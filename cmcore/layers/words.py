"""Encodings of rows of words (see diffusion/words.py), learned along with the network that reads them."""

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import InputError
from cmcore.diffusion.precond import Condition, Labels, as_condition
from cmcore.diffusion.words import Words
from cmcore.layers.functions import silu
from cmcore.layers.linear import linear
from cmcore.layers.norms import GroupNorm


class WordEncoder(nn.Module):
    """Rows of words (B, L) int64 -> encoded words (B, L, D).

    w + W1 silu(W0 norm(w)), where w is the embedding of a word plus that of its place. "No word" has an embedding like
    every word, so a dropped caption is encoded as the empty one, and attention needs no mask, as in Stable Diffusion.
    """

    def __init__(self, words: Words, channels: int) -> None:
        super().__init__()
        self.words = words
        self.table = nn.Parameter(torch.randn(1 + len(words.vocabulary), channels))
        self.places = nn.Parameter(torch.randn(words.length, channels))
        self.norm = GroupNorm(channels, groups=1)
        self.layer0, self.layer1 = linear(channels, 2 * channels), linear(2 * channels, channels)

    def forward(self, labels: Labels) -> tuple[Tensor, Condition]:
        """The encoded words, and the condition without them.

        Raises:
            InputError: there are none, or rows of another length.
        """
        condition, length = as_condition(labels), self.words.length
        rows = condition.labels
        if rows is None or rows.shape[1:] != (length,):
            wanted = f"rows of {length} words (B, {length}), as the network reads captions"
            raise InputError("labels", wanted, rows, "`conditional` in the parameters")
        w = nn.functional.embedding(rows + 1, self.table) + self.places
        normed = self.norm(w.flatten(0, 1))
        w = w + self.layer1(silu(self.layer0(normed))).reshape(w.shape)
        return w, condition._replace(labels=None)
