"""What every network must do, whatever its shape: `CASES` lists each network with each of its norms and embeddings."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from cmcore.config import ConfigError, plain, read
from cmcore.nets import edm2, mlp, unet
from cmcore.rng import Draws

UNET = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "blocks": 1,
    "attention_resolutions": (8,),
    "dropout": 0.0,
    "heads": 2,
}
MLP = {"hidden": 24, "blocks": 2, "features": 8, "embedding_width": 16}
EDM2 = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,), "head_channels": 4}
OPTIONS = list(itertools.product(("group", "adaptive", "double"), ("positional", "fourier")))
CASES = [
    *[(unet, {**UNET, "norm": norm, "embedding": embedding}) for norm, embedding in OPTIONS],
    (unet, {**UNET, "resample_filter": (1, 3, 3, 1), "resample_proj": False, "noise_mult": 2}),
    *[(mlp, {**MLP, "norm": norm, "embedding": embedding}) for norm, embedding in OPTIONS],
    (mlp, {**MLP, "expansion": 2}),
    *[
        (edm2, {**EDM2, "modulation": modulation, "embedding": embedding})
        for modulation, embedding in itertools.product(("gain", "double"), ("positional", "fourier"))
    ],
]
every_net = pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda v: getattr(v, "__name__", None))


def make(kind, fields, *, classes=0, channels=2, scale=0.15, **more) -> nn.Module:
    """A small net in float64 with no parameter left at its (partly zero) initial value."""
    torch.manual_seed(0)
    config = kind.Config(**{**fields, **more, "fourier_scale": 0.5})
    net = kind.build(config, channels=channels, resolution=8, classes=classes).double()
    with torch.no_grad():
        for parameter in net.parameters():
            # Gains are single numbers, and with a small one nothing behind it would be seen.
            parameter.add_(torch.randn_like(parameter) * scale if parameter.ndim else 0.7)
    return net.eval()


def inputs(batch=3, channels=2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.tensor([-1.5, 0.3, 1.1], dtype=torch.float64)[:batch]


@every_net
def test_starts_at_zero(kind, fields):
    net = kind.build(kind.Config(**fields), channels=2, resolution=8, classes=0)
    x, c_noise = inputs()
    out = net(x.float(), c_noise.float())
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.zeros_like(out))


@every_net
def test_jvp_equals_central_differences(kind, fields):
    net = make(kind, fields)
    x, c = inputs()
    g = torch.Generator().manual_seed(2)
    dx = torch.randn(x.shape, generator=g, dtype=x.dtype)
    dc = torch.tensor([0.7, -1.3, 0.4], dtype=x.dtype)
    zero_x, zero_c, h = torch.zeros_like(dx), torch.zeros_like(dc), 1e-5
    for vx, vc in ((dx, zero_c), (zero_x, dc), (dx, dc)):
        primal, tangent = torch.func.jvp(lambda x, c: net(x, c), (x, c), (vx, vc))
        with torch.no_grad():
            expected = (net(x + h * vx, c + h * vc) - net(x - h * vx, c - h * vc)) / (2 * h)
            torch.testing.assert_close(primal, net(x, c))
        assert expected.abs().mean() > 1e-3
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


@every_net
def test_every_parameter_matters(kind, fields):
    net = make(kind, fields, classes=3)
    x, c = inputs()
    net(x, c, torch.tensor([0, 1, 2])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@every_net
def test_images_do_not_see_each_other(kind, fields):
    net = make(kind, fields)
    x, c = inputs()
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, c), alone, rtol=1e-10, atol=1e-10)


@every_net
def test_class_conditional(kind, fields):
    net = make(kind, fields, classes=4)
    x, c = inputs()
    first, second = net(x, c, torch.tensor([0, 1, 2])), net(x, c, torch.tensor([0, 3, 2]))
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="expected class indices below 4, got None"):
        net(x, c)
    with pytest.raises(ValueError, match="expected None"):
        make(kind, fields)(x, c, torch.tensor([0, 1, 2]))


@every_net
def test_weights_round_trip_through_plain_tensors(kind, fields):
    net = make(kind, fields)
    state = net.state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())  # safetensors refuses anything else
    torch.manual_seed(99)
    other = kind.build(kind.Config(**{**fields, "fourier_scale": 0.5}), channels=2, resolution=8, classes=0).double()
    other.load_state_dict(state)
    x, c = inputs()
    assert torch.equal(other.eval()(x, c), net(x, c))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "fields"), [(unet, UNET), (mlp, MLP), (edm2, EDM2)], ids=["unet", "mlp", "edm2"])
def test_dropout_replay(kind, fields, device):
    net = make(kind, fields, dropout=0.3).float().to(device).train()
    x, c = (v.float().to(device) for v in inputs())
    draws = Draws(7, 256, 3, device=device)
    with draws.dropout():
        student = net(x, c)
    torch.rand(5, device=device)  # other numbers drawn in between must not matter
    with draws.dropout(), torch.no_grad():
        target = net(x, c)
    with draws.dropout():
        primal, _ = torch.func.jvp(lambda x: net(x, c), (x,), (torch.ones_like(x),))
    assert torch.equal(student, target)
    torch.testing.assert_close(primal, student)
    with Draws(7, 512, 3, device=device).dropout():
        assert not torch.equal(net(x, c), student)


@pytest.mark.parametrize("kind", [unet, mlp])
def test_config_round_trip_and_defaults(kind):
    config = kind.Config(norm="double", c_noise="trig")
    assert read(kind.Config, plain(config)) == config
    assert kind.Config().c_noise == "log"


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        (unet, {"model_channels": 0}, "model_channels"),
        (unet, {"model_channels": 7}, "model_channels"),
        (unet, {"channel_mult": []}, "channel_mult"),
        (unet, {"channel_mult": [1, 0]}, "channel_mult"),
        (unet, {"heads": 3}, "heads"),
        (unet, {"dropout": 1.0}, "dropout"),
        (unet, {"norm": "batch"}, "norm"),
        (unet, {"embedding": "sine"}, "embedding"),
        (unet, {"c_noise": "sigma"}, "c_noise"),
        (unet, {"resample_filter": [1, 2, 1]}, "resample_filter"),
        (unet, {"fourier_scale": 0}, "fourier_scale"),
        (unet, {"chanel_mult": [1]}, "chanel_mult"),
        (mlp, {"hidden": 0}, "hidden"),
        (mlp, {"features": 5}, "features"),
        (mlp, {"dropout": -0.1}, "dropout"),
        (mlp, {"norm_eps": 0.0}, "norm_eps"),
        (edm2, {"head_channels": 0}, "head_channels"),
        (edm2, {"modulation": "adaptive"}, "modulation"),
        (edm2, {"concat_balance": 1.0}, "concat_balance"),
        (edm2, {"dropout_resolution": -1}, "dropout_resolution"),
        (edm2, {"clip": 0}, "clip"),
    ],
)
def test_wrong_options_name_their_key(kind, fields, key):
    with pytest.raises(ConfigError, match=rf"^net\.{key}: "):
        read(kind.Config, fields, "net")


@every_net
def test_wrong_inputs_say_what_was_expected(kind, fields):
    net = make(kind, fields)
    x, c = inputs()
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 2, 8, 8\), got \(3, 2, 8, 4\)"):
        net(x[..., :4], c)
    with pytest.raises(ValueError, match=r"c_noise: expected shape \(B,\), got \(\)"):
        net(x, c[0])
