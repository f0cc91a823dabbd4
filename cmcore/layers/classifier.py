"""The small classifier whose features judge images, and, where a method asks for it, teach.

The weights of the default workloads lie beside this file, as `shipped.<workload>.safetensors`, and the moments of the
training images in its features as `moments.<workload>.safetensors`; `cmlab ship-extractor` makes both anew.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cmcore.bounded import check_safetensors, parse_json
from cmcore.config import ConfigError
from cmcore.errors import DataError, reason
from cmcore.rng import seeded

SHIPPED = "shipped"  # the value of `eval.extractor` that asks for the weights beside this file
_SMALLEST = 4  # resolution at which halving stops


class Shape(NamedTuple):
    """The hyperparameters of the network's layout."""

    channels: int
    resolution: int
    classes: int  # 0: no class layer
    width: int
    features: int


class Classifier(nn.Module):
    """Convolutions that halve the resolution down to 4, a global mean, then a linear class layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        before, width, resolution = shape.channels, shape.width, shape.resolution
        while resolution > _SMALLEST:
            layers += [*_convolution(before, width), *_convolution(width, width, stride=2)]
            before, width, resolution = width, 2 * width, (resolution + 1) // 2
        layers += _convolution(before, shape.features)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(shape.features, shape.classes) if shape.classes else None

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D) of float images in [-1, 1]."""
        return self.body(x).mean((2, 3))

    def maps(self, x: Tensor) -> list[Tensor]:
        """What every convolution makes of float images in [-1, 1], after its ReLU: (B, C, H, W) each."""
        found = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    @property
    def widths(self) -> list[int]:
        """The channels of `maps`."""
        return [layer.out_channels for layer in self.body if isinstance(layer, nn.Conv2d)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of float images in [-1, 1]."""
        if self.head is None:
            raise ValueError("this network has no class layer: it was built with classes=0")
        return self.head(self.features(x))


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


def build_classifier(shape: Shape, seed: int) -> Classifier:
    """The network with He initialisation (arXiv 1502.01852) from a seed; global generators keep their state."""
    with seeded(seed, "classifier"):
        net = Classifier(shape)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def weights_digest(net: nn.Module) -> str:
    """sha256 of the names, shapes and values of a network's state."""
    sha = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def extractor_name(kind: str, digest: str) -> str:
    """The name of a classifier, which says its weights: digits_cnn_1a2b3c4d."""
    return f"{kind}_{digest[:8]}"


def load_classifier(path: str | Path) -> tuple[Classifier, str]:
    """Read a network and its kind, as `NetworkExtractor.save` writes them; in training mode.

    Raises:
        DataError: the file is not a feature extractor.
    """
    check_safetensors(Path(path))
    try:
        with safe_open(path, "pt") as file:
            described = parse_json((file.metadata() or {})["extractor"], f"{path}: extractor")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        kind = described.pop("kind")
        with torch.device("meta"):  # its size is that of the weights, whatever the file says
            net = Classifier(Shape(**described))
        net.load_state_dict(state, assign=True)
    except DataError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected a feature extractor written by the reference stage ({reason(error)})"
        ) from error
    return net, kind


def shipped_file(workload: str) -> Path:
    """Where the weights of a workload are, or would be."""
    return Path(__file__).with_name(f"{SHIPPED}.{workload}.safetensors")


def moments_file(workload: str) -> Path:
    """Where the moments of a workload's images in those features are, or would be."""
    return Path(__file__).with_name(f"moments.{workload}.safetensors")


def shipped_workloads() -> dict[str, str]:
    """The workloads whose classifier comes with the project, by the name of the extractor."""
    files = sorted(Path(__file__).parent.glob(f"{SHIPPED}.*.safetensors"))
    named = {}
    for path in files:
        net, kind = load_classifier(path)
        named[extractor_name(kind, weights_digest(net))] = path.name.split(".")[1]
    return named


def shipped_workload(extractor: str) -> str:
    """The workload of a shipped extractor; a ConfigError of the field `extractor` lists those there are."""
    named = shipped_workloads()
    if extractor not in named:
        raise ConfigError("extractor", f"expected a classifier of the project, {', '.join(named)}, got {extractor!r}")
    return named[extractor]


def shipped_classifier(extractor: str) -> Classifier:
    """A shipped extractor by its name, in eval mode and frozen; errors are those of `shipped_workload`."""
    net, _ = load_classifier(shipped_file(shipped_workload(extractor)))
    return net.eval().requires_grad_(False)


def shipped_moments(extractor: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), float64, of the training images in the features of an extractor."""
    path = moments_file(shipped_workload(extractor))
    check_safetensors(path)
    held = load_file(path)
    return held["mean"], held["cov"]
