"""Oracles in the place of networks, and small wrong networks, for the tests of the objectives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from duals import of_duals
from torch import Tensor, nn

from cmcore.diffusion.inputs import Input
from cmcore.diffusion.ode import euler_prediction
from cmcore.diffusion.precond import Condition, Denoiser, Labels, as_condition, edm_scalings
from cmcore.methods.base import STUDENT, TARGET, TEACHER, Batch, Method, Nets, Progress
from cmcore.oracles import Gaussian
from cmcore.rng import Draws
from cmcore.tensors import expand_like

SD = 0.5
START = Progress(images=0, total=1000, batch=100)


class Exact(nn.Module):
    """The raw network with which a denoiser is exact on a Gaussian: inverts the preconditioning around the oracle.

    With `end` it is the consistency function to that level, else the denoiser.
    """

    def __init__(self, oracle: Gaussian, end: float | None = None) -> None:
        super().__init__()
        self.oracle, self.end = oracle, end
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.outer: tuple[Denoiser, ...] = ()

    def forward(self, u: Any, c_noise: Any, labels: Tensor | None) -> Any:
        del labels
        return of_duals(self._exact)(u, c_noise)

    def _exact(self, u: Tensor, c_noise: Tensor) -> Tensor:
        sigma = (4 * c_noise).exp()
        s = self.outer[0].scalings(sigma)
        x = u / expand_like(s.c_in, u)
        D = self.oracle.denoise(x, sigma) if self.end is None else self.oracle.consistency(x, sigma, self.end)
        c_out = torch.where(s.c_out.abs() < 1e-9, torch.ones_like(s.c_out), s.c_out)  # the boundary: any F will do
        return self.gain * (D - expand_like(s.c_skip, x) * x) / expand_like(c_out, x)


class ExactMap(nn.Module):
    """The raw network that jumps along the exact flow to the level `end_of(sigma, condition)`; at sigma, the denoiser.

    Further levels in the condition are in the network's coordinate, ln(sigma)/4.
    """

    def __init__(self, oracle: Gaussian, end_of: Callable[[Tensor, Condition], Tensor]) -> None:
        super().__init__()
        self.oracle, self.end_of = oracle, end_of
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u: Any, c_noise: Any, labels: Labels) -> Any:
        return of_duals(self._exact)(u, c_noise, labels)

    def _exact(self, u: Tensor, c_noise: Tensor, labels: Labels) -> Tensor:
        sigma = (4 * c_noise).exp()
        s = edm_scalings(sigma, SD)
        x, end = u / expand_like(s.c_in, u), self.end_of(sigma, as_condition(labels))
        still = end >= sigma * (1 - 1e-9)
        end = torch.where(still, sigma / 2, end)
        D = euler_prediction(x, self.oracle.flow(x, sigma, end), sigma, end)
        D = torch.where(still.reshape(-1, 1, 1, 1), self.oracle.denoise(x, sigma), D)
        return self.gain * (D - expand_like(s.c_skip, x) * x) / expand_like(s.c_out, x)


def exact_map(oracle: Gaussian, end_of: Callable[[Tensor, Condition], Tensor], inputs: Sequence[Input]) -> Denoiser:
    """An exact flow map as a `Denoiser` in float64."""
    return Denoiser(ExactMap(oracle, end_of), sigma_data=SD, inputs=inputs)


def exact(oracle: Gaussian, *, end: float | None = None, epsilon: float = 0.0) -> Denoiser:
    """An exact diffusion or consistency model as a `Denoiser` in float64."""
    net = Exact(oracle, end)
    denoiser = Denoiser(net, sigma_data=SD, epsilon=epsilon)
    net.outer = (denoiser,)  # in a tuple, so that it is not registered as a part of its own part
    return denoiser


def data(oracle: Gaussian, draws: Draws, shape: tuple[int, ...] = (1, 2, 2)) -> Batch:
    return Batch(oracle.sample(draws.normal(shape, stream="data", dtype=torch.float64)), None)


def nets_of(student: Denoiser, teacher: Denoiser | None = None, target: Denoiser | None = None) -> Nets:
    named = {STUDENT: student, TEACHER: teacher, TARGET: target}
    return Nets({name: net for name, net in named.items() if net is not None})


class TwoNumbers(nn.Module):
    """F = a tanh(u) + b u c_noise: a consistency function that is wrong, with two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.ab = nn.Parameter(torch.tensor([0.4, -0.3], dtype=torch.float64))

    def forward(self, u: Any, c_noise: Any, labels: Tensor | None) -> Any:
        del labels
        return of_duals(lambda u, c: self.ab[0] * torch.tanh(u) + self.ab[1] * u * expand_like(c, u))(u, c_noise)


def gain_gradient(method: Method, student: Denoiser, oracle: Gaussian, gain: float) -> tuple[float, float]:
    """The gradient of a method's loss in the gain of an exact network: mean and standard error over 40 batches."""
    parameter = student.net.get_parameter("gain")
    parameter.data.fill_(gain)
    rows = []
    for seed in range(40):
        draws = Draws(seed, 0, 500)
        loss = method.loss(nets_of(student), data(oracle, draws), START, draws).loss.mean()
        rows.append(torch.autograd.grad(loss, parameter)[0])
    found = torch.stack(rows)
    return float(found.mean()), float(found.std()) / len(rows) ** 0.5
