"""Layers that are linear in their input, and their forward-mode derivative."""

import pytest
import torch
from cmcore.layers.dual import Conv2d, Linear, conv2d, linear
from torch import Tensor, nn


def both(kernel: int, **options: int) -> tuple[Conv2d, nn.Conv2d]:
    ours, theirs = (kind(4, 6, kernel, dtype=torch.float64, **options) for kind in (Conv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "options", [{"kernel": 3, "padding": 1}, {"kernel": 1}, {"kernel": 2, "stride": 2, "groups": 2}]
)
def test_value_derivative_and_gradients_are_those_of_torch(options: dict[str, int]):
    x, v = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64).unbind()
    results = []
    for layer in both(**options):
        y, dy = torch.func.jvp(lambda u, layer=layer: layer(u.sin()).cos(), (x,), (v,))
        (y.square().sum() + dy.square().sum()).backward()  # the derivative is itself differentiable
        results.append([y, dy, layer.weight.grad, layer.bias.grad, layer(x)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_linear_layer_is_that_of_torch():
    layer, plain = Linear(4, 3, dtype=torch.float64), nn.Linear(4, 3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x, v = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    for ours, theirs in zip(torch.func.jvp(layer, (x,), (v,)), torch.func.jvp(plain, (x,), (v,)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(linear(x, layer.weight), nn.functional.linear(x, layer.weight))


def test_a_derivative_in_the_weights_is_not_lost():
    layer, _ = both(3)
    x, weight, v = torch.randn(2, 4, 6, 6, dtype=torch.float64), layer.weight.detach(), torch.randn_like(layer.weight)
    _, alone = torch.func.jvp(lambda w: conv2d(x, w), (weight,), (v,))
    torch.testing.assert_close(alone, conv2d(x, v))
    _, together = torch.func.jvp(conv2d, (x, weight), (x, v))
    torch.testing.assert_close(together, conv2d(x, weight) + conv2d(x, v))


def test_one_derivative_costs_one_convolution():
    def convolutions(layer: nn.Module) -> int:
        x = torch.randn(1, 4, 6, 6, dtype=torch.float64)

        def value(u: Tensor) -> Tensor:
            return layer(u)

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            torch.func.jvp(value, (x,), (x,))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::convolution")

    ours, theirs = both(3)
    assert convolutions(ours) == 2
    assert convolutions(theirs) > 2  # or it has become pointless
