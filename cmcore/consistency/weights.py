"""Weights of the loss by noise level: (B,) -> (B,), and the learned weight of sCM."""

import math

import torch
from torch import Tensor, nn

from cmcore.diffusion.settings import DiffusionConfig
from cmcore.tensors import full_precision


def edm(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (arXiv 2206.00364, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def inverse_gap(t: Tensor, r: Tensor) -> Tensor:
    """1 / (t - r), for iCT (arXiv 2310.14189, Eq. 8) and ECT (arXiv 2406.14548)."""
    return 1 / (t - r)


def grid_gap(t: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """dt/du of t = (lo + u (hi - lo))^rho: N - 1 times the gap of the Karras grid at t, for a large N."""
    power = 1 / diffusion.rho
    return diffusion.rho * (diffusion.sigma_max**power - diffusion.sigma_min**power) * t ** (1 - power)


class AdaptiveWeight(nn.Module):
    """w_phi(t), a linear layer on a positional embedding of t; starts at w = 0 (arXiv 2410.11081, Alg. 1).

    Args:
        features: size of the embedding; even.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(0, math.log(100.0), features // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) in [0, pi/2] -> w (B,) float32, under any autocast: the loss has exp(w)."""
        phase = t.to(torch.float32)[:, None] * self.get_buffer("frequencies")
        with full_precision(t.device):
            return self.linear(torch.cat([phase.cos(), phase.sin()], dim=1)).squeeze(1)


class PairWeight(nn.Module):
    """w(t, r) of two times, and another function of t alone where they are equal; starts at w = 0 (arXiv 2505.18825).

    Args:
        features: size of the embedding of a time, and width; even.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.equal, self.t, self.r = (AdaptiveWeight(features) for _ in range(3))
        self.gap = AdaptiveWeight(features)

    def forward(self, t: Tensor, r: Tensor) -> Tensor:
        """t and r <= t (B,) in [0, 1] -> w (B,) float32."""
        return torch.where(r == t, self.equal(t), self.t(t) + self.r(r) + self.gap(t - r))
