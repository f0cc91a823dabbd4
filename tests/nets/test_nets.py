"""What every network must do, whatever its shape: `CASES` lists each network with each of its norms and embeddings."""

import itertools

import pytest
import torch
from devices import CUDA, MPS
from duals import difference, jvp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmcore.config import ConfigError, plain, read
from cmcore.diffusion.precond import Condition
from cmcore.dual import Dual
from cmcore.nets import adm, dit, edm2, gaussian_unet, mlp, unet
from cmcore.rng import Draws

UNET = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "blocks": 1,
    "attention_resolutions": (8,),
    "dropout": 0.0,
    "heads": 2,
}
NCSN = {**UNET, "encoder": "residual", "resample_filter": (1, 3, 3, 1), "noise_mult": 2}
ADM = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,), "head_channels": 4}
MLP = {"hidden": 24, "blocks": 2, "features": 8, "embedding_width": 16}
EDM2 = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,), "head_channels": 4}
DIT = {"hidden": 16, "depth": 2, "heads": 2, "features": 8}
NCSNPP = {"embedding": "fourier", "noise_mult": 2, "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
LSUN = {"model_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "blocks": 2, "norm": "group"}
OPTIONS = list(itertools.product(("group", "adaptive", "double"), ("positional", "fourier")))
CASES = [
    *[(unet, {**UNET, "norm": norm, "embedding": embedding}) for norm, embedding in OPTIONS],
    (unet, {**UNET, "resample_filter": (1, 3, 3, 1), "resample_proj": False, "noise_mult": 2}),
    *[(unet, {**NCSN, "norm": norm, "embedding": embedding}) for norm, embedding in OPTIONS],
    *[(gaussian_unet, {**UNET, "c_noise": c_noise}) for c_noise in ("log", "trig", "log1000")],
    *[(adm, {**ADM, "norm": norm}) for norm in ("group", "adaptive", "double")],
    *[(mlp, {**MLP, "norm": norm, "embedding": embedding}) for norm, embedding in OPTIONS],
    (mlp, {**MLP, "expansion": 2}),
    *[(dit, {**DIT, "norm": norm}) for norm in ("adaptive", "double")],
    (dit, {**DIT, "patch": 4, "heads": 1, "expansion": 1}),
    *[
        (edm2, {**EDM2, "modulation": modulation, "embedding": embedding})
        for modulation, embedding in itertools.product(("gain", "double"), ("positional", "fourier"))
    ],
]
every_net = pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda v: getattr(v, "__name__", None))


def scaled(kind) -> dict[str, float]:
    """Frequencies low enough for finite differences."""
    return {"fourier_scale": 0.5} if hasattr(kind.Config(), "fourier_scale") else {}


def make(kind, fields, *, classes=0, channels=2, scale=0.15, **more) -> nn.Module:
    """A small net in float64 with no parameter left at its (partly zero) initial value."""
    torch.manual_seed(0)
    config = kind.Config(**{**fields, **more, **scaled(kind)})
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
def test_jvp_equals_central_differences_and_that_of_torch(kind, fields):
    net = make(kind, fields)
    x, c = inputs()
    g = torch.Generator().manual_seed(2)
    dx = torch.randn(x.shape, generator=g, dtype=x.dtype)
    dc = torch.tensor([0.7, -1.3, 0.4], dtype=x.dtype)
    zero_x, zero_c = torch.zeros_like(dx), torch.zeros_like(dc)
    for along in ((dx, zero_c), (zero_x, dc), (dx, dc)):
        value, tangent = jvp(net, (x, c), along)
        assert torch.equal(value, net(x, c))
        expected = difference(net, (x, c), along)
        assert expected.abs().mean() > 1e-3
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))
        with sdpa_kernel(SDPBackend.MATH):  # the one that has a forward-mode derivative
            theirs = torch.func.jvp(net, (x, c), along)[1]
        assert (tangent - theirs).norm() <= 1e-10 * theirs.norm()


@every_net
@pytest.mark.parametrize(("half", "tolerance"), [(None, 2e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "autocast"])
def test_jvp_in_every_precision(kind, fields, half, tolerance, mixed):
    """Relative L2 of the tangent against float64; beside values in bf16 it is the derivative of other values."""
    net = make(kind, fields)
    where = inputs()
    g = torch.Generator().manual_seed(2)
    along = [torch.randn(v.shape, generator=g, dtype=v.dtype) for v in where]
    expected = difference(net, where, along)
    net.float()
    (x, c), (dx, dc) = ([v.float() for v in pair] for pair in (where, along))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out, plain = net(Dual(x, dx, half), Dual(c, dc)), net(x, c)
    assert torch.equal(out.value, plain)
    assert (out.tangent - expected).norm() < (6e-2 if mixed else tolerance) * expected.norm()


@every_net
def test_a_tangent_keeps_nothing(kind, fields):
    net = make(kind, fields, dropout=0.2).train()
    x, c = inputs()
    kept = []
    for duals in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            net(Dual(x, x), Dual(c, c)) if duals else net(x, c)
        kept.append(sum(sizes))
    assert kept[1] <= 1.02 * kept[0]


COMPILED = [
    *[(mlp, {**MLP, "dropout": p}) for p in (0.0, 0.3)],
    *[(unet, {**UNET, "dropout": p, "norm": norm}) for p, norm in ((0.0, "group"), (0.3, "double"))],
    (unet, NCSN), (adm, {**ADM, "dropout": 0.3}), (edm2, {**EDM2, "dropout": 0.3}),
    (dit, {**DIT, "dropout": 0.3, "norm": "double"}),
]  # fmt: skip


def compiled_and_plain(kind, fields, **options) -> None:
    net = make(kind, fields).float().train()
    (x, c), (dx, dc) = ([v.float() for v in inputs()] for _ in range(2))

    def run() -> Dual:
        torch.manual_seed(4)
        return net(Dual(x, dx), Dual(c, dc))

    expected = run()
    net.compile(fullgraph=True, **options)
    got = run()
    torch.testing.assert_close(got.value, expected.value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.tangent, expected.tangent, rtol=1e-3, atol=1e-4)
    assert got.value.requires_grad
    assert not got.tangent.requires_grad
    got.value.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [pytest.param(*case, marks=() if case[0] is mlp else pytest.mark.slow) for case in COMPILED],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_value_and_tangent_are_one_graph(kind, fields):
    compiled_and_plain(kind, fields, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "fields"), COMPILED[1:4:2], ids=lambda v: getattr(v, "__name__", None))
def test_value_and_tangent_compile(kind, fields):
    compiled_and_plain(kind, fields, options={"fallback_random": True})


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


@pytest.mark.parametrize(("kind", "fields"), [(unet, UNET), (unet, NCSN), (adm, ADM), (mlp, MLP), (dit, DIT)])
def test_augmentation_vector(kind, fields):
    """None is a vector of zeros, alone or beside labels, and a network without this input refuses one."""
    net = make(kind, fields, classes=4, augment_dim=9)
    x, c = inputs()
    labels = torch.tensor([0, 1, 2])
    vector = torch.randn(3, 9, generator=torch.Generator().manual_seed(4))
    plain_labels = net(x, c, labels)
    assert torch.equal(net(x, c, Condition(labels)), plain_labels)
    torch.testing.assert_close(net(x, c, Condition(labels, torch.zeros(3, 9))), plain_labels)
    assert (net(x, c, Condition(labels, vector)) - plain_labels).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"augment: expected shape \(B, 9\), got a tensor \(3, 8\)"):
        net(x, c, Condition(labels, vector[:, :8]))
    with pytest.raises(ValueError, match="augment: expected None"):
        make(kind, fields)(x, c, Condition(None, vector))


@pytest.mark.parametrize(("kind", "fields"), [(unet, {**UNET, "norm": "double"}), (unet, NCSN), (adm, ADM)])
def test_jvp_in_channels_last_and_with_the_fused_attention_beside_it(kind, fields):
    net = make(kind, fields)
    x, c = inputs()
    dx, dc = torch.ones_like(x), torch.ones_like(c)
    expected = jvp(net, (x, c), (dx, dc))
    last = net.to(memory_format=torch.channels_last)
    turned = x.to(memory_format=torch.channels_last)
    for got, wanted in zip(jvp(last, (turned, c), (dx, dc)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(last(turned, c), expected[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "fields"), [(unet, NCSN), (adm, ADM), (dit, DIT)])
def test_jvp_is_the_transpose_of_the_gradient(kind, fields):
    """<v, J u> = <J^T v, u>, of which the right side is reverse mode through the fused attention."""
    net = make(kind, fields)
    x, c = inputs()
    x.requires_grad_()
    c.requires_grad_()
    g = torch.Generator().manual_seed(5)
    u, w, v = (torch.randn(shape, generator=g, dtype=x.dtype) for shape in (x.shape, c.shape, x.shape))
    tangent = jvp(net, (x, c), (u, w))[1]
    dx, dc = torch.autograd.grad(net(x, c), (x, c), v)
    torch.testing.assert_close((v * tangent).sum(), (dx * u).sum() + (dc * w).sum(), rtol=1e-9, atol=0)


@every_net
def test_weights_round_trip_through_plain_tensors(kind, fields):
    net = make(kind, fields)
    state = net.state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())  # safetensors refuses anything else
    torch.manual_seed(99)
    other = kind.build(kind.Config(**{**fields, **scaled(kind)}), channels=2, resolution=8, classes=0).double()
    other.load_state_dict(state)
    x, c = inputs()
    assert torch.equal(other.eval()(x, c), net(x, c))


@pytest.mark.parametrize("device", ["cpu", CUDA, MPS])
@pytest.mark.parametrize(
    ("kind", "fields"), [(unet, UNET), (mlp, MLP), (edm2, EDM2), (dit, DIT)], ids=["unet", "mlp", "edm2", "dit"]
)
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
        primal, _ = jvp(lambda x: net(x, c), (x,), (torch.ones_like(x),))
    assert torch.equal(student, target)
    assert torch.equal(primal, student)
    with Draws(7, 512, 3, device=device).dropout():
        assert not torch.equal(net(x, c), student)


@pytest.mark.parametrize("kind", [unet, adm, mlp, dit])
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
        (unet, {"encoder": "skip"}, "encoder"),
        (unet, {"augment_dim": -1}, "augment_dim"),
        (adm, {"model_channels": 0}, "model_channels"),
        (adm, {"model_channels": 96}, "head_channels"),
        (adm, {"channel_mult": []}, "channel_mult"),
        (adm, {"dropout": 1.0}, "dropout"),
        (adm, {"group_channels": 0}, "group_channels"),
        (adm, {"dropout_resolution": -1}, "dropout_resolution"),
        (adm, {"norm_eps": 0.0}, "norm_eps"),
        (mlp, {"augment_dim": -1}, "augment_dim"),
        (mlp, {"hidden": 0}, "hidden"),
        (mlp, {"features": 5}, "features"),
        (mlp, {"dropout": -0.1}, "dropout"),
        (mlp, {"norm_eps": 0.0}, "norm_eps"),
        (edm2, {"head_channels": 0}, "head_channels"),
        (edm2, {"modulation": "adaptive"}, "modulation"),
        (edm2, {"concat_balance": 1.0}, "concat_balance"),
        (edm2, {"dropout_resolution": -1}, "dropout_resolution"),
        (edm2, {"clip": 0}, "clip"),
        (dit, {"hidden": 10}, "hidden"),
        (dit, {"hidden": 12, "heads": 5}, "heads"),
        (dit, {"patch": 0}, "patch"),
        (dit, {"depth": 0}, "depth"),
        (dit, {"features": 7}, "features"),
        (dit, {"norm": "group"}, "norm"),
        (dit, {"dropout": 1.0}, "dropout"),
        (dit, {"augment_dim": -1}, "augment_dim"),
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


PUBLISHED = [  # counted from the public classes; the papers print 55.7M (arXiv 2206.00364, App. F.2) and 296M (Table 4)
    (unet, {}, 32, 0, 55_732_739),
    (unet, {"augment_dim": 9}, 32, 0, 55_733_891),
    (unet, {"augment_dim": 9}, 32, 10, 55_735_299),
    (unet, {"augment_dim": 9, "channel_mult": (1, 2, 2, 2)}, 64, 0, 61_805_571),
    (unet, NCSNPP, 32, 0, 56_395_523),
    (unet, {**NCSNPP, "augment_dim": 9}, 32, 0, 56_397_827),
    (unet, {**NCSNPP, "augment_dim": 9}, 32, 10, 56_400_643),
    (unet, {**NCSNPP, "augment_dim": 9, "channel_mult": (1, 2, 2, 2)}, 64, 0, 62_761_091),
    (adm, {}, 64, 0, 295_131_267),
    (adm, {}, 64, 1000, 295_899_267),
    (adm, LSUN, 256, 0, 526_304_771),
]


@pytest.mark.parametrize(("kind", "fields", "resolution", "classes", "count"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(kind, fields, resolution, classes, count):
    with torch.device("meta"):
        net = kind.build(kind.Config(**fields), channels=3, resolution=resolution, classes=classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
