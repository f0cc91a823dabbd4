"""Exact maps between levels of a Gaussian, for networks that are told where a jump ends, and residuals of such maps."""

from exact import nets_of
from torch import Tensor, autograd, nn, ones, where, zeros_like
from torch import float64 as double

from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.precond import Condition, Denoiser
from cmcore.methods.base import Batch, Progress
from cmcore.methods.soflow import SoFlow
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.tensors import expand_like

SD = 0.5


class ExactMap(nn.Module):
    """F with which a jump from t to s is the probability flow; for s = t, F of the denoiser. `gain` makes it wrong."""

    def __init__(self, oracle: Gaussian) -> None:
        super().__init__()
        self.oracle, self.gain = oracle, nn.Parameter(ones((), dtype=double))
        self.outer: tuple[Denoiser, ...] = ()

    def forward(self, u: Tensor, c_noise: Tensor, labels: Condition) -> Tensor:
        t, s = (4 * c_noise).exp(), (4 * labels.inputs[SECOND_TIME.name]).exp()
        scalings = self.outer[0].scalings(t)
        x = u / expand_like(scalings.c_in, u)
        same = (s / t - 1).abs() < 1e-9
        apart = where(same, 0 * s, s / t)
        ratio = expand_like(apart, x)
        g = (self.oracle.flow(x, t, where(same, t, s)) - ratio * x) / (1 - ratio)
        D = where(same.reshape(ratio.shape), self.oracle.denoise(x, t), g)
        return self.gain * (D - expand_like(scalings.c_skip, x) * x) / expand_like(scalings.c_out, x)


def exact_map(oracle: Gaussian) -> Denoiser:
    """The map as a `Denoiser` with a second time, in float64."""
    net = ExactMap(oracle)
    denoiser = Denoiser(net, sigma_data=SD, inputs=(SECOND_TIME,))
    net.outer = (denoiser,)  # in a tuple, so that it is not registered as a part of its own part
    return denoiser


class Offset(nn.Module):
    """A denoiser with a tensor added, the gradient in which shows the residual."""

    def __init__(self, inner: Denoiser, shift: Tensor) -> None:
        super().__init__()
        self.inner, self.shift = inner, nn.Parameter(shift)

    def forward(self, x: Tensor, sigma: Tensor, labels: Condition) -> Tensor:
        return self.inner(x, sigma, labels) + self.shift


def residual(method: SoFlow, student: Denoiser, batch: Batch, progress: Progress, draws: Draws) -> Tensor:
    """w Q (B, C, H, W) of SoFlow's loss, of which the gradient in D is w Q/(t d)."""
    shifted = Offset(student, zeros_like(batch.x))
    loss = method.loss(nets_of(shifted), batch, progress, draws).loss.sum()  # pyright: ignore[reportArgumentType]
    (gradient,) = autograd.grad(loss, shifted.shift)
    t = method.times(progress, draws)[0]
    return gradient * expand_like(t, gradient) * gradient[0].numel()
