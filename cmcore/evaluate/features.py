"""Feature spaces for metrics: a small convolutional network, trained as a classifier or random."""

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from cmcore.layers.classifier import (
    Classifier,
    Shape,
    build_classifier,
    extractor_name,
    load_classifier,
    weights_digest,
)
from cmcore.tensors import to_float


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


class NetworkExtractor:
    """A `Classifier`'s penultimate features, named after its kind and its weights."""

    fidelity = False

    def __init__(self, net: Classifier, kind: str) -> None:
        self.net, self.kind = net.eval().requires_grad_(False), kind
        self.digest = weights_digest(net)
        self.name, self.dim = extractor_name(kind, self.digest), net.shape.features

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
        net, kind = load_classifier(path)
        return cls(net, kind)


def random_extractor(channels: int, resolution: int, *, width: int, features: int) -> NetworkExtractor:
    """The fallback for unlabelled images: the same network at its fixed-seed initialisation."""
    shape = Shape(channels, resolution, 0, width, features)
    return NetworkExtractor(build_classifier(shape, seed=0), "random_conv")
