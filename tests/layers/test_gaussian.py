"""The linear part is exact for Gaussian images: their denoiser, their flow map, and the basis it is diagonal in."""

import math

import pytest
import torch
from torch import nn

from cmcore.diffusion.precond import Denoiser, NoiseCoordinate
from cmcore.layers.gaussian import PACE, GaussianSkip, cosines
from cmcore.oracles import Gaussian

DATA = 0.4  # standard deviation
SHAPE = (3, 8, 8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(coordinate: NoiseCoordinate = "log", exponent: float = 1.0) -> tuple[Denoiser, Gaussian]:
    """A denoiser of the linear part alone, and the distribution of the coefficients that it is set to."""
    skip = GaussianSkip(3, 8, sigma_data=DATA, coordinate=coordinate).double()
    skip.colour, skip.space = cosines(3), cosines(8)
    mean, log_std = normal(*SHAPE), 1.5 * normal(*SHAPE, seed=1) - 1
    with torch.no_grad():
        skip.mean.copy_(mean / PACE)
        skip.log_variance.copy_(2 * log_std / PACE)
        skip.log_exponent.fill_(math.log(exponent) / PACE)
    net = Unlabelled(skip)
    return Denoiser(net, sigma_data=DATA, coordinate=coordinate), Gaussian(DATA * mean, DATA * log_std.exp())


class Unlabelled(nn.Module):
    def __init__(self, skip: GaussianSkip) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, x, c_noise, labels=None):
        return self.skip(x, c_noise)


def coefficients(x: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """The cosine transform over colours, rows and columns, by its sums."""
    colour, space = (m.mT if back else m for m in (cosines(3), cosines(8)))
    return torch.einsum("ka,iu,jv,nauv->nkij", colour, space, space, x)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_basis_is_orthonormal_and_its_first_row_is_the_mean(n):
    basis = cosines(n)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(basis[0], torch.full((n,), n**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("coordinate", ["log", "trig", "log1000"])
def test_the_denoiser_of_a_gaussian(coordinate):
    denoiser, truth = made(coordinate)
    sigma = torch.tensor([0.002, 0.1, 0.4, 3.0, 80.0], dtype=torch.float64)
    x = coefficients(
        truth.sample(normal(5, *SHAPE, seed=2)) + sigma[:, None, None, None] * normal(5, *SHAPE), back=True
    )
    expected = coefficients(truth.denoise(coefficients(x), sigma), back=True)
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-9, atol=1e-9)


def test_the_flow_map_of_a_gaussian():
    denoiser, truth = made(exponent=0.5)
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    x = coefficients(
        truth.sample(normal(3, *SHAPE, seed=2)) + sigma[:, None, None, None] * normal(3, *SHAPE), back=True
    )
    expected = coefficients(truth.flow(coefficients(x), sigma, torch.zeros_like(sigma)), back=True)
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-9, atol=1e-9)


def test_it_learns_the_spectrum_within_some_hundred_steps():
    """From F = 0, by Adam at a learning rate of networks, to the loss of the truth."""
    _, truth = made()
    denoiser = Denoiser(Unlabelled(GaussianSkip(3, 8, sigma_data=DATA, coordinate="log")), sigma_data=DATA)
    adam = torch.optim.Adam(denoiser.parameters(), lr=3e-3)

    def losses(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = (1.2 * normal(64, seed=seed) - 1.2).exp()
        x = coefficients(truth.sample(normal(64, *SHAPE, seed=seed + 1)), back=True)
        noisy = x + sigma[:, None, None, None] * normal(64, *SHAPE, seed=seed + 2)
        weight = (sigma**2 + DATA**2) / (sigma * DATA) ** 2
        best = coefficients(truth.denoise(coefficients(noisy), sigma), back=True)

        def loss(y: torch.Tensor) -> torch.Tensor:
            return (weight * ((y - x) ** 2).mean((1, 2, 3))).mean()

        return loss(denoiser(noisy.float(), sigma).double()), loss(best)

    first, _ = losses(10**6)
    for step in range(300):
        adam.zero_grad()
        losses(3 * step)[0].backward()
        adam.step()
    last, best = losses(10**6)
    assert best < last < best + 0.1 * (first - best)
