"""Feature spaces for metrics: a small convolutional network, trained as a classifier or random."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmcore.bounded import check_safetensors, parse_json
from cmcore.errors import DataError, reason
from cmcore.rng import seeded
from cmcore.tensors import to_float

_SMALLEST = 4  # resolution at which halving stops


class FeatureExtractor(Protocol):
    """A map from images to features. Its name is unique to the weights, so the name of a metric can contain it."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str:
        """Hex digest of the weights."""
        ...

    @property
    def fidelity(self) -> bool:
        """Whether metrics use torch-fidelity's random subsets and splits, as published values of these features do."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> features (B, dim) float32 on the CPU."""
        ...

    def logits(self, features: Tensor) -> Tensor | None:
        """Class scores (B, K) from features, or None for an extractor without classes."""
        ...


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


class NetworkExtractor:
    """A `Classifier`'s penultimate features, named after its kind and its weights."""

    fidelity = False

    def __init__(self, net: Classifier, kind: str) -> None:
        self.net, self.kind = net.eval().requires_grad_(False), kind
        self.digest = weights_digest(net)
        self.name, self.dim = f"{kind}_{self.digest[:8]}", net.shape.features

    def to(self, device: torch.device | str) -> "NetworkExtractor":
        """Move the network to the device; features are returned on the CPU in any case."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        shape = self.net.shape
        expected = (shape.channels, shape.resolution, shape.resolution)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: expected uint8 (B, {expected}), got {images.dtype} {tuple(images.shape)}")
        device = next(self.net.parameters()).device
        return self.net.features(to_float(images.to(device))).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor | None:
        head = self.net.head
        return None if head is None else head(features.to(head.weight)).cpu()

    def save(self, path: str | Path) -> None:
        """Write a self-describing safetensors file, with one metadata key: several would be in random order."""
        metadata = {"extractor": json.dumps({"kind": self.kind, **self.net.shape._asdict()}, sort_keys=True)}
        save_file({k: v.cpu().contiguous() for k, v in self.net.state_dict().items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "NetworkExtractor":
        """Read a file that `save` wrote.

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
        return cls(net, kind)


def random_extractor(channels: int, resolution: int, *, width: int, features: int) -> NetworkExtractor:
    """The fallback for unlabelled images: the same network at its fixed-seed initialisation."""
    shape = Shape(channels, resolution, 0, width, features)
    return NetworkExtractor(build_classifier(shape, seed=0), "random_conv")
