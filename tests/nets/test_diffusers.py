"""UNet2DConditionModel as a network: the denoiser of diffusers' own scheduler, derivatives, captions, inputs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import difference, jvp
from exports import diffusers_library, noise
from public_unet import SCHEDULE, TINY, write_model

from cmcore.assemble.imports import mismatches, net_of, read_public, shape_of
from cmcore.assemble.models import ModelShape, build_denoiser
from cmcore.assemble.run import NetChoice
from cmcore.config import ConfigError, plain, read
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL, Input, InputError
from cmcore.diffusion.precond import Denoiser, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Words
from cmcore.nets.diffusers import Config, build

UNET = Path("unet/diffusion_pytorch_model.safetensors")
WORDS = Words(("a", "big", "cat"), 3)
SIGMAS = torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _library() -> None:
    diffusers_library()


def made(classes: int = 0, words: Words | None = None, **options: Any) -> Denoiser:
    """A network in float64 whose added layers are away from their initial zero."""
    inputs = options.pop("inputs", ())
    net = NetChoice(kind="diffusers", config=Config(arguments=TINY, **options), inputs=inputs)
    denoiser = build_denoiser(net, ModelShape(2, 8, classes, words), DiffusionConfig(), boundary=False).double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in denoiser.net.named_parameters():
            if not name.startswith("unet."):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_denoiser_is_that_of_the_librarys_scheduler(
    tmp_path: Path, prediction: str, schedule: str, sigma_data: float
):
    """x_0 as DDIM predicts it from the state a (x_0 + sigma z), at a timestep; in units of sigma_data here."""
    theirs = write_model(tmp_path, beta_schedule=schedule, prediction_type=prediction).double()
    public = read_public(tmp_path / UNET)
    assert mismatches(public, net_of(public)) == []
    config = Config(**{**public.options, "sigma_data": sigma_data})
    diffusion = DiffusionConfig(sigma_data=sigma_data)
    ours = build_denoiser(NetChoice(kind="diffusers", config=config), shape_of(public), diffusion, boundary=False)
    ours.net.load_state_dict(public.tensors)
    ours.double().eval()
    scheduler = diffusers_library().DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    scheduler.set_timesteps(1000)
    x = noise(1, 1, 8, 8)
    for n in (0, 37, 500, 990):
        squared = scheduler.alphas_cumprod[n].double()
        sigma = ((1 - squared) / squared).sqrt()
        state = squared.sqrt() * (0.7 + sigma * x)
        with torch.no_grad():
            out = theirs(state, torch.tensor([n]), torch.zeros(1, 1, 12).double()).sample
            found = ours(sigma_data * (0.7 + sigma * x), sigma_data * sigma[None])
        expected = scheduler.step(out, n, state).pred_original_sample
        assert float(expected.std()) > 1e-3
        scale = float(expected.abs().max())
        torch.testing.assert_close(found / sigma_data, expected, rtol=0, atol=2e-5 * scale)


def test_levels_between_timesteps_are_those_of_the_library():
    scheduler = diffusers_library().EulerDiscreteScheduler(**SCHEDULE)
    known, net = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).log().numpy(), made().net
    sigma = torch.tensor([0.001, 0.0292, 0.05, 0.77, 3.3, 14.0, 14.7, 900.0], dtype=torch.float64)
    found = net._timestep(sigma)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    expected = torch.from_numpy(scheduler._sigma_to_t(sigma.numpy(), known))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert float(found.detach()[0]) == 0
    assert float(found.detach()[-1]) == 999


@pytest.mark.parametrize("coordinate", ["log", "trig", "log1000"])
def test_every_coordinate_of_the_noise_level_means_the_same(coordinate: str):
    x = noise(3, 2, 8, 8)
    log = made()(x, SIGMAS)
    other = made(c_noise=coordinate)
    torch.testing.assert_close(other(x, SIGMAS), log, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_derivatives_along_a_direction_equal_differences(prediction: str):
    """The library's features of a timestep are float32, so differences by the level are coarse: of a few timesteps."""
    coarse = {"timesteps": 20, "beta_start": 0.01, "beta_end": 0.4}
    net = made(prediction=prediction, inputs=(Input("target", "time"),), **coarse).net
    x, c = noise(3, 2, 8, 8), SIGMAS.log() / 4
    dx, zero = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2)), torch.zeros_like(c)

    def raw(x: Any, c: Any, r: Any) -> Any:
        return net(x, c, with_inputs(None, target=r))

    for along, tolerance in (((dx, zero, zero), 1e-6), ((0 * dx, zero, zero + 1), 1e-6)):
        value, tangent = jvp(raw, (x, c, c - 0.1), along)
        torch.testing.assert_close(value, raw(x, c, c - 0.1))
        expected = difference(raw, (x, c, c - 0.1), along)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(tangent, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        assert value.requires_grad
        assert not tangent.requires_grad
    h, one = 1e-3, torch.ones_like(c)
    tangent = jvp(raw, (x, c, c), (0 * dx, one, zero))[1]
    expected = (raw(x, c + h, c) - raw(x, c - h, c)) / (2 * h)
    assert (tangent - expected).norm() < 0.01 * expected.norm()


def test_every_word_and_its_place_count():
    denoiser, captions = made(words=WORDS), ("a big cat", "big a cat", "a cat", "")
    rows = torch.tensor([WORDS.encode(caption) for caption in captions])
    out = denoiser(noise(1, 2, 8, 8).expand(4, -1, -1, -1), torch.ones(4, dtype=torch.float64), rows)
    for first in range(4):
        for second in range(first):
            assert (out[first] - out[second]).abs().max() > 1e-6
    with pytest.raises(InputError, match=r"labels: expected rows of 3 words"):
        denoiser(noise(1, 2, 8, 8), torch.ones(1, dtype=torch.float64))


def test_classes_and_further_inputs_count_and_start_as_nothing():
    x, s = noise(3, 2, 8, 8), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    denoiser, labels = made(classes=3, inputs=(GUIDANCE,)), torch.tensor([0, 2, NO_LABEL])
    out = denoiser(x, SIGMAS, with_inputs(labels, guidance=s))
    assert (out - denoiser(x, SIGMAS, with_inputs(labels.roll(1), guidance=s))).abs().amax((1, 2, 3)).min() > 1e-6
    assert (out - denoiser(x, SIGMAS, labels)).abs().amax((1, 2, 3))[1:].min() > 1e-6
    torch.manual_seed(0)
    new = build(Config(arguments=TINY), channels=2, resolution=8, classes=3, inputs=(GUIDANCE,)).double().eval()
    torch.manual_seed(0)
    bare = build(Config(arguments=TINY), channels=2, resolution=8, classes=0).double().eval()
    c = SIGMAS.log() / 4
    assert torch.equal(new(x, c, with_inputs(labels, guidance=s)), bare(x, c))
    with pytest.raises(InputError, match=r"labels: expected None, as the network is unconditional"):
        bare(x, c, labels)


def test_every_parameter_is_trained():
    denoiser = made(words=WORDS, inputs=(GUIDANCE,))
    rows = torch.tensor([WORDS.encode(caption) for caption in ("a big cat", "cat", "")])
    denoiser(noise(3, 2, 8, 8), SIGMAS, with_inputs(rows, guidance=SIGMAS)).square().sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": {"in_channels": 4}}, "net.arguments.in_channels: expected nothing, as the data decide it"),
        ({"arguments": {"addition_embed_type": "text_time"}}, "net.arguments.addition_embed_type: expected null"),
        ({"arguments": {"cross_attention_dim": [8, 16]}}, "net.arguments.cross_attention_dim: expected one number"),
        ({"prediction": "sample"}, "net.prediction: expected "),
        ({"beta_schedule": "sigmoid"}, "net.beta_schedule: expected "),
        ({"beta_start": 0.0}, "net.beta_start: expected "),
        ({"beta_end": 0.0001}, "net.beta_end: expected "),
        ({"timesteps": 1}, "net.timesteps: expected at least 2"),
        ({"sigma_data": 0.0}, "net.sigma_data: expected a positive"),
    ],
)
def test_wrong_options_name_their_key(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        read(Config, options, "net")


def test_arguments_that_the_library_does_not_know_are_an_error_of_one_line():
    for wrong in ({"widths": [8]}, {"block_out_channels": [16]}):
        with pytest.raises(ValueError, match=r"^arguments: expected those of UNet2DConditionModel, got") as error:
            build(Config(arguments={**TINY, **wrong}), channels=1, resolution=8, classes=0)
        assert "\n" not in str(error.value)


def test_options_are_plain_data():
    config = Config(arguments=TINY, prediction="v_prediction")
    assert read(Config, plain(config), "net") == config


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"^net\.kind: needs diffusers, which is not installed: pip install"):
        build(Config(arguments=TINY), channels=1, resolution=8, classes=0)
