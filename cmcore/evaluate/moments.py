"""Mean and covariance, streamed and merged in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmcore.bounded import open_npz
from cmcore.errors import DataError

_ROWS = 10_000  # in float64 at a time


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and unbiased covariance (D, D), float64 on the CPU."""

    count: int
    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, features: Tensor, device: torch.device | str = "cpu") -> "Moments":
        """Moments of the rows of features (B, D), computed on the device."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features: expected a non-empty (B, D), got {tuple(features.shape)}")
        X = features.detach().to(device, torch.float64)
        mean = X.mean(0)
        centred = X - mean
        return cls(len(X), mean.cpu(), (centred.T @ centred / max(1, len(X) - 1)).cpu())

    @classmethod
    def stream(cls, batches: Iterable[Tensor]) -> "Moments":
        """Moments of all rows of an iterable of (B, D), in one pass."""
        return cls.total(map(cls.of, batches))

    @classmethod
    def total(cls, parts: Iterable["Moments"]) -> "Moments":
        """Moments of the union of sets, merged in the given order, which decides the last bits."""
        total = None
        for part in parts:
            total = part if total is None else total.merge(part)
        if total is None:
            raise ValueError("features: expected at least one batch, got none")
        return total

    @classmethod
    def weighted(cls, features: Tensor, weights: Tensor) -> "Moments":
        """Moments of the rows of features (B, D), row i counted weights[i] times (whole numbers)."""
        chunks = zip(features.split(_ROWS), weights.split(_ROWS), strict=True)
        return cls.total(cls._weighted(x.double(), w) for x, w in chunks if w.any())

    @classmethod
    def _weighted(cls, features: Tensor, weights: Tensor) -> "Moments":
        n = int(weights.sum())
        w = weights.to(features.dtype)
        mean = w @ features / n
        centred = (features - mean) * w.sqrt().unsqueeze(1)
        return cls(n, mean, centred.T @ centred / max(1, n - 1))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union: the pairwise update of Chan, Golub and LeVeque (1979); commutative and associative."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments: expected {len(self.mean)} dimensions, got {len(other.mean)}")
        n = self.count + other.count
        delta = other.mean - self.mean
        scatter = self.cov * (self.count - 1) + other.cov * (other.count - 1)
        scatter = scatter + torch.outer(delta, delta) * (self.count * other.count / n)
        return Moments(n, self.mean + delta * (other.count / n), scatter / max(1, n - 1))

    def save(self, path: str | Path) -> None:
        """Write a .npz with the EDM repositories' keys mu and sigma, and with count."""
        with Path(path).open("wb") as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.cov.numpy(), count=np.int64(self.count))

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read a .npz with mu and sigma. Statistics published with EDM have no count, which becomes 0.

        Raises:
            DataError: the file is damaged, or the keys or the shapes are not those of moments.
        """
        with open_npz(Path(path)) as data:
            if not {"mu", "sigma"} <= set(data.names):
                raise DataError(f"{path}: expected the arrays mu and sigma, got {', '.join(sorted(data.names))}")
            (D, *rest), shape = data.header("mu").shape, data.header("sigma").shape
            if rest or shape != (D, D):
                raise DataError(f"{path}: expected mu (D,) and sigma (D, D), got {(D, *rest)}, {shape}")
            mean, cov = (torch.from_numpy(np.asarray(data.read(key), np.float64)) for key in ("mu", "sigma"))
            count = int(data.read("count")) if "count" in data.names else 0
        return cls(count, mean, cov)
