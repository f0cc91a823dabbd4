"""The parts against their formulas and against other implementations of them."""

import math

import pytest
import torch
from torch import nn

from cmcore.layers.embeddings import FourierFeatures, PositionalFeatures
from cmcore.layers.linear import conv, linear
from cmcore.layers.norms import ModulatedNorm, group_count, pixel_norm
from cmcore.layers.resample import Resample
from cmcore.layers.unet import Attention, Style
from cmcore.nets import unet


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def randomised(module, scale=0.5):
    torch.manual_seed(3)
    with torch.no_grad():
        for p in module.double().parameters():
            p.normal_(0, scale)
    return module


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (256, 32), (64, 16), (32, 8), (8, 2), (3, 1), (144, 24), (50, 10)]
)
def test_group_count(channels, groups):
    assert group_count(channels) == groups
    assert channels % groups == 0


def test_positional_features_reach_both_ends():
    features = PositionalFeatures(8, max_positions=1000).double()
    c = torch.tensor([0.0, 0.4], dtype=torch.float64)
    freqs = torch.tensor([1, 1e-1, 1e-2, 1e-3], dtype=torch.float64)
    expected = torch.cat([torch.sin(c[:, None] * freqs), torch.cos(c[:, None] * freqs)], dim=1)
    torch.testing.assert_close(features(c), expected, rtol=1e-6, atol=1e-9)  # frequencies are kept in float32


def test_fourier_features_have_their_scale_and_are_saved():
    torch.manual_seed(0)
    features = FourierFeatures(20_000, scale=16.0)
    assert features.freqs.std().item() == pytest.approx(16.0, rel=0.03)  # standard error 0.7 %
    assert "freqs" in features.state_dict()
    torch.testing.assert_close(features(torch.zeros(1))[0, 10_000:], torch.ones(10_000))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1000.0])
def test_pixel_norm_keeps_its_precision_where_a_half_has_no_room_for_squares(half: torch.dtype, scale: float):
    v = (scale * rand(5, 12)).to(half)
    y = pixel_norm(v)
    assert y.dtype == half
    torch.testing.assert_close(y.double(), pixel_norm(v.double()), rtol=2 * torch.finfo(half).eps, atol=0)


def test_pixel_norm_gives_unit_root_mean_square():
    y = pixel_norm(rand(5, 12) * 30)
    torch.testing.assert_close(y.square().mean(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["group", "adaptive", "double"])
@pytest.mark.parametrize("shape", [(3, 8, 4, 4), (3, 8)])
def test_modulated_norm_is_its_formula(kind, shape):
    module = randomised(ModulatedNorm(8, 6, kind, groups=2, eps=1e-6))
    x, e = rand(*shape), rand(3, 6)

    def norm(v):  # group normalisation written out
        g = v.reshape(3, 2, -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
        w, b = (module.norm.weight, module.norm.bias) if kind != "double" else (torch.ones(8), torch.zeros(8))
        return torch.einsum("bc...,c->bc...", g.reshape(shape), w.double()) + torch.einsum(
            "bc...,c->bc...", torch.ones(shape), b
        )

    modulation = e @ module.affine.weight.T + module.affine.bias
    modulation = modulation.reshape(3, -1, *[1] * (len(shape) - 2))
    if kind == "group":
        expected = norm(x + modulation)
    else:
        s, b = modulation[:, :8], modulation[:, 8:]
        if kind == "double":
            s, b = (v / v.square().mean(1, keepdim=True).sqrt() for v in (s, b))
        expected = norm(x) * (s if kind == "double" else 1 + s) + b
    torch.testing.assert_close(module(x, e), expected, rtol=1e-6, atol=1e-6)


def test_double_norm_is_bounded_whatever_the_modulation():
    # |norm(x)| has unit root mean square per group, so after both pixel norms the output's cannot exceed about 1 + 1.
    module = randomised(ModulatedNorm(16, 6, "double", groups=1), scale=1e3)
    y = module(rand(4, 16, 8, 8), rand(4, 6))
    assert y.square().mean((1, 2, 3)).sqrt().max() < 2.5
    assert randomised(ModulatedNorm(16, 6, "adaptive"), scale=1e3)(rand(4, 16, 8, 8), rand(4, 6)).abs().max() > 1e3


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_equals_the_fused_kernel(heads):
    style = Style(width=4, norm="group", norm_eps=1e-6, dropout=0.0, heads=heads, skip_scale=0.5)
    module = randomised(Attention(8, style))
    x = rand(2, 8, 4, 4)
    qkv = module.qkv(module.norm(x)).reshape(2, heads, 3, 8 // heads, 16).permute(2, 0, 1, 4, 3)
    y = nn.functional.scaled_dot_product_attention(*qkv).permute(0, 1, 3, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), (x + module.out(y)) * 0.5)


def test_resample_box_is_the_general_filter():
    x = rand(2, 3, 8, 8)
    for up in (False, True):
        module = Resample((1, 1), up=up).double()
        fast = module(x)
        module.box = False
        torch.testing.assert_close(fast, module(x))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resample_keeps_constants_and_means(taps):
    down, up = Resample(taps, up=False).double(), Resample(taps, up=True).double()
    ones = torch.ones(1, 2, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(down(ones)[..., 1:-1, 1:-1], ones[..., :6, :6])
    torch.testing.assert_close(up(ones)[..., 2:-2, 2:-2], ones[..., :1, :1].expand(1, 2, 28, 28))
    inside = nn.functional.pad(rand(1, 2, 8, 8), (4, 4, 4, 4))
    torch.testing.assert_close(down(inside).sum() * 4, inside.sum())
    torch.testing.assert_close(up(inside).sum() / 4, inside.sum())


def test_initial_gain_and_bias():
    torch.manual_seed(0)
    wide, dense = conv(64, 32, 3, gain=0.5), linear(400, 200)
    bound = 0.5 * math.sqrt(6 / ((64 + 32) * 9))
    assert 0.99 * bound < wide.weight.abs().max() <= bound
    assert dense.weight.std().item() == pytest.approx(math.sqrt(2 / 600), rel=0.02)
    assert not wide.bias.any()
    assert not dense.bias.any()


def test_unet_has_the_published_number_of_parameters():
    # 55.7M (arXiv 2206.00364, Table 7). EDM's file has 9 x 128 more: the augmentation labels, which are not built here.
    with torch.device("meta"):
        net = unet.build(unet.Config(), channels=3, resolution=32, classes=0)
    assert sum(p.numel() for p in net.parameters()) == 55_733_891 - 9 * 128


def test_unet_layer_names_and_resolution():
    config = unet.Config(model_channels=8, channel_mult=(1, 2, 2), blocks=1, attention_resolutions=())
    net = unet.build(config, channels=1, resolution=16, classes=0)
    assert list(net.encoder) == ["16x16_block0", "8x8_down", "8x8_block0", "4x4_down", "4x4_block0"]
    assert list(net.decoder)[:4] == ["4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1"]
    with pytest.raises(ValueError, match="expected a multiple of 4, got 18"):
        unet.build(config, channels=1, resolution=18, classes=0)
