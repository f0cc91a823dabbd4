"""What networks are told of guidance: the embedding of scales, and the label that stands for none."""

import pytest
import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import NO_LABEL, Condition
from cmcore.layers.basic import one_hot
from cmcore.nets import adm, edm2, mlp, unet

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
KINDS = {
    mlp: {"hidden": 24, "blocks": 1, "features": 8, "embedding_width": 16},
    unet: {**SMALL, "dropout": 0.0},
    adm: {**SMALL, "head_channels": 4},
    edm2: {**SMALL, "head_channels": 4, "c_noise": "trig", "embedding": "positional", "modulation": "double"},
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.rsplit(".", 1)[-1])


def make(kind, *, guidance: bool = True, noise: float = 0.15) -> nn.Module:
    torch.manual_seed(0)
    net = kind.build(kind.Config(**KINDS[kind], guidance=guidance), channels=1, resolution=8, classes=3).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(noise * torch.randn_like(parameter) if parameter.ndim else 5 * noise)
    return net.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 8, 8, generator=draw, dtype=torch.float64)
    c = torch.tensor([0.2, 0.7, 1.3], dtype=torch.float64)
    return x, c, torch.tensor([0, 2, NO_LABEL]), torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)


@every_kind
def test_scales_come_in_and_one_is_what_nothing_means(kind):
    net, (x, c, labels, s) = make(kind), inputs()
    told = net(x, c, Condition(labels, None, s))
    assert (told - net(x, c, Condition(labels, None, 2.5 - s))).flatten(1).abs().amax(1)[[0, 2]].min() > 1e-6
    torch.testing.assert_close(net(x, c, labels), net(x, c, Condition(labels, None, torch.ones_like(s))))


@every_kind
def test_the_embedding_starts_as_nothing(kind):
    """All weights but those of the embedding are away from their initial values."""
    net, plain, (x, c, labels, s) = make(kind), make(kind, guidance=False), inputs()
    weights = plain.state_dict()
    fresh = kind.build(kind.Config(**KINDS[kind], guidance=True), channels=1, resolution=8, classes=3).double()
    own = {name: t for name, t in fresh.state_dict().items() if name.startswith("embedding.guidance.")}
    assert {*net.state_dict()} - {*weights} == {*own}
    net.load_state_dict(own | weights)
    assert torch.equal(net(x, c, Condition(labels, None, s)), plain(x, c, labels))
    assert plain(x, c, labels).abs().max() > 1e-3
    net.zero_grad()
    net(x, c, Condition(labels, None, s)).square().sum().backward()
    grown = [p.grad for name, p in net.named_parameters() if name.startswith("embedding.guidance.")]
    assert any(g is not None and g.abs().max() > 0 for g in grown)  # it can leave zero


@every_kind
def test_the_derivative_along_a_trajectory_equals_differences(kind):
    net, (x, c, labels, s) = make(kind), inputs()
    dx, dc = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype), torch.ones_like(c)
    told, h = Condition(labels, None, s), 1e-5
    with torch.no_grad():
        value, derivative = torch.func.jvp(lambda x, c: net(x, c, told), (x, c), (dx, dc))
        differences = (net(x + h * dx, c + h * dc, told) - net(x - h * dx, c - h * dc, told)) / (2 * h)
    torch.testing.assert_close(derivative, differences, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value, net(x, c, told))


@every_kind
def test_a_network_that_learns_no_scales_refuses_them(kind):
    net, (x, c, labels, s) = make(kind, guidance=False), inputs()
    with pytest.raises(ValueError, match="guidance: expected None"):
        net(x, c, Condition(labels, None, s))


def test_no_label_is_a_zero_vector():
    assert one_hot(torch.tensor([1, NO_LABEL, 0]), 3).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(RuntimeError):
        one_hot(torch.tensor([-2]), 3)
