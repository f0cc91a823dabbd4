"""The interface of mappings of public weights, and the renaming that they share.

A mapping module has two functions:

- `recognise(named, attributes) -> bool`: whether the tensors are of its family;
- `read(named, attributes) -> PublicNet`: the corresponding network of this project, with the tensors under its names.

`named` are the tensors by their public names. `attributes` describe the network, as far as the file does:
`class_name` and the arguments of its constructor; and hints for the rest: `resolution`, `head_channels`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class MappingError(ValueError):
    """No network of this project corresponds to the file's; the message has one line for each reason."""


@dataclass(frozen=True, kw_only=True)
class PublicNet:
    """A public network as a network of this project."""

    family: str  # for people to read
    kind: str  # a module of cmcore/nets
    options: dict[str, Any]  # fields of its Config that differ from the defaults or identify the network
    channels: int
    resolution: int
    classes: int  # 0 for an unconditional network
    tensors: dict[str, Tensor]  # under the names of the state dict
    unknown: list[str] = field(default_factory=list)  # public names outside the mapping
    sigma_data: float = 0.5
    boundary: bool | None = None  # whether it was trained with eps-shifted scalings; None: the file does not say
    diffusion: bool = False  # the file says that it is a diffusion model
    noise: dict[str, float] = field(default_factory=dict)  # fields of DiffusionConfig that the file states beside it


def renamed(
    named: Mapping[str, Tensor], rename: Callable[[str], str | None], drop: Callable[[str], bool]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under new names, in float32, without those of `drop`; and the names for which `rename` gave None."""
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
    """Rows of a joint projection to q, k and v, reordered to heads, then q, k, v, then channels.

    `order` is that of the file: "hcq" (heads, channels, qkv) or "qhc" (qkv, heads, channels).
    """
    rows = tensor.shape[0] // (3 * heads)
    shape = {"hcq": (heads, rows, 3), "qhc": (3, heads, rows)}[order]
    axes = {"hcq": (0, 2, 1), "qhc": (1, 0, 2)}[order]
    return tensor.reshape(*shape, -1).permute(*axes, 3).reshape(tensor.shape)
