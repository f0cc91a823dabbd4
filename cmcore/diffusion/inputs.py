"""Inputs of a network beside the image, its noise level, its label and its augmentation. Imports no torch.

A method declares them and gives their values in a `Condition`; every network embeds them in one way, so that a new one
asks for no change of a network: see `InputEmbedding` in layers/embeddings.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cmcore.config import require

InputKind = Literal["number", "time"]
NO_LABEL = -1  # a dropped label: a zero vector instead of a one-hot one; and no word in a row of words


@dataclass(frozen=True)
class Input:
    """One number for every image, (B,).

    - "number" reaches the network as it is, such as a guidance scale; where it is not given it is `neutral`;
    - "time" is a second noise level, in the units of sigma: CTM's s (arXiv 2310.02279), MeanFlow's r
      (arXiv 2505.13447). It reaches the network as c_noise does; where it is not given it is the noise level itself.
    """

    name: str
    kind: InputKind = "number"
    neutral: float = 1.0

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), "name", "letters, digits and '_'", self.name)


GUIDANCE = Input("guidance")  # the scale of classifier-free guidance; 1 is none


class InputError(ValueError):
    """A network was given what it does not see, or not given what it needs.

    Args:
        name: of the input.
        expected: by the network.
        got: the tensor, or None.
        where: it can be changed.
    """

    def __init__(self, name: str, expected: str, got: Any, where: str) -> None:
        given = "None" if got is None else f"a tensor {tuple(got.shape)}"
        super().__init__(f"{name}: expected {expected}, got {given}; see {where}")


def declared(name: str, value: Any, inputs: Sequence[Input]) -> Input:
    """The input of that name; an InputError where there is none."""
    for known in inputs:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in inputs)
    expected = f"one of the inputs {names}" if names else "None, as the network has no further inputs"
    raise InputError(name, expected, value, "`inputs` of the network, which the run's method declares")
