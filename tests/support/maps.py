"""Exact maps between noise levels of a Gaussian, in the place of networks that are told where a jump ends."""

from torch import Tensor, nn, ones, where
from torch import float64 as double

from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.precond import Condition, Denoiser
from cmcore.oracles import Gaussian
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
