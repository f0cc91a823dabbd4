"""LPIPS, the learned perceptual distance (arXiv 1801.03924), as a `Distance`.

The `lpips` package contains the linear heads only. The trunk's ImageNet weights are torchvision's file of that network,
given by a path; nothing is downloaded.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cmcore.edge.torchvision_ops import import_torchvision
from cmcore.errors import DataError, reason
from cmcore.nets.public.foreign import load_foreign

Trunk = Literal["vgg", "alex", "squeeze"]


class LPIPS(nn.Module):
    """(B, C, H, W), (B, C, H, W) in [-1, 1] -> (B,); the network is frozen, gradients reach the images.

    Args:
        resize: side to which images are resized first (the CM paper uses 224); 0 leaves them as they are.
    """

    def __init__(self, net: nn.Module, resize: int = 0) -> None:
        super().__init__()
        self.net, self.resize = net.eval().requires_grad_(False), resize

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(self._prepare(a), self._prepare(b)).flatten()

    def _prepare(self, x: Tensor) -> Tensor:
        x = x.float().expand(-1, 3, -1, -1)
        if not self.resize:
            return x
        return nn.functional.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)


def load_lpips(
    weights: str | Path, trunk: Trunk = "vgg", *, resize: int = 224, device: torch.device | str = "cpu"
) -> LPIPS:
    """LPIPS with the heads of v0.1 on a trunk whose torchvision weights are in the file `weights`.

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
    return LPIPS(net, resize).to(device)


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
