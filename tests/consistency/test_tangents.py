"""sCM's tangent: forward-mode derivatives against central differences, and its zero at the exact solution."""

import math
from collections.abc import Callable

import pytest
import torch
from duals import of_duals
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmcore import plugins
from cmcore.consistency.tangents import (
    Tangent,
    consistency_tangent,
    jvp_precision,
    normalise,
    scaled_jvp,
    total_derivative,
    trig_net,
)
from cmcore.consistency.trigflow import TrigConfig, continuous_loss, sample_point
from cmcore.consistency.weights import AdaptiveWeight
from cmcore.diffusion.precond import Denoiser, NoiseCoordinate
from cmcore.dual import Value, mul
from cmcore.layers.functions import dropout
from cmcore.rng import Draws
from cmcore.tensors import expand_like, norm_per_sample

SD = 0.5
SHAPE = (3, 1, 4, 4)
TIMES = torch.tensor([0.1, 0.8, 1.45], dtype=torch.float64)
NETS = {
    "mlp": {"hidden": 16, "blocks": 1, "embedding_width": 16, "features": 8, "residual_gain": 1.0},
    "unet": {
        "model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (2,), "dropout": 0.0,
        "residual_gain": 1.0,
    },
}  # fmt: skip


def perturbed(kind: str, coordinate: NoiseCoordinate, **options: object) -> Denoiser:
    """A denoiser in float64 none of whose layers is zero."""
    module = plugins.load("cmcore.nets", kind)
    torch.manual_seed(0)
    config = module.Config(c_noise=coordinate, **{**NETS[kind], **options})
    net = module.build(config, channels=1, resolution=4, classes=0).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Denoiser(net, sigma_data=SD, coordinate=coordinate)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def central_difference(f: Callable[[Tensor], Tensor], h: float = 1e-4) -> Tensor:
    """The derivative at 0 of s -> f(s), of fourth order in h."""
    at = [f(torch.tensor(k * h, dtype=torch.float64)) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)


@pytest.mark.parametrize("coordinate", ["log", "trig"])
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_the_jvp_is_the_derivative_along_the_trajectory(kind: str, coordinate: NoiseCoordinate):
    denoiser, x, z = perturbed(kind, coordinate), SD * normal(1), SD * normal(2)
    F = trig_net(denoiser, None)
    cos, sin = (expand_like(v, x) for v in (torch.cos(TIMES), torch.sin(TIMES)))
    x_t, dx_dt = cos * x + sin * z, cos * z - sin * x

    def along(s: Tensor) -> Tensor:
        t = TIMES + s
        return F((expand_like(torch.cos(t), x) * x + expand_like(torch.sin(t), x) * z) / SD, t)

    with torch.no_grad():
        expected = cos * sin * SD * central_difference(along)
    tangent = scaled_jvp(F, x_t, TIMES, dx_dt, SD)
    torch.testing.assert_close(tangent.F, along(torch.zeros((), dtype=torch.float64)))
    torch.testing.assert_close(tangent.scaled_dF, expected, rtol=1e-7, atol=1e-9)
    assert tangent.F.requires_grad
    assert not tangent.scaled_dF.requires_grad


@pytest.mark.parametrize("coordinate", ["log", "trig"])
def test_the_trig_form_is_the_consistency_function_of_the_denoiser(coordinate: NoiseCoordinate):
    denoiser, x_t = perturbed("mlp", coordinate), normal(3)
    t = torch.tensor([0.004, 0.8, 1.5645], dtype=torch.float64)
    cos, sin = expand_like(torch.cos(t), x_t), expand_like(torch.sin(t), x_t)
    with torch.no_grad():
        f = cos * x_t - sin * SD * trig_net(denoiser, None)(x_t / SD, t)
        D = denoiser(x_t / cos, SD * torch.tan(t), None)
    torch.testing.assert_close(f, D, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("coordinate", ["log", "trig"])
def test_the_tangent_with_full_warm_up_is_cos_t_times_the_derivative_of_f(coordinate: NoiseCoordinate):
    denoiser, x, z = perturbed("mlp", coordinate), SD * normal(4), SD * normal(5)
    F = trig_net(denoiser, None)

    def f(s: Tensor) -> Tensor:
        t = TIMES + s
        cos, sin = expand_like(torch.cos(t), x), expand_like(torch.sin(t), x)
        x_t = cos * x + sin * z
        return cos * x_t - sin * SD * F(x_t / SD, t)

    cos, sin = expand_like(torch.cos(TIMES), x), expand_like(torch.sin(TIMES), x)
    dx_dt = cos * z - sin * x
    tangent = scaled_jvp(F, cos * x + sin * z, TIMES, dx_dt, SD)
    g = consistency_tangent(cos * x + sin * z, TIMES, dx_dt, tangent, SD, r=1.0)
    with torch.no_grad():
        torch.testing.assert_close(g, cos * central_difference(f), rtol=1e-7, atol=1e-9)


def exact_net(s: float, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """F_trig of N(0, s^2): with scale 1 its denoiser's, with scale 1/2 its consistency function's.

    In VE time the denoiser multiplies x by s^2/(s^2 + sigma^2) and the flow to sigma = 0 by the square root of that.
    """

    def net(u: Tensor, t: Tensor) -> Tensor:
        factor = (s**2 / (s**2 + (SD * torch.tan(t)) ** 2)) ** scale  # of x = x_t / cos t
        return expand_like((torch.cos(t) - factor / torch.cos(t)) / torch.sin(t), u) * u

    return of_duals(net)


@pytest.mark.parametrize("s", [0.2, 0.5, 1.3])
def test_the_tangent_vanishes_at_the_exact_consistency_function_and_not_at_half_warm_up(s: float):
    t = torch.tensor([0.3, 0.9, 1.4], dtype=torch.float64)
    x_t = normal(6)
    dx_dt = SD * exact_net(s, 1.0)(x_t / SD, t)
    tangent = scaled_jvp(exact_net(s, 0.5), x_t, t, dx_dt, SD)
    g = consistency_tangent(x_t, t, dx_dt, tangent, SD, r=1.0)
    assert g.abs().max() < 1e-12
    half = consistency_tangent(x_t, t, dx_dt, tangent, SD, r=0.5)
    assert half.abs().max() > 1e-2
    # Nor at the denoiser, which is no consistency function.
    other = scaled_jvp(exact_net(s, 1.0), x_t, t, dx_dt, SD)
    assert consistency_tangent(x_t, t, dx_dt, other, SD, r=1.0).abs().max() > 1e-2


def test_without_warm_up_the_tangent_is_the_diffusion_residual():
    x_t, dx_dt, F = normal(7), normal(8), normal(9)
    g = consistency_tangent(x_t, TIMES, dx_dt, Tangent(F, normal(10)), SD, r=0.0)
    torch.testing.assert_close(g, -(expand_like(torch.cos(TIMES), x_t) ** 2) * (SD * F - dx_dt))


def test_normalisation_uses_the_plain_norm_of_the_image():
    g = torch.zeros(2, 1, 2, 2)
    g[0, 0, 0] = torch.tensor([3.0, 4.0])
    n = normalise(g, 0.1)
    assert norm_per_sample(n).tolist() == pytest.approx([5 / 5.1, 0], rel=1e-6)
    torch.testing.assert_close(n[0] * 5.1, g[0])


def test_the_gradient_of_the_loss_is_that_of_algorithm_1():
    # d/dtheta of e^w/D ||F - sg(F + g)||^2 - w at w = 0 is -2/D g . dF/dtheta; and that of w is ||g||^2/D - 1.
    denoiser, x_t, dx_dt = perturbed("mlp", "trig"), SD * normal(11), SD * normal(12)
    head, config = AdaptiveWeight(), TrigConfig()
    point = sample_point(SD * normal(11), config, SD, Draws(0, 0, 3))._replace(x_t=x_t, t=TIMES)
    loss, scalars = continuous_loss(denoiser, head, None, point, dx_dt, config, r=1.0)
    F = trig_net(denoiser, None)
    tangent = scaled_jvp(F, x_t, TIMES, dx_dt, SD)
    g = normalise(consistency_tangent(x_t, TIMES, dx_dt, tangent, SD, 1.0), config.c)
    by_hand = (-2 / 16 * g * F(x_t / SD, TIMES)).flatten(1).sum(1)
    parameters = list(denoiser.net.parameters())
    ours = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(by_hand.sum(), parameters), rtol=1e-6, atol=1e-9)
    bias = torch.autograd.grad(loss.sum(), head.linear.bias)[0]
    expected = (norm_per_sample(g) ** 2 / 16 - 1).sum()
    assert bias.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.shape == (3,)
    assert scalars["warmup_r"] == 1.0


def test_a_point_lies_on_the_path_at_a_lognormal_level():
    x, config, draws = torch.ones(20_000, 1, 1, 1), TrigConfig(P_mean=-1.0, P_std=1.4), Draws(3, 0, 20_000)
    point = sample_point(x, config, SD, draws)
    cos, sin = expand_like(torch.cos(point.t), x), expand_like(torch.sin(point.t), x)
    torch.testing.assert_close(point.x_t, cos * x + sin * point.z)
    tau = (SD * torch.tan(point.t)).log()
    # Five standard errors of a mean and of a variance of 20,000 draws.
    assert abs(tau.mean() + 1.0) < 5 * 1.4 / 20_000**0.5
    assert abs(tau.var() / 1.4**2 - 1) < 5 * (2 / 20_000) ** 0.5
    assert abs(point.z.std() / SD - 1) < 5 / 40_000**0.5


def test_warm_up_counts_images():
    config = TrigConfig(warmup_images=1000)
    assert [config.warmup(images) for images in (0, 250, 1000, 5000)] == [0, 0.25, 1, 1]
    assert TrigConfig(warmup_images=0).warmup(0) == 1
    assert TrigConfig().warmup_images == 10_000 * 512


def test_the_derivative_keeps_full_precision_under_autocast():
    denoiser = perturbed("mlp", "trig")
    denoiser.net.float()
    x_t, dx_dt = normal(13).float(), normal(14).float()
    plain = scaled_jvp(trig_net(denoiser, None), x_t, TIMES, dx_dt, SD)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scaled_jvp(trig_net(denoiser, None), x_t, TIMES, dx_dt, SD)
    assert mixed.F.dtype == mixed.scaled_dF.dtype == torch.float32
    assert torch.equal(mixed.scaled_dF, plain.scaled_dF)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_the_derivative_in_bf16_leaves_the_value_to_the_run(kind: str):
    denoiser = perturbed(kind, "trig")
    denoiser.net.float()
    x_t, dx_dt = normal(13).float(), normal(14).float()
    F = trig_net(denoiser, None)
    plain = scaled_jvp(F, x_t, TIMES, dx_dt, SD)
    for mixed in (False, True):
        with jvp_precision("bf16"), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            value, tangent = F(x_t / SD, TIMES), scaled_jvp(F, x_t, TIMES, dx_dt, SD)
        assert tangent.F.dtype == tangent.scaled_dF.dtype == torch.float32
        assert torch.equal(tangent.F, value.float())
        assert torch.equal(tangent.F, plain.F) != mixed
        error = (tangent.scaled_dF - plain.scaled_dF).norm() / plain.scaled_dF.norm()
        assert 1e-4 < error < 5e-2


@torch.no_grad()
def test_the_derivative_is_that_of_torch():
    denoiser, x_t, dx_dt = perturbed("unet", "log"), SD * normal(1), normal(2)
    F, scale = trig_net(denoiser, None), torch.cos(TIMES) * torch.sin(TIMES)
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(F, (x_t / SD, TIMES), (expand_like(scale, x_t) * dx_dt, scale * SD))
    ours = scaled_jvp(F, x_t, TIMES, dx_dt, SD)
    torch.testing.assert_close(ours.F, value, rtol=1e-12, atol=1e-13)
    assert (ours.scaled_dF - tangent).norm() < 1e-10 * tangent.norm()


def test_dropout_is_the_same_in_f_and_its_derivative():
    # With everything but dropout linear in time, the primal of the pass and its tangent share each dropped unit.
    class Dropped(nn.Module):
        def forward(self, x: Value, c_noise: Value, labels: Tensor | None) -> Value:
            del labels
            return dropout(mul(c_noise.reshape(-1, 1, 1, 1), torch.ones(x.shape, dtype=x.dtype)), 0.5)

    denoiser = Denoiser(Dropped(), sigma_data=SD, coordinate="trig")
    tangent = scaled_jvp(trig_net(denoiser, None), normal(15), TIMES, normal(16), SD)
    assert 0 < (tangent.F == 0).float().mean() < 1
    assert math.isclose(((tangent.F == 0) == (tangent.scaled_dF == 0)).float().mean(), 1)


@pytest.mark.parametrize("coordinate", ["log", "trig"])
def test_the_total_derivative_is_that_along_a_trajectory_in_ve_time(coordinate: NoiseCoordinate):
    denoiser, x, z = perturbed("mlp", coordinate), SD * normal(1), normal(2)
    t = torch.tensor([0.05, 0.8, 15.0], dtype=torch.float64)
    f, df_dt = total_derivative(denoiser, x + expand_like(t, z) * z, t, z)
    assert not df_dt.requires_grad
    graph = total_derivative(denoiser, x + expand_like(t, z) * z, t, z, graph=True)
    torch.testing.assert_close(graph, (f, df_dt), rtol=1e-11, atol=1e-13)
    assert graph[1].requires_grad
    torch.testing.assert_close(f, denoiser(x + expand_like(t, z) * z, t), rtol=0, atol=1e-14)
    expected = central_difference(lambda s: denoiser(x + expand_like(t * (1 + s), z) * z, t * (1 + s)))
    torch.testing.assert_close(expand_like(t, z) * df_dt, expected, rtol=1e-8, atol=1e-9)
