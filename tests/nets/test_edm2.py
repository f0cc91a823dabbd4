"""EDM2's network: against numbers of the public implementation, and against what its layers promise."""

import copy
import math

import pytest
import torch
from duals import jvp
from torch import Tensor, nn

from cmcore.diffusion.precond import Condition, Denoiser
from cmcore.layers.attention import attend
from cmcore.layers.edm2 import CosineAttention, Positional, mp_cat, mp_silu, mp_sum
from cmcore.layers.magnitude import MPConv, MPFourier, force_normalisation, unit_magnitude, unit_weights
from cmcore.nets import edm2

TINY = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,), "head_channels": 4}
ODD = {
    "model_channels": 8, "channel_mult": (1, 3, 2), "blocks": 2, "attention_resolutions": (8, 4), "head_channels": 8,
    "noise_mult": 2, "embedding_mult": 3, "concat_balance": 0.4, "residual_balance": 0.25, "attention_balance": 0.35,
    "clip": 2.0,
}  # fmt: skip
# Six equidistant outputs and the root mean square of all, computed in float64 by the public implementation of the
# architecture with weights and inputs of `wave`: in evaluation, and in training, where weights are normalised twice.
VECTORS = {
    ("conditional", "eval"): (
        [-0.164410611585, 0.143493208731, -0.111134729479, 0.0692092128502, -0.0346168155115, 0.0429611607819],
        0.17944740758,
    ),
    ("conditional", "train"): (
        [-0.164455754704, 0.143521636051, -0.111159522592, 0.0692195423507, -0.0346274753592, 0.0429850975038],
        0.179515053549,
    ),
    ("unconditional", "eval"): (
        [-0.0499148698675, -0.187232309851, -0.00440967147247, -0.119553447184, -0.0118738628549, -0.0452133606149],
        0.136147915145,
    ),
    ("unconditional", "train"): (
        [-0.0499297086409, -0.187227679033, -0.00440925477699, -0.119567721743, -0.0118367575137, -0.0451372128739],
        0.136163546611,
    ),
}
SHAPES = {
    "conditional": (TINY, {"channels": 3, "resolution": 16, "classes": 5}),
    "unconditional": (ODD, {"channels": 4, "resolution": 8, "classes": 0}),
}


def wave(shape: tuple[int, ...], k: int) -> Tensor:
    """Numbers of a formula, so that no weight file is needed."""
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(0.37 * n * (1 + 0.01 * k) + k).reshape(shape)


def waved(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for k, (_, tensor) in enumerate(sorted(net.state_dict().items())):
            tensor.copy_(wave(tuple(tensor.shape), k) if tensor.ndim else 0.6 + 0.1 * wave((), k))
    return net


def tiny(seed: int = 0, *, classes: int = 0, resolution: int = 8, **fields: object) -> nn.Module:
    torch.manual_seed(seed)
    config = edm2.Config(**{**TINY, **fields})
    return edm2.build(config, channels=2, resolution=resolution, classes=classes)


@pytest.mark.parametrize(("case", "mode"), VECTORS)
def test_forward_equals_the_public_implementation(case: str, mode: str):
    fields, shape = SHAPES[case]
    net = waved(edm2.build(edm2.Config(**fields), **shape).double()).train(mode == "train")
    if mode == "train":
        force_normalisation(unit_weights(net))
    x = wave((3, shape["channels"], shape["resolution"], shape["resolution"]), 50)
    labels = torch.tensor([1, 0, 4]) if shape["classes"] else None
    F = net(x, torch.tensor([-0.9, 0.1, 0.7], dtype=torch.float64), labels).detach()
    values, rms = VECTORS[case, mode]
    torch.testing.assert_close(F.flatten()[:: F.numel() // 6][:6].tolist(), values, rtol=1e-9, atol=1e-11)
    assert float(F.square().mean().sqrt()) == pytest.approx(rms, rel=1e-9)


# Published: S 280M, M 498M, L 778M, XL 1.1B, XXL 1.5B (arXiv 2312.02696, Tables 2 and 3); exact ones were counted in
# the public implementation.
COUNTS = {
    "img64-s": 280_209_253, "img64-m": 497_803_045, "img64-l": 777_492_197, "img64-xl": 1_119_276_709,
    "img512-xs": 124_713_125, "img512-s": 280_212_709, "img512-m": 497_807_653, "img512-l": 777_497_957,
    "img512-xl": 1_119_283_621, "img512-xxl": 1_523_164_645,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_numbers_of_parameters(name: str):
    with torch.device("meta"):
        net = edm2.build(edm2.PRESETS[name], channels=3 if "img64" in name else 4, resolution=64, classes=1000)
    assert sum(p.numel() for p in net.parameters()) == COUNTS[name]


def test_every_preset_is_counted():
    assert set(COUNTS) == set(edm2.PRESETS)
    assert {name for name, config in edm2.PRESETS.items() if config.dropout == 0} == {
        "img64-s",
        "img512-xs",
        "img512-s",
    }


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def magnitude(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def test_activations_sums_and_concatenations_keep_unit_magnitude():
    # 400,000 numbers: the standard error of a root mean square is below 0.003.
    a, b, wide = normal(1, 4, 100, 1000), normal(1, 4, 100, 1000, seed=1), normal(1, 12, 100, 1000, seed=2)
    assert magnitude(mp_silu(a)) == pytest.approx(1, abs=0.006)
    for t in (0.3, 0.5, 0.8):
        assert magnitude(mp_sum(a, b, t)) == pytest.approx(1, abs=0.01)
        joined = mp_cat(a, wide, t)
        assert joined.square().mean() == pytest.approx(1, abs=0.02)
        # Both parts contribute as in the sum, whatever their numbers of channels.
        ratio = joined[:, 4:].square().sum() / joined[:, :4].square().sum()
        assert float(ratio) == pytest.approx((t / (1 - t)) ** 2, rel=0.02)
    torch.testing.assert_close(mp_sum(a, b, 0.3), (0.7 * a + 0.3 * b) / math.sqrt(0.58))


@pytest.mark.parametrize(
    ("kernel", "x"), [(0, normal(4000, 50)), (1, normal(8, 50, 30, 30)), (3, normal(8, 20, 32, 32))]
)
def test_a_layer_keeps_unit_magnitude_whatever_the_length_of_its_weights(kernel: int, x: Tensor):
    torch.manual_seed(0)
    layer = MPConv(x.shape[1], 200, kernel).double()
    y = layer(x)
    inside = y[..., 1:-1, 1:-1] if kernel == 3 else y  # zero padding dims the border
    assert magnitude(inside) == pytest.approx(1, abs=0.03)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.5, 20, 200, dtype=torch.float64).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    torch.testing.assert_close(layer(x), y, rtol=3e-4, atol=0)  # up to the 1e-4 that is added to the length
    torch.testing.assert_close(layer(x, gain=0.25), layer(x) * 0.25)


@pytest.mark.parametrize("features", [MPFourier(4000), MPFourier(4000, bandwidth=0.02), Positional(4000)])
def test_features_of_the_noise_level_have_unit_magnitude(features: nn.Module):
    y = features(torch.tensor([-1.5, 0.0, 1.1]))
    assert y.shape == (3, 4000)
    torch.testing.assert_close(y.square().mean(1), torch.ones(3), rtol=0.06, atol=0)
    if isinstance(features, Positional):
        torch.testing.assert_close(y.square().mean(1), torch.ones(3))


def test_the_whole_network_keeps_magnitudes_near_one():
    net = tiny(resolution=16, model_channels=32, channel_mult=(1, 2, 2), blocks=2, head_channels=16)
    seen: list[float] = []
    for part in (net.encoder, net.decoder):
        for block in part.values():
            block.register_forward_hook(lambda _, __, y: seen.append(magnitude(y)))
    with torch.no_grad():
        net(normal(4, 2, 16, 16).float(), torch.linspace(-1, 1, 4))
    assert len(seen) == len(net.encoder) + len(net.decoder)
    assert 0.7 < min(seen) <= max(seen) < 1.4


def test_pixel_norm_divides_by_the_root_mean_square():
    x = normal(3, 5, 4, 4)
    torch.testing.assert_close(unit_magnitude(x, (1,)), x / (1e-4 + x.square().mean(1, keepdim=True).sqrt()))
    half = (x * 3e3).half()  # squares of these overflow in float16
    torch.testing.assert_close(unit_magnitude(half, (1,)).double(), unit_magnitude(x, (1,)), rtol=2e-3, atol=2e-3)
    assert not unit_magnitude(torch.zeros(1, 3), (1,)).any()


def weights(net: nn.Module) -> list[MPConv]:
    return [module for module in net.modules() if isinstance(module, MPConv)]


def lengths(layer: MPConv) -> Tensor:
    return layer.weight.detach().flatten(1).square().mean(1).sqrt()


def test_forced_normalisation_settles_at_unit_length():
    net = tiny(classes=3)
    with torch.no_grad():
        for layer in weights(net):
            layer.weight.mul_(7)
    force_normalisation(unit_weights(net))
    assert all(torch.allclose(lengths(layer), torch.ones(()), atol=1.1e-4) for layer in weights(net))
    force_normalisation(unit_weights(net))
    settled = copy.deepcopy(net.state_dict())
    force_normalisation(unit_weights(net))
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, settled[name], rtol=1e-6, atol=1e-6)
    assert len(weights(net)) == sum(name.endswith("weight") for name, _ in net.named_parameters())


def test_gradients_are_orthogonal_to_the_weights():
    net = tiny().double()
    nn.init.constant_(net.gain, 1.0)
    net(normal(2, 2, 8, 8), torch.zeros(2, dtype=torch.float64)).square().sum().backward()
    for layer in weights(net):
        w, g = layer.weight.detach().flatten(1), layer.weight.grad.flatten(1)
        cosine = (w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1)).clamp(min=1e-12)
        assert cosine.abs().max() < 1e-3


def test_a_forward_pass_writes_nothing():
    net = tiny(dropout=0.3).train()
    before = copy.deepcopy(net.state_dict())
    twin = copy.deepcopy(net)
    x = normal(2, 2, 8, 8).float()
    jvp(lambda x: net(x, torch.zeros(2)), (x,), (x,))
    # Two passes, one backward: nothing that the first one needs was overwritten by the second.
    (net(x, torch.zeros(2)) + net(-x, torch.zeros(2))).sum().backward()
    force_normalisation(unit_weights(twin))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not torch.equal(twin.input.weight, net.input.weight)


def test_attention_is_of_cosines():
    torch.manual_seed(0)
    module = CosineAttention(12, head_channels=6, balance=0.3).double()
    x = normal(2, 12, 3, 3)
    qkv = module.qkv(x).reshape(2, 2, 6, 3, 9)
    q, k, v = (qkv / (qkv.square().mean(2, keepdim=True).sqrt() + 1e-4)).unbind(3)
    y = torch.stack([v[..., j] for j in range(9)], -1) @ torch.softmax(q.mT @ k / math.sqrt(6), -1).mT
    expected = (0.7 * x + 0.3 * module.out(y.reshape(x.shape))) / math.sqrt(0.58)
    torch.testing.assert_close(module(x), expected)
    large = normal(2, 12, 3, 3, seed=3)
    torch.testing.assert_close(module.qkv(large * 1e3) * 1e-3, module.qkv(large))


def test_fused_and_written_out_attention_agree():
    q, k, v = (normal(2, 3, 7, 4, seed=s) for s in range(3))
    primal, tangent = jvp(attend, (q, k, v), (k, v, q))
    torch.testing.assert_close(primal, attend(q, k, v))
    h = 1e-6
    both = [attend(q + s * h * k, k + s * h * v, v + s * h * q) for s in (1, -1)]
    torch.testing.assert_close(tangent, (both[0] - both[1]) / (2 * h), rtol=1e-7, atol=1e-8)


def test_dropout_can_be_kept_to_small_resolutions():
    def dropping(**fields: object) -> set[str]:
        net = tiny(resolution=16, channel_mult=(1, 1, 1), **fields)
        return {n for part in (net.encoder, net.decoder) for n, block in part.items() if block.dropout}

    everywhere = dropping(dropout=0.5)
    assert dropping() == set()
    assert everywhere == {*(f"{r}x{r}_block{i}" for r in (16, 8, 4) for i in range(2)),
                          "8x8_down", "4x4_down", "4x4_in0", "4x4_in1", "8x8_up", "16x16_up"}  # fmt: skip
    assert dropping(dropout=0.5, dropout_resolution=8) == {n for n in everywhere if not n.startswith("16x16")}


def test_double_modulation_is_bounded_and_equals_the_plain_one_at_the_start():
    x, c = normal(2, 2, 8, 8).float(), torch.tensor([-1.0, 1.0])
    plain, double = tiny(), tiny(modulation="double")
    for net in (plain, double):
        nn.init.constant_(net.gain, 1.0)
    torch.testing.assert_close(plain(x, c), double(x, c))
    for net in (plain, double):
        for block in (*net.encoder.values(), *net.decoder.values()):
            nn.init.constant_(block.gain, 1e3)
    block = double.encoder["8x8_block0"]
    kept: list[Tensor] = []
    block.conv1.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    plain.encoder["8x8_block0"].conv1.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    double(x, c), plain(x, c)
    assert magnitude(kept[0]) < 3 < 100 < magnitude(kept[1])


def test_the_denoiser_starts_as_the_optimal_one_for_gaussian_data():
    for coordinate in ("log", "trig"):
        net = tiny(c_noise=coordinate, embedding="positional" if coordinate == "trig" else "fourier")
        x, sigma = normal(3, 2, 8, 8), torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
        D = Denoiser(net, sigma_data=0.5, coordinate=coordinate)(x, sigma)
        torch.testing.assert_close(D, x * (0.25 / (sigma**2 + 0.25))[:, None, None, None], rtol=1e-6, atol=1e-9)


def test_labels_may_come_in_a_condition():
    net = tiny(classes=3)
    nn.init.constant_(net.gain, 1.0)
    for block in (*net.encoder.values(), *net.decoder.values()):
        nn.init.constant_(block.gain, 1.0)
    x, c, labels = normal(2, 2, 8, 8).float(), torch.zeros(2), torch.tensor([2, 0])
    assert torch.equal(net(x, c, labels), net(x, c, Condition(labels)))
    assert not torch.equal(net(x, c, labels), net(x, c, labels.flip(0)))
    with pytest.raises(ValueError, match="augment: expected None"):
        net(x, c, Condition(labels, torch.zeros(2, 9)))


def test_shapes_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="expected a multiple of 2, got 9"):
        tiny(resolution=9)
    with pytest.raises(ValueError, match="head_channels: expected a divisor of 8 channels, got 3"):
        tiny(head_channels=3)
