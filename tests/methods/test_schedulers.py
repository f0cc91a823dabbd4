"""Sampling of LCM and TCD against the public schedulers, which work on the 1,000 timesteps of Stable Diffusion."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.jumps import Jumps
from cmcore.methods.lcm import ConsistencyFunction
from cmcore.methods.tcd import Untold
from cmcore.sample.fewstep import Multistep
from cmcore.sample.gamma import StrategicStochastic
from cmcore.tensors import expand_like

diffusers = pytest.importorskip("diffusers", reason="diffusers, of the extra `latents`, is not installed")
SHAPE = (3, 4, 5, 5)


def eps(x: Tensor, t: Tensor) -> Tensor:
    """A model that predicts noise, of states in the scale of Stable Diffusion."""
    return torch.tanh(1.3 * x - 0.2) + expand_like(t, x) / 2000


class Timesteps:
    """Levels of the scheduler's timesteps, and the share of all of them that is below one."""

    def __init__(self, scheduler: Any) -> None:
        alpha2 = scheduler.alphas_cumprod.double()
        self.sigmas = ((1 - alpha2) / alpha2).sqrt()

    def of(self, sigma: Tensor) -> Tensor:
        t = torch.searchsorted(self.sigmas, sigma * (1 - 1e-9))
        torch.testing.assert_close(self.sigmas[t], sigma)
        return t.double()

    def cdf(self, sigma: Tensor) -> Tensor:
        return self.of(sigma) / (len(self.sigmas) - 1)

    def sample(self, u: Tensor) -> Tensor:
        return self.sigmas[(u * (len(self.sigmas) - 1)).floor().long()]


def denoiser(times: Timesteps) -> Callable[..., Tensor]:
    """The clean image that `eps` predicts, of states in VE coordinates."""

    def denoise(x: Tensor, sigma: Tensor, labels: Any = None) -> Tensor:
        del labels
        alpha = expand_like(1 / (1 + sigma**2).sqrt(), x)
        return x - expand_like(sigma, x) * eps(alpha * x, times.of(sigma))

    return denoise


class Source:
    """Noise in the order in which a scheduler draws it."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(SHAPE[0], *shape, generator=self.generator, dtype=torch.float64)


def scheduled(scheduler: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """The states after every step of a scheduler, from x at its first timestep."""
    generator, states = torch.Generator().manual_seed(1), []
    for t in scheduler.timesteps:
        output = scheduler.step(eps(x, t.double().expand(len(x))), t, x, generator=generator, **options)
        x = output.prev_sample
        states.append(x)
    return states


def source() -> Any:
    return Source()


def started(scheduler: Any, steps: int) -> tuple[Timesteps, tuple[float, ...], Tensor, Tensor]:
    scheduler.set_timesteps(steps)
    times = Timesteps(scheduler)
    levels = tuple(times.sigmas[scheduler.timesteps].tolist())
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return times, levels, x, x * (1 + levels[0] ** 2) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_of_lcm_are_those_of_the_public_scheduler(steps: int):
    scheduler = diffusers.LCMScheduler()
    times, levels, x, x_T = started(scheduler, steps)
    f = ConsistencyFunction(denoiser(times), times.of, scheduler.config.timestep_scaling)
    found = Multistep(levels, 0.0).from_noise(f, x_T, source())
    torch.testing.assert_close(found, scheduled(scheduler, x)[-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("t", [19, 259, 999])
def test_the_scalings_of_lcm_are_those_of_the_public_scheduler(t: int):
    c_skip, c_out = diffusers.LCMScheduler().get_scalings_for_boundary_condition_discrete(t)
    level, one = torch.tensor([float(t)], dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    skip = ConsistencyFunction(lambda x, sigma, labels: 0 * x, lambda sigma: sigma, 10.0)
    both = ConsistencyFunction(lambda x, sigma, labels: x, lambda sigma: sigma, 10.0)
    assert float(skip(one, level)) == pytest.approx(c_skip, rel=1e-12)
    assert float(both(one, level)) == pytest.approx(c_skip + c_out, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_of_tcd_are_those_of_the_public_scheduler(steps: int, gamma: float):
    scheduler = diffusers.TCDScheduler()
    times, levels, x, x_T = started(scheduler, steps)
    sampler = StrategicStochastic(levels, float(times.sigmas[0]), gamma, times=times)
    found = sampler.from_noise(Jumps(Untold(denoiser(times)), sampler.sigma_min), x_T, source())
    found = found / (1 + sampler.sigma_min**2) ** 0.5  # in the scale of Stable Diffusion
    torch.testing.assert_close(found, scheduled(scheduler, x, eta=gamma)[-1], rtol=0, atol=2e-5)
