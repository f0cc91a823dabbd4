"""LPIPS, the learned perceptual distance (arXiv 1801.03924), as a `Distance`.

The `lpips` package contains the linear heads only. The trunk's ImageNet weights are torchvision's file of that network,
given by a path; nothing is downloaded.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cmcore.errors import DataError, reason
from cmcore.nets.public.foreign import load_foreign
from cmcore.torchvision_ops import import_torchvision

Trunk = Literal["vgg", "alex", "squeeze"]
Pooling = Literal["max", "average"]
UNRESIZED = 256  # images of this side or above are not resized in OpenAI's code


class LPIPS(nn.Module):
    """(B, C, H, W), (B, C, H, W) in [-1, 1] -> (B,); the network is frozen, gradients reach the images.

    Args:
        resize: side to which images below 256 pixels are resized first (the CM paper uses 224); 0 leaves them.
    """

    def __init__(self, net: nn.Module, resize: int = 0) -> None:
        super().__init__()
        self.net, self.resize = net.eval().requires_grad_(False), resize

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(self._prepare(a), self._prepare(b)).flatten()

    def _prepare(self, x: Tensor) -> Tensor:
        x = x.float().expand(-1, 3, -1, -1)
        if not self.resize or x.shape[-1] >= UNRESIZED:
            return x
        return nn.functional.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)


def load_lpips(
    weights: str | Path,
    trunk: Trunk = "vgg",
    *,
    pooling: Pooling = "max",
    resize: int = 224,
    device: torch.device | str = "cpu",
) -> LPIPS:
    """LPIPS with the heads of v0.1 on a trunk whose torchvision weights are in the file `weights`.

    Average pooling is that of openai/consistency_models (cm/karras_diffusion.py), which made CM's numbers on ImageNet
    64 and LSUN; those on CIFAR-10 (openai/consistency_models_cifar10) were made with LPIPS's own max pooling.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: lpips or torchvision is not installed.
        DataError: the file does not hold that trunk.
    """
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS: expected torchvision's {trunk} weights, got no file at {str(weights)!r}; "
            "name the file, or choose the distance pseudo_huber"
        )
    import_torchvision()
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision with arguments of an older version
        net: Any = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    _fill(net.net, path, trunk)
    if pooling == "average":
        _average(net.net)
    return LPIPS(net, resize).to(device)


def _average(trunk: nn.Module) -> None:
    """Replace max by average pooling, with the same windows."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                average = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, average)


def _fill(trunk: nn.Module, path: Path, name: str) -> None:
    """Copy torchvision's `features.<n>.*` into lpips' slices, which keep the same <n>."""
    try:
        state = load_foreign(path)
        wanted = {key: "features." + key.partition(".")[2] for key in trunk.state_dict()}
        trunk.load_state_dict({key: state[source] for key, source in wanted.items()})
    except (DataError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected torchvision's {name} weights, got something else ({reason(error)})"
        ) from error
