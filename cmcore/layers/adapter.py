"""Low-rank adapters of linear layers and convolutions: LoRA (Hu et al., arXiv 2106.09685), W + (alpha/r) B A.

An adapter is a parametrisation of a layer's weight W, which keeps its name and shape for everyone who asks for it, so
that every network and loss can be trained so. W is computed at every use: a merged weight is the same to the last bit.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cmcore.layers.magnitude import MPConv

LAYERS = (nn.Linear, nn.Conv2d, MPConv)
WITHIN = ".parametrizations.weight"  # where torch keeps the parts of a weight, behind the name of its layer
ORIGINAL, PART = f"{WITHIN}.original", f"{WITHIN}.0."
A, B = "lora_A.weight", "lora_B.weight"  # the names of peft, behind that of the layer
ALL = ".*"


class LowRank(nn.Module):
    """W (outputs, inputs, ...) -> W + scale B A with A (rank, inputs, ...) and B (outputs, rank, 1, ...), at first 0.

    Args:
        weight: W.
        rank: r.
        alpha: the scale is alpha/r.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        A = torch.empty(rank, *weight.shape[1:], dtype=weight.dtype)  # drawn on the CPU: the same on every device
        self.A = nn.Parameter(nn.init.kaiming_uniform_(A, a=math.sqrt(5)).to(weight.device))  # as peft begins
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank, *[1] * (weight.ndim - 2)))
        self.register_buffer("scale", weight.new_tensor(alpha / rank))

    def forward(self, W: Tensor) -> Tensor:
        return with_product(W, self.A, self.B, self.get_buffer("scale"))


def with_product(W: Tensor, A: Tensor, B: Tensor, scale: Tensor | float) -> Tensor:
    """W + scale B A, in the shape of W."""
    return W + scale * (B.flatten(1) @ A.flatten(1)).reshape(W.shape)


def attach(net: nn.Module, rank: int, alpha: float, targets: str = ALL) -> None:
    """Freeze a network and give its layers adapters, in place: only these are trained.

    Args:
        net: the network.
        rank: of all adapters.
        alpha: their scale times the rank.
        targets: a regular expression; the layers whose whole name it matches.

    Raises:
        ValueError: it matches the name of no layer.
    """
    net.requires_grad_(False)
    layers = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    chosen = [module for name, module in layers.items() if re.fullmatch(targets, name)]
    if not chosen:
        raise ValueError(f"train.adapter.targets: expected to match one of {', '.join(layers)}, got {targets!r}")
    for module in chosen:
        weight = module.get_parameter("weight")
        parametrize.register_parametrization(module, "weight", LowRank(weight, rank, alpha))


def detach(net: nn.Module) -> None:
    """Make plain weights of those with adapters, in place. A network that this one was copied from keeps its own."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight.detach()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            # torch's `remove_parametrizations` takes the weight from the class, which a module shares with its copies.
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))  # as `attach` left it


def is_adapted(net: nn.Module) -> bool:
    """Whether a network has adapters."""
    return any(isinstance(module, LowRank) for module in net.modules())


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network with adapters under the names of the same network without; of any other as they are."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, inside, part = name.partition(WITHIN)
        if not inside:
            plain[name] = tensor
        elif part == ".original":
            parts = [weights[f"{layer}{PART}{key}"] for key in ("A", "B", "scale")]
            plain[f"{layer}.weight"] = with_product(tensor, *parts)
    return plain


def adapter_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B of every layer under the names of peft, from the weights of a network with adapters."""
    return {
        f"{name.removesuffix(f'{PART}{part}')}.{known}": tensor
        for name, tensor in weights.items()
        for part, known in (("A", A), ("B", B))
        if name.endswith(f"{PART}{part}")
    }


def adapted_layers(adapter: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers that an adapter is of."""
    return [name.removesuffix(f".{A}") for name in adapter if name.endswith(f".{A}")]


def added(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scales: Mapping[str, float]
) -> dict[str, Tensor]:
    """The weights of a network with an adapter merged into them.

    Args:
        weights: by name.
        adapter: see `adapter_of`.
        scales: what B A is multiplied with, by layer.

    Raises:
        ValueError: the network has no such layer, or one of another shape.
    """
    sums = dict(weights)
    for layer in adapted_layers(adapter):
        a, b, name = adapter[f"{layer}.{A}"], adapter[f"{layer}.{B}"], f"{layer}.weight"
        wanted = (len(b), *a.shape[1:])
        if name not in sums or sums[name].shape != wanted:
            got = f"one of {tuple(sums[name].shape)}" if name in sums else "none"
            raise ValueError(f"the adapter is of a layer {layer} with a weight {wanted}; the network has {got}")
        sums[name] = with_product(sums[name], a.to(sums[name]), b.to(sums[name]), scales[layer])
    return sums
