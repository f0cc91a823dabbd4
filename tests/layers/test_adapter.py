"""Low-rank adapters: of every network, to the bit where they change nothing, and in the direction of the gradient."""

import copy

import pytest
import torch
from duals import jvp
from torch import Tensor, nn

from cmcore.layers.adapter import LAYERS, LowRank, adapted_layers, adapter_of, added, attach, detach, is_adapted, merged
from cmcore.layers.magnitude import unit_weights
from cmcore.nets import adm, dit, edm2, mlp, unet

MLP = {"hidden": 24, "blocks": 2, "features": 8, "embedding_width": 16}
U = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,)}
UNET, EDM2, ADM = {**U, "heads": 2}, {**U, "head_channels": 4}, {**U, "head_channels": 4}
DIT = {"hidden": 16, "depth": 2, "heads": 2, "features": 8}
NETS = [(mlp, MLP), (unet, UNET), (adm, ADM), (edm2, EDM2), (dit, DIT)]
every_net = pytest.mark.parametrize(("kind", "fields"), NETS, ids=lambda v: getattr(v, "__name__", None))


def make(kind, fields, scale: float = 0.15) -> nn.Module:
    """A small network in float64 without a parameter at zero."""
    torch.manual_seed(0)
    net = kind.build(kind.Config(**fields), channels=2, resolution=8, classes=0).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * scale if parameter.ndim else 0.7)
    return net.eval()


def inputs() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([-1.5, 0.3, 1.1], dtype=torch.float64)


def shaken(net: nn.Module) -> nn.Module:
    """Both factors of every adapter at random."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LowRank):
                for parameter in module.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype))
    return net


@every_net
def test_a_new_adapter_changes_nothing_and_a_merged_one_is_the_same_to_the_last_bit(kind, fields):
    net, (x, c) = make(kind, fields), inputs()
    layers = {name for name, module in net.named_modules() if isinstance(module, LAYERS)}
    plain, expected = net.state_dict(), net(x, c)
    attach(net, rank=3, alpha=1.5)
    assert torch.equal(net(x, c), expected)
    assert merged(net.state_dict()).keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged(net.state_dict()).items())
    assert set(adapted_layers(adapter_of(net.state_dict()))) == layers
    changed = shaken(net)(x, c)
    assert float((changed - expected).detach().abs().max()) > 1e-2
    other = make(kind, fields)
    other.load_state_dict(merged(net.state_dict()))
    assert torch.equal(other(x, c), changed)
    detach(net)
    assert not is_adapted(net)
    assert torch.equal(net(x, c), changed)
    assert net.state_dict().keys() == plain.keys()


@every_net
def test_a_copy_is_detached_alone(kind, fields):
    net, (x, c) = make(kind, fields), inputs()
    attach(net, rank=2, alpha=4.0)
    expected = shaken(net)(x, c)
    for _ in range(2):  # a preview of a run that goes on
        seen = copy.deepcopy(net)
        detach(seen)
        assert torch.equal(seen(x, c), expected)
        assert is_adapted(net)
        assert torch.equal(net(x, c), expected)


@every_net
def test_only_the_adapter_has_gradients(kind, fields):
    net, (x, c) = make(kind, fields), inputs()
    attach(net, rank=2, alpha=2.0)
    shaken(net)(x, c).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (".0.A" in name or ".0.B" in name), name
    assert unit_weights(net) == []


@every_net
def test_the_derivative_in_time_passes_through_it(kind, fields):
    net, (x, c) = make(kind, fields), inputs()
    attach(net, rank=2, alpha=2.0)
    plain = make(kind, fields)
    plain.load_state_dict(merged(shaken(net).state_dict()))
    found, expected = (jvp(one, (x, c), (0.5 * x, torch.ones_like(c))) for one in (net, plain))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(2, 3, 3)], ids=["linear", "convolution"])
def test_a_step_of_full_rank_goes_along_the_gradient_of_the_weight(layer: nn.Module):
    """With orthonormal A and B at zero, a step of B moves W along its own gradient, by scale^2 as much."""
    net = nn.Sequential(layer.double())
    weight = layer.get_parameter("weight")
    x = torch.randn(6, *((5,) if weight.ndim == 2 else (2, 4, 4)), dtype=torch.float64)

    def loss() -> Tensor:
        return torch.tanh(net(x)).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    before, rank = weight.detach().clone(), weight[0].numel()
    attach(net, rank=rank, alpha=2.0 * rank)
    (adapter,) = (module for module in net.modules() if isinstance(module, LowRank))
    Q, _ = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64))
    adapter.A.data.copy_(Q.reshape(adapter.A.shape))
    (by_B,) = torch.autograd.grad(loss(), adapter.B)
    adapter.B.data.sub_(0.1 * by_B)
    moved = merged(net.state_dict())["0.weight"] - before
    torch.testing.assert_close(moved, -0.1 * 2.0**2 * gradient)


def test_the_shapes_and_the_product_are_those_of_peft():
    """A is (r, inputs, k, k), B (outputs, r, 1, 1): the convolution by B after the one by A, times alpha/r."""
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    weight, x = conv.weight.detach().clone(), torch.randn(4, 2, 5, 5)
    attach(conv, rank=2, alpha=6.0, targets="")
    (adapter,) = (module for module in shaken(conv).modules() if isinstance(module, LowRank))
    assert (tuple(adapter.A.shape), tuple(adapter.B.shape)) == ((2, 2, 3, 3), (3, 2, 1, 1))
    through = nn.functional.conv2d(nn.functional.conv2d(x, adapter.A, padding=1), adapter.B)
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, weight, padding=1) + 3.0 * through)


def test_it_adds_to_any_network_of_the_same_shapes():
    net, base = make(mlp, MLP), make(mlp, MLP, scale=0.3)
    plain = net.state_dict()
    attach(net, rank=2, alpha=1.0)
    adapter = adapter_of(shaken(net).state_dict())
    scales = dict.fromkeys(adapted_layers(adapter), 0.5)
    found = added(plain, adapter, scales)
    for name, tensor in merged(net.state_dict()).items():
        assert torch.equal(found[name], tensor), name
    moved, weights = added(base.state_dict(), adapter, scales), base.state_dict()
    assert not torch.equal(weights["input.weight"], plain["input.weight"])
    for name in weights:
        torch.testing.assert_close(moved[name] - weights[name], found[name] - plain[name])
    same = added(weights, adapter, dict.fromkeys(scales, 0.0))
    assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_what_does_not_fit_is_refused():
    net = make(mlp, MLP)
    with pytest.raises(ValueError, match=r"targets: expected to match one of embedding.layer0, .* got 'qkv'"):
        attach(net, rank=2, alpha=1.0, targets="qkv")
    attach(net, rank=2, alpha=1.0, targets=r"blocks\.\d+\.layer0")
    adapter = adapter_of(net.state_dict())
    assert adapted_layers(adapter) == ["blocks.0.layer0", "blocks.1.layer0"]
    wider = make(mlp, {**MLP, "hidden": 32})
    with pytest.raises(
        ValueError, match=r"blocks.0.layer0 with a weight \(24, 24\); the network has one of \(32, 32\)"
    ):
        added(wider.state_dict(), adapter, dict.fromkeys(adapted_layers(adapter), 1.0))
    with pytest.raises(ValueError, match=r"blocks.0.layer0 with a weight \(24, 24\); the network has none"):
        added(make(dit, DIT).state_dict(), adapter, dict.fromkeys(adapted_layers(adapter), 1.0))
