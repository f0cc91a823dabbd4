"""The learned log-variance of the denoising error by noise level (EDM2, arXiv 2312.02696, sec. 2.2 and Eq. 21)."""

from torch import Tensor, nn

from cmcore.diffusion.precond import noise_coordinate
from cmcore.layers.magnitude import MPConv, MPFourier
from cmcore.rng import generator


class Uncertainty(nn.Module):
    """u(sigma), one normalised linear layer on random Fourier features of ln(sigma)/4.

    The optimum of lambda(sigma) error/e^u + u is u = ln(lambda(sigma) error), where every level's gradient has the same
    size. Its random features are the same in every run.
    """

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        source = generator("uncertainty", features)
        self.features = MPFourier(features, generator=source)
        self.linear = MPConv(features, 1, 0, generator=source)

    def forward(self, sigma: Tensor) -> Tensor:
        """sigma (B,) -> u (B,) in the precision of the weights."""
        c_noise = noise_coordinate(sigma, 1.0, "log").to(self.linear.weight.dtype)
        return self.linear(self.features(c_noise)).squeeze(1)
