"""Shortcut models: sizes of steps, targets of two steps, and the exact map."""

from collections.abc import Callable

import pytest
import torch
from exact import SD, START, TwoNumbers, data, exact_map, nets_of
from tiny import make_denoiser, make_method
from torch import Tensor

from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Condition, Denoiser, as_condition, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch
from cmcore.methods.shortcut import HALVINGS, Shortcut
from cmcore.oracles import Gaussian, as_denoiser
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.presets import solver
from cmcore.sample.settings import Sampling
from cmcore.tensors import mean_per_sample

B = 64


def make(sigma_max: float = 20.0, **options: object) -> Shortcut:
    method = make_method("shortcut", DiffusionConfig(sigma_max=sigma_max), **options)
    assert isinstance(method, Shortcut)
    return method


def landing(method: Shortcut) -> Callable[[Tensor, Condition], Tensor]:
    """The level where a step of the told size from sigma ends."""

    def end_of(sigma: Tensor, condition: Condition) -> Tensor:
        r = Linear().time(sigma) - method.way / 2 ** condition.inputs[HALVINGS]
        return Linear().level(r.clamp(min=0))

    return end_of


def exact(method: Shortcut, oracle: Gaussian) -> Denoiser:
    return exact_map(oracle, landing(method), method.traits.inputs)


@pytest.mark.parametrize(
    ("t", "k", "x_t", "u"),
    [(0.75, 1, 1.0, 0.8145020), (0.75, 2, 1.0, 1.0591415), (0.5, 2, 1 - 1.0591415 / 4, 0.5698626), (1.0, 0, 1.0, 0.5)],
)
def test_two_exact_steps_are_one(t: float, k: int, x_t: float, u: float):
    method, oracle = make(1e7), Gaussian(0.0, 0.5)
    nets = nets_of(exact(method, oracle), target=exact(method, oracle))
    time = torch.tensor([t * method.way], dtype=torch.float64)
    x = x_t / (1 - time).reshape(1, 1, 1, 1)
    D = method.bootstrap(nets, x, torch.tensor([k]), time, None)
    assert (x_t - D.item()) / t == pytest.approx(u, abs=1e-5)


@pytest.mark.parametrize("s", [0.5, 1.1])
def test_the_exact_map_is_a_fixed_point_of_bootstrapped_rows(s: float):
    method, oracle, draws = make(), Gaussian(0.2, s), Draws(0, 0, 4000)
    student, target = exact(method, oracle), exact(method, oracle)
    batch = data(oracle, draws)
    out = method.loss(nets_of(student, target=target), batch, START, draws)
    assert float(out.scalars["bootstrap_error"]) < 1e-12
    # Rows of the smallest step learn the velocity, of which the loss is s^2/V(t).
    bootstrapped, _, t = method.step(draws)
    flow = out.loss.detach()[~bootstrapped]
    floor = (s**2 / ((1 - t) ** 2 * s**2 + t**2))[~bootstrapped]
    excess = flow - floor
    assert abs(float(excess.mean())) < 0.01 * float(floor.mean()) + 4 * float(excess.std()) / len(flow) ** 0.5
    student.net.gain.data.fill_(0.9)
    assert float(method.loss(nets_of(student, target=target), batch, START, draws).scalars["bootstrap_error"]) > 1e-3


def test_the_loss_by_hand():
    method = make(steps=8, every=4)
    student, target = (Denoiser(TwoNumbers(), sigma_data=SD, inputs=method.traits.inputs) for _ in range(2))
    with torch.no_grad():
        target.net.ab.mul_(1.5)
    draws = Draws(2, 0, B)
    batch = data(Gaussian(0.0, SD), draws)
    loss = method.loss(nets_of(student, target=target), batch, START, draws).loss.detach()
    bootstrapped, k, t = method.step(draws)
    z = draws.normal((1, 2, 2), stream="noise").double()
    with torch.no_grad():
        for i in range(B):
            x_t, d = (1 - t[i]) * batch.x[i : i + 1] + t[i] * z[i], method.way / 2.0 ** int(k[i])

            def u(net: Denoiser, x: Tensor, at: Tensor) -> Tensor:
                return (x - net(x / (1 - at), (at / (1 - at)).reshape(1))) / at

            wanted = z[i] - batch.x[i : i + 1]
            if bootstrapped[i]:
                first = u(target, x_t, t[i])
                wanted = (first + u(target, x_t - d / 2 * first, t[i] - d / 2)) / 2
            expected = mean_per_sample((u(student, x_t, t[i]) - wanted) ** 2)
            torch.testing.assert_close(loss[i : i + 1], expected, rtol=1e-6, atol=1e-6)


def test_times_are_multiples_of_the_step_and_sizes_are_even():
    method = make()
    bootstrapped, k, t = method.step(Draws(0, 0, 80_000))
    assert int(bootstrapped.sum()) == 10_000
    assert bool((k[~bootstrapped] == 7).all())
    counts = torch.bincount(k[bootstrapped], minlength=8)
    assert counts[7] == 0
    assert (counts[:7] - 10_000 / 7).abs().max() < 5 * (10_000 / 7) ** 0.5
    position = t / method.way * 2**k
    torch.testing.assert_close(position, position.round(), rtol=1e-12, atol=0)
    assert bool((position.round() >= 1).all() & (position.round() <= 2**k).all())
    assert len(t[~bootstrapped].unique()) == 128
    parts = [method.step(Draws(0, 0, 80_000, slice(low, low + 8000))) for low in range(0, 80_000, 8000)]
    for at, whole in enumerate((bootstrapped, k, t)):
        assert torch.equal(torch.cat([part[at] for part in parts]), whole)


def test_the_network_is_told_the_size_of_its_step():
    method, oracle, told = make(), Gaussian(0.2, 0.8), []
    x_T = 20 * NoiseSource(0, range(3)).normal((1, 2, 2))

    def denoiser(x: Tensor, sigma: Tensor, labels: object) -> Tensor:
        told.append(as_condition(labels).inputs[HALVINGS].unique().item())  # pyright: ignore[reportArgumentType]
        return oracle.denoise(x, sigma)

    rows = method.samplers(Sampling(diffusion=method.diffusion, steps=3, two_step=0.8))
    assert [row.nfe for row in rows] == [1, 2, 4, 8, 128]
    for row, k in zip(rows, (0, 1, 2, 3, 7), strict=True):
        told.clear()
        images = row.from_noise(denoiser, x_T, NoiseSource(0, range(3)))
        assert told == [k] * row.nfe
        plain = solver(method.diffusion, "euler_linear", row.nfe)
        assert torch.equal(images, plain.from_noise(as_denoiser(oracle), x_T, NoiseSource(0, range(3))))
    # The exact map lands on the flow in any number of steps.
    start = torch.full((3,), 20.0, dtype=torch.float64)
    for row in rows:
        images = row.from_noise(exact(method, oracle), x_T, NoiseSource(0, range(3)))
        torch.testing.assert_close(images, oracle.flow(x_T, start, 0 * start), rtol=1e-9, atol=1e-9)


def test_without_a_size_the_network_takes_the_smallest_step():
    method = make(steps=16)
    denoiser = make_denoiser(inputs=method.traits.inputs, noise=0.3).eval()
    x, sigma = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        plain, finest, other = (
            denoiser(x, sigma, labels)
            for labels in (None, *(with_inputs(None, **{HALVINGS: torch.full((2,), k)}) for k in (4.0, 0.0)))
        )
    torch.testing.assert_close(plain, finest)
    assert not torch.allclose(plain, other)


def test_rows_of_a_conditional_batch_keep_their_labels():
    method, draws = make(), Draws(0, 0, 16)
    seen: list[Tensor] = []

    class Watching(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor, labels: object = None) -> Tensor:
            found = as_condition(labels).labels  # pyright: ignore[reportArgumentType]
            assert found is not None
            seen.append(found)
            return 0 * x

    target = Watching(TwoNumbers(), sigma_data=SD)
    student = Watching(TwoNumbers(), sigma_data=SD)
    batch = Batch(data(Gaussian(0.0, SD), draws).x, torch.arange(16))
    method.loss(nets_of(student, target=target), batch, START, draws)
    assert [labels.tolist() for labels in seen] == [[7, 15], [7, 15], list(range(16))]
