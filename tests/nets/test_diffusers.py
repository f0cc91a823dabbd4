"""Networks of diffusers: the denoiser of the library's own scheduler, derivatives, captions, inputs."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import difference, jvp
from exports import diffusers_library, noise
from latent_models import FILES, SCHEDULE, TINY, write_model

from cmcore.assemble.imports import WeightsError, mismatches, net_of, read_public, shape_of
from cmcore.assemble.models import ModelShape, build_denoiser
from cmcore.assemble.run import NetChoice
from cmcore.closure import ROOT
from cmcore.config import ConfigError, plain, read
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL, Input, InputError
from cmcore.diffusion.precond import Denoiser, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Text, Words
from cmcore.layers.text import provide
from cmcore.nets.diffusers import MODELS, Config, build

WORDS = Words(("a", "big", "cat"), 3)
SIGMAS = torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _library() -> None:
    diffusers_library()


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def made(model: str = "unet", classes: int = 0, words: Words | None = None, **options: Any) -> Denoiser:
    """A network in float64 whose added layers are away from their initial zero."""
    inputs = options.pop("inputs", ())
    assert model in ("unet", "pixart")
    net = NetChoice(kind="diffusers", config=Config(model=model, arguments=TINY[model], **options), inputs=inputs)
    denoiser = build_denoiser(net, ModelShape(2, 8, classes, words), DiffusionConfig(), boundary=False).double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in denoiser.net.named_parameters():
            if not name.startswith(f"{MODELS[model].name}."):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_denoiser_is_that_of_the_librarys_scheduler(
    tmp_path: Path, model: str, prediction: str, schedule: str, sigma_data: float
):
    """x_0 as DDIM predicts it from the state a (x_0 + sigma z), at a timestep; in units of sigma_data here."""
    theirs = write_model(tmp_path, model, beta_schedule=schedule, prediction_type=prediction).double()
    public = read_public(tmp_path / FILES[model])
    assert all(name.startswith(f"{MODELS[model].name}.") for name in public.tensors)
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
            words = {"encoder_hidden_states": torch.zeros(1, 1, 12).double()}
            out = theirs(state, timestep=torch.tensor([n]), **words).sample[:, :1]
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
def test_every_coordinate_of_the_noise_level_means_the_same(model: str, coordinate: str):
    x = noise(3, 2, 8, 8)
    log = made(model)(x, SIGMAS)
    other = made(model, c_noise=coordinate)
    torch.testing.assert_close(other(x, SIGMAS), log, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_derivatives_along_a_direction_equal_differences(model: str, prediction: str):
    """The library's features of a timestep are float32, so differences by the level are coarse: of a few timesteps."""
    coarse = {"timesteps": 20, "beta_start": 0.01, "beta_end": 0.4}
    net = made(model, prediction=prediction, inputs=(Input("target", "time"),), **coarse).net
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


def test_every_word_and_its_place_count(model: str):
    denoiser, captions = made(model, words=WORDS), ("a big cat", "big a cat", "a cat", "")
    rows = torch.tensor([WORDS.encode(caption) for caption in captions])
    out = denoiser(noise(1, 2, 8, 8).expand(4, -1, -1, -1), torch.ones(4, dtype=torch.float64), rows)
    for first in range(4):
        for second in range(first):
            assert (out[first] - out[second]).abs().max() > 1e-6
    with pytest.raises(InputError, match=r"labels: expected rows of 3 words"):
        denoiser(noise(1, 2, 8, 8), torch.ones(1, dtype=torch.float64))


def test_classes_and_further_inputs_count_and_start_as_nothing(model: str):
    x, s = noise(3, 2, 8, 8), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    denoiser, labels = made(model, classes=3, inputs=(GUIDANCE,)), torch.tensor([0, 2, NO_LABEL])
    out = denoiser(x, SIGMAS, with_inputs(labels, guidance=s))
    assert (out - denoiser(x, SIGMAS, with_inputs(labels.roll(1), guidance=s))).abs().amax((1, 2, 3)).min() > 1e-6
    assert (out - denoiser(x, SIGMAS, labels)).abs().amax((1, 2, 3))[1:].min() > 1e-6
    config, c = Config(**{"model": model, "arguments": TINY[model]}), SIGMAS.log() / 4
    torch.manual_seed(0)
    new = build(config, channels=2, resolution=8, classes=3, inputs=(GUIDANCE,)).double().eval()
    torch.manual_seed(0)
    bare = build(config, channels=2, resolution=8, classes=0).double().eval()
    assert torch.equal(new(x, c, with_inputs(labels, guidance=s)), bare(x, c))
    with pytest.raises(InputError, match=r"labels: expected None, as the network is unconditional"):
        bare(x, c, labels)


def test_every_parameter_is_trained(model: str):
    denoiser = made(model, words=WORDS, inputs=(GUIDANCE,))
    rows = torch.tensor([WORDS.encode(caption) for caption in ("a big cat", "cat", "")])
    denoiser(noise(3, 2, 8, 8), SIGMAS, with_inputs(rows, guidance=SIGMAS)).square().sum().backward()
    still = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert [name for name in still if not name.endswith("to_k.bias")] == []  # which adds the same to all scores


def test_a_copy_and_stored_weights_compute_the_same(model: str):
    denoiser, x, s = made(model, inputs=(GUIDANCE,)), noise(3, 2, 8, 8), torch.tensor([1.0, 2.0, 3.0]).double()
    expected = denoiser(x, SIGMAS, with_inputs(None, guidance=s))
    copy, other = deepcopy(denoiser), made(model, inputs=(GUIDANCE,))
    with torch.no_grad():
        for parameter in [*other.parameters()]:
            parameter.zero_()
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(x, SIGMAS, with_inputs(None, guidance=s)), expected)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
    assert torch.equal(copy(x, SIGMAS, with_inputs(None, guidance=s)), expected)


def test_pixart_attends_to_the_tokens_of_a_caption_alone(monkeypatch: pytest.MonkeyPatch):
    """As if the vectors of T5 ended with the last token of each caption; the empty one has one."""
    monkeypatch.setattr("cmcore.layers.text._tables", {})
    vectors, lengths = noise(3, 5, 12), (1, 3, 5)
    for row, length in zip(vectors, lengths, strict=True):
        row[length:] = 0
    provide("t5", ["a cat", "a big black cat"], vectors.numpy())
    net: Any = made("pixart", words=Text("t5", 5, 12)).net
    x, c = noise(3, 2, 8, 8), SIGMAS.log() / 4
    found, sigma = net(x, c, torch.tensor([[0], [1], [NO_LABEL]])), 2 * SIGMAS
    for k, row in enumerate((1, 2, 0)):
        seen = {"encoder_hidden_states": vectors[row : row + 1, : lengths[row]]}
        timestep = net.features(net._timestep(sigma[k : k + 1]))
        eps = net.library(x[k : k + 1], timestep=timestep, **seen).sample[:, :2]
        expected = sigma[k] * x[k : k + 1] - (1 + sigma[k] ** 2).sqrt() * eps
        torch.testing.assert_close(found[k : k + 1], expected, rtol=1e-9, atol=1e-9)
        whole = {"encoder_hidden_states": vectors[row : row + 1]}
        padded = net.library(x[k : k + 1], timestep=timestep, **whole).sample[:, :2]
        assert ((padded - eps).abs().max() > 1e-6) == (lengths[row] < 5)


def test_pixart_is_told_the_size_of_images_where_it_asks(tmp_path: Path):
    """Pixels, eight along the side of a latent number, and the aspect ratio, as in the library's pipeline."""
    theirs = write_model(tmp_path, "pixart", arguments={"use_additional_conditions": True})
    public = read_public(tmp_path / FILES["pixart"])
    assert mismatches(public, net_of(public)) == []
    net = build(read(Config, public.options, "net"), channels=1, resolution=8, classes=0).eval()
    net.load_state_dict(public.tensors)
    x, sigma = noise(2, 1, 8, 8).float(), torch.tensor([0.3, 4.0])
    words, n = torch.zeros(2, 1, 12), net._timestep(sigma)
    found, other = (
        sigma[:, None, None, None] * x - (1 + sigma**2).sqrt()[:, None, None, None] * theirs(
            x, words, n, {"resolution": torch.full((2, 2), side), "aspect_ratio": torch.ones(2, 1)}
        ).sample[:, :1]
        for side in (64.0, 512.0)
    )  # fmt: skip
    ours = net(x, (0.5 * sigma).log() / 4)
    torch.testing.assert_close(ours, found, rtol=1e-5, atol=1e-5)
    assert (found - other).abs().max() > 1e-3


def test_pixart_has_the_positions_of_one_size(model: str, tmp_path: Path):
    write_model(tmp_path, model)
    found = read_public(tmp_path / FILES[model], hints={"resolution": 16})
    assert found.resolution == {"unet": 16, "pixart": 8}[model]


def test_pixart_of_an_earlier_version_is_read(tmp_path: Path):
    """Its class was one for all transformers, with arguments that are no more."""
    write_model(tmp_path, "pixart")
    config = tmp_path / "transformer/config.json"
    known = json.loads(config.read_text())
    earlier = {"_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None}
    expected = read_public(tmp_path / FILES["pixart"])
    config.write_text(json.dumps({**known, **earlier}))
    found = read_public(tmp_path / FILES["pixart"])
    assert (found.options, mismatches(found, net_of(found))) == (expected.options, [])
    config.write_text(json.dumps({**known, **earlier, "norm_type": "ada_norm_zero"}))
    with pytest.raises(WeightsError, match="no network of a known family"):
        read_public(tmp_path / FILES["pixart"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": {"in_channels": 4}}, "net.arguments.in_channels: expected nothing, as the data decide it"),
        ({"arguments": {"addition_embed_type": "text_time"}}, "net.arguments.addition_embed_type: expected null"),
        ({"arguments": {"cross_attention_dim": [8, 16]}}, "net.arguments.cross_attention_dim: expected one number"),
        ({"model": "pixart"}, "net.arguments.caption_channels: expected one number"),
        ({"model": "dit"}, "net.model: expected "),
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
    for model, wrong in (
        ("unet", {"widths": [8]}),
        ("unet", {"block_out_channels": [16]}),
        ("pixart", {"widths": [8]}),
    ):
        config = Config(**{"model": model, "arguments": {**TINY[model], **wrong}})
        with pytest.raises(ValueError, match=f"^arguments: expected those of {MODELS[model].library}, got") as error:
            build(config, channels=1, resolution=8, classes=0)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cross_attention_dim": 20}, r"cross_attention_dim: expected .* = 24, got 20"),
        ({"patch_size": 3}, r"patch_size: expected a divisor of the resolution 8, got 3"),
        (
            {"attention_head_dim": 8, "cross_attention_dim": 16, "use_additional_conditions": True},
            r"use_additional_conditions: expected .* to be 3 n, got 16",
        ),
    ],
)
def test_arguments_that_pixart_would_only_miss_at_the_first_images_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"^arguments\.{message}$"):
        build(Config(model="pixart", arguments={**TINY["pixart"], **wrong}), channels=1, resolution=8, classes=0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_pixart_without_a_variance_is_refused(tmp_path: Path, outputs: int):
    write_model(tmp_path, "pixart", arguments={"out_channels": outputs})
    with pytest.raises(WeightsError, match=rf"out_channels: expected 2 \* in_channels .* = 2, got {outputs}$"):
        read_public(tmp_path / FILES["pixart"])


def test_options_are_plain_data(model: str):
    config = Config(**{"model": model, "arguments": TINY[model], "prediction": "v_prediction"})
    assert read(Config, plain(config), "net") == config


def test_the_library_is_found_by_a_process_that_has_not_imported_torchvision():
    """Its compiled operators may not fit the installed torch (cmcore/torchvision_ops.py)."""
    code = f"from cmcore.nets.diffusers import library_class; print(*(library_class(m).__name__ for m in {[*MODELS]}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [known.library for known in MODELS.values()], done.stderr


def test_without_the_package_it_says_so(model: str, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"^net\.kind: needs diffusers, which is not installed: pip install"):
        build(Config(**{"model": model, "arguments": TINY[model]}), channels=1, resolution=8, classes=0)
