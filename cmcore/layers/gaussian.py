"""The part of a network that is exact for Gaussian images: linear in the image, for every frequency of its own."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import NoiseCoordinate
from cmcore.dual import Dual, Value, add, each, entrywise, mul, value_of
from cmcore.tensors import full_precision

PACE = 30.0  # of a step of the logarithms, in those of weights, as they have far to go: 10 is slower, 100 no faster
LEAST = 1e-6  # t, where nothing is left of the noise


def cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (n, n) of n numbers, the DCT-II: a frequency in every row."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = (math.pi * (i + 0.5) * k / n).cos() * math.sqrt(2 / n)
    basis[0] *= math.sqrt(0.5)
    return basis


class GaussianSkip(nn.Module):
    """F(x (B, C, R, R), c_noise (B,)) of images whose cosine coefficients are independent and Gaussian.

    With t = sigma/sigma_data and a coefficient of mean m and variance r, in units of sigma_data, the denoiser shrinks
    its distance to m by G = r/(r + t^2) (Wiener), and the flow map of the probability flow by G^(1/2): so the exponent
    is learned too, and teacher and consistency model both have their Gaussian solution within reach. The covariance
    of images is nearly diagonal in this basis, over colour channels as well: on CIFAR-10 its EDM loss is 0.245 and that
    of the full covariance 0.233; this part alone has 0.249 after 170 steps of 64 images. A trained diffusion model is
    close to it at high noise (arXiv 2311.10892, 2412.09726).

    F = 0 at the start: r = 1, m = 0 and exponent 1 is what `c_skip` does already.

    Args:
        channels: C.
        resolution: R.
        sigma_data: that of the preconditioning.
        coordinate: c_noise that is given.
    """

    colour: Tensor
    space: Tensor

    def __init__(self, channels: int, resolution: int, *, sigma_data: float, coordinate: NoiseCoordinate) -> None:
        super().__init__()
        self.sigma_data, self.coordinate = sigma_data, coordinate
        self.register_buffer("colour", cosines(channels).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("space", cosines(resolution).to(torch.get_default_dtype()), persistent=False)
        shape = (channels, resolution, resolution)
        self.mean, self.log_variance, self.log_exponent = (nn.Parameter(torch.zeros(shape)) for _ in range(3))

    def forward(self, x: Value, c_noise: Value) -> Value:
        ln_t = self._ln_t(c_noise)
        shrunk, at_first = self._shrunk(ln_t), _shrunk(ln_t, torch.zeros_like(self.mean), torch.ones_like(self.mean))
        gain = mul(add(at_first, mul(shrunk, -1)), entrywise(lambda u: u.exp() + (-u).exp(), ln_t))
        pull = mul(mul(shrunk, entrywise(lambda u: (1 + (-2 * u).exp()).sqrt(), ln_t)), PACE * self.mean)
        coefficients = each(lambda v: self._transform(v, back=False), x)
        return each(lambda v: self._transform(v, back=True), add(mul(gain, coefficients), pull))

    def _ln_t(self, c_noise: Value) -> Any:
        """ln t (B, 1, 1, 1)."""
        c_noise = each(lambda c: c.reshape(-1, 1, 1, 1), c_noise)
        if self.coordinate == "trig":
            return entrywise(lambda c: c.tan().clamp(min=LEAST).log(), c_noise)
        scale = 4.0 if self.coordinate == "log" else 1 / 250
        return entrywise(lambda c: (scale * c - math.log(self.sigma_data)).clamp(min=math.log(LEAST)), c_noise)

    def _transform(self, x: Tensor, *, back: bool) -> Tensor:
        """The coefficients of an image, or back."""
        colour, space = (m.mT if back else m for m in (self.colour, self.space))
        with full_precision(x.device):  # coefficients differ by orders of magnitude
            x = (space @ x @ space.mT).flatten(2)
            return (colour @ x).unflatten(2, (len(space), len(space)))

    def _shrunk(self, ln_t: Value) -> Any:
        return _shrunk(ln_t, PACE * self.log_variance, (PACE * self.log_exponent).exp())


def _shrunk(ln_t: Value, log_variance: Tensor, exponent: Tensor) -> Any:
    """1 - G (B, C, R, R) = 1 - (1 + t^2/r)^(-exponent), of ln t (B, 1, 1, 1)."""
    u = 2 * value_of(ln_t) - log_variance
    kept = exponent * nn.functional.softplus(u)
    value = -torch.expm1(-kept)
    if not isinstance(ln_t, Dual):
        return value
    with torch.no_grad():
        return Dual(value, 2 * exponent * (-kept).exp() * u.sigmoid() * ln_t.tangent, ln_t.half)
