"""The blocks of a network, and what they make of noisy images."""

import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import Denoiser, Labels
from cmcore.tensors import expand_like


def blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of a network, or of the library's in it: the members of its lists and dictionaries of modules."""
    return [
        block
        for child in getattr(net, "library", net).children()
        if isinstance(child, nn.ModuleList | nn.ModuleDict)
        for block in child.children()
    ]


def block_maps(denoiser: Denoiser, x: Tensor, sigma: Tensor, labels: Labels = None) -> list[Tensor]:
    """The outputs of all blocks, as maps (B, C, H, W), for images x (B, C, H, W) of noise levels sigma (B,).

    Tokens (B, T, C) are maps (B, C, T, 1), vectors (B, C) maps (B, C, 1, 1). Of a network without blocks it is its own
    output. A compiled network is run as it was written.
    """
    found: list[Tensor] = []
    parts = blocks(denoiser.net) or [denoiser.net]
    hooks = [part.register_forward_hook(lambda _, inputs, output: found.append(_map(output))) for part in parts]
    try:
        scalings = denoiser.scalings(sigma)
        dtype = next((p.dtype for p in denoiser.net.parameters()), x.dtype)
        # A hook that comes after compiling would not be seen.
        with torch.compiler.set_stance("force_eager"):
            denoiser.raw((expand_like(scalings.c_in, x) * x).to(dtype), scalings.c_noise, labels)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _map(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    if isinstance(output, tuple):  # of diffusers: beside it what goes across to the way up
        output = output[0]
    if output.ndim == 4:
        return output
    return output.mT[..., None] if output.ndim == 3 else output[..., None, None]
