"""What a mapping of public weights gives, and the renaming that mappings share.

A mapping module has two functions:

- `recognise(named, attributes) -> bool`: whether these tensors are of its family;
- `read(named, attributes) -> PublicNet`: which of our networks it is, with the tensors under our names.

`named` are the tensors by their public names. `attributes` are what the file says of its network, if anything:
`class_name` and the arguments it was made with; and hints for what a file may not say: `resolution`, `head_channels`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class MappingError(ValueError):
    """The file holds a network that none of ours is; the message has one line for each reason."""


@dataclass(frozen=True, kw_only=True)
class PublicNet:
    """A public network as one of ours."""

    family: str  # for people to read
    kind: str  # a module of cmcore/nets
    options: dict[str, Any]  # fields of its Config, where they differ from the defaults or tell the network apart
    channels: int
    resolution: int
    classes: int  # 0 for an unconditional network
    tensors: dict[str, Tensor]  # under the names of our state dict
    unknown: list[str] = field(default_factory=list)  # public names that the mapping has no place for
    sigma_data: float = 0.5
    boundary: bool | None = None  # whether it was trained with eps-shifted scalings; None: the file does not say


def renamed(
    named: Mapping[str, Tensor], rename: Callable[[str], str | None], drop: Callable[[str], bool]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under new names, in float32, and the names that `rename` has no answer for; some are dropped."""
    tensors, unknown = {}, []
    for name, tensor in named.items():
        if drop(name):
            continue
        new = rename(name)
        if new is None:
            unknown.append(name)
        else:
            tensors[new] = tensor.float()
    return tensors, unknown


def heads_first(tensor: Tensor, heads: int, order: str) -> Tensor:
    """Rows of a joint projection to q, k and v, brought into our order: heads, then q, k, v, then channels.

    `order` is theirs: "hcq" (heads, channels, qkv) or "qhc" (qkv, heads, channels).
    """
    rows = tensor.shape[0] // (3 * heads)
    shape = {"hcq": (heads, rows, 3), "qhc": (3, heads, rows)}[order]
    axes = {"hcq": (0, 2, 1), "qhc": (1, 0, 2)}[order]
    return tensor.reshape(*shape, -1).permute(*axes, 3).reshape(tensor.shape)
