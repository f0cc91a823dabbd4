"""Every function of the layers: its value that of torch, its tangent the derivative, its tangent without a graph."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from duals import difference, jvp
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from cmcore.dual import Dual, add, each, entrywise, mul
from cmcore.layers import functions as f
from cmcore.layers.attention import attend
from cmcore.layers.edm2 import mp_cat, mp_silu, mp_sum
from cmcore.layers.embeddings import FourierFeatures, PositionalFeatures
from cmcore.layers.linear import Conv2d, Linear
from cmcore.layers.magnitude import MPConv, MPFourier, unit_magnitude
from cmcore.layers.norms import GroupNorm, ModulatedNorm, pixel_norm
from cmcore.layers.resample import Resample

Shape = tuple[int, ...]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random(module: nn.Module) -> nn.Module:
    """A module in float64 with all weights away from their initial values."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter)
    return module


IMAGE, ROW, VECTOR = (2, 8, 4, 4), (2, 8), (3,)
CASES: dict[str, tuple[Callable[..., Any], list[Shape]]] = {
    "add": (add, [IMAGE, IMAGE]),
    "add by broadcasting": (add, [IMAGE, (2, 8, 1, 1)]),
    "add a number": (lambda x: add(x, 1), [ROW]),
    "add a tensor": (lambda x: add(normal(2, 1, seed=9), x), [ROW]),
    "add a larger tensor": (lambda x: add(x, normal(3, 2, 8, seed=9)), [ROW]),
    "mul": (mul, [IMAGE, (2, 8, 1, 1)]),
    "mul by a number": (lambda x: mul(x, 0.3), [IMAGE]),
    "mul by a tensor": (lambda x: mul(normal(*ROW, seed=9), x), [ROW]),
    "scale_shift": (f.scale_shift, [IMAGE, (2, 8, 1, 1), (2, 8, 1, 1)]),
    "cat": (lambda x, y: f.cat([x, y]), [IMAGE, (2, 3, 4, 4)]),
    "cat with a tensor": (lambda x: f.cat([x, torch.ones(2, 1, 4, 4, dtype=torch.float64)]), [IMAGE]),
    "sin": (f.sin, [ROW]),
    "cos": (f.cos, [ROW]),
    "silu": (f.silu, [IMAGE]),
    "clamp": (lambda x: f.clamp(x, 0.7), [IMAGE]),
    "linear": (random(Linear(8, 3)), [ROW]),
    "conv2d": (random(Conv2d(8, 6, 3, padding=1)), [IMAGE]),
    "conv2d in groups": (random(Conv2d(8, 4, 2, stride=2, groups=2)), [IMAGE]),
    "attend": (attend, [(2, 3, 7, 4)] * 3),
    "group norm": (random(GroupNorm(8, groups=2)), [IMAGE]),
    "layer norm": (random(GroupNorm(8, groups=1)), [ROW]),
    "norm in channels_last": (
        lambda x: random(GroupNorm(8, groups=2))(each(lambda v: v.to(memory_format=torch.channels_last), x)), [IMAGE]
    ),
    **{
        f"{kind} norm": (random(ModulatedNorm(8, 8, kind)), [IMAGE, ROW]) for kind in ("group", "adaptive", "double")
    },
    "pixel_norm": (pixel_norm, [ROW]),
    "unit_magnitude": (lambda x: unit_magnitude(x, (1,)), [IMAGE]),
    "unit convolution": (lambda x: random(MPConv(8, 5, 3))(x, 0.4), [IMAGE]),
    "unit linear layer": (random(MPConv(8, 5, 0)), [ROW]),
    "mp_silu": (mp_silu, [IMAGE]),
    "mp_sum": (lambda x, y: mp_sum(x, y, 0.3), [IMAGE, IMAGE]),
    "mp_sum with a tensor": (lambda x: mp_sum(x, normal(*IMAGE, seed=9), 0.3), [IMAGE]),
    "mp_cat": (lambda x, y: mp_cat(x, y, 0.4), [IMAGE, (2, 3, 4, 4)]),
    **{
        f"{'up' if up else 'down'} by {len(taps)} taps": (Resample(taps, up=up).double(), [IMAGE])
        for up in (True, False) for taps in ((1, 1), (1, 3, 3, 1))
    },
    "positional": (PositionalFeatures(8).double(), [VECTOR]),
    "fourier": (FourierFeatures(8, scale=0.5).double(), [VECTOR]),
    "unit fourier": (MPFourier(8).double(), [VECTOR]),
    "entrywise": (lambda x: entrywise(lambda v: v.square().log().clamp(min=-1), x), [VECTOR]),
    "views": (lambda x: f.cat([part.mT.flatten(1) for part in x.reshape(2, 2, 4, 16).unbind(1)]), [IMAGE]),
    "chunks": (lambda x: mul(*x.chunk(2, dim=1)), [ROW]),
}  # fmt: skip


DOUBLE = ("tensor", "unit convolution", "channels_last")  # cases with tensors of their own in float64
SINGLE = [name for name in CASES if not any(word in name for word in DOUBLE)]


def point(shapes: list[Shape]) -> tuple[list[Tensor], list[Tensor]]:
    return [normal(*s, seed=i) for i, s in enumerate(shapes)], [normal(*s, seed=9 + i) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("name", CASES)
def test_tangents_are_derivatives_and_values_the_same_bits(name: str):
    function, shapes = CASES[name]
    where, along = point(shapes)
    value, tangent = jvp(function, where, along)
    assert torch.equal(value, function(*where))
    assert tangent.shape == value.shape
    torch.testing.assert_close(tangent, difference(function, where, along), rtol=1e-7, atol=1e-8)
    for only in range(len(where)):  # a plain tensor among Duals has a tangent of zero
        if name not in ("attend", "views"):
            mixed = [Dual(v, t) if i == only else v for i, (v, t) in enumerate(zip(where, along, strict=True))]
            still = [t if i == only else torch.zeros_like(t) for i, t in enumerate(along)]
            expected = difference(function, where, still)
            torch.testing.assert_close(function(*mixed).tangent, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_values_have_their_graph_and_tangents_none(name: str):
    function, shapes = CASES[name]
    where, along = point(shapes)
    leaves = [[v.clone().requires_grad_() for v in where] for _ in range(2)]
    dual, plain = function(*map(Dual, leaves[0], along)), function(*leaves[1])
    assert not dual.tangent.requires_grad
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        function(*leaves[1])
        alone = sum(saved)
        saved.clear()
        function(*map(Dual, leaves[0], along))
    assert sum(saved) == alone or name == "entrywise"  # which lets go of it at once
    for which, out in zip(leaves, (dual.value, plain), strict=True):
        out.square().sum().backward()
        assert all(leaf.grad is not None for leaf in which)
    for ours, theirs in zip(*leaves, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize(("half", "tolerance"), [(None, 1e-5), (torch.bfloat16, 2e-2)])
def test_tangents_in_lower_precision(name: str, half: torch.dtype | None, tolerance: float):
    """Relative L2 against float64: rounding of float32; of bf16 where there is a matrix product, and nowhere else."""
    function, shapes = CASES[name]
    where, along = point(shapes)
    exact = difference(function, where, along)
    try:
        if isinstance(function, nn.Module):
            function.float()
        out = function(*(Dual(v.float(), t.float(), half) for v, t in zip(where, along, strict=True)))
    finally:
        if isinstance(function, nn.Module):
            function.double()
    assert out.half == half
    product = any(word in name for word in ("linear", "conv2d", "attend"))
    assert out.tangent.dtype == (torch.bfloat16 if half and product else torch.float32)
    error = (out.tangent.double() - exact).norm() / exact.norm()
    assert error < (tolerance if product or name in ("group norm", "double norm", "adaptive norm") else 1e-5)


def test_dropout_drops_the_same_units_and_draws_as_torch_does():
    x, v = normal(4, 50), normal(4, 50, seed=1)
    torch.manual_seed(3)
    out = f.dropout(Dual(x, v), 0.3)
    torch.manual_seed(3)
    assert torch.equal(out.value, nn.functional.dropout(x, 0.3))
    dropped = out.value == 0
    assert 0.1 < dropped.double().mean() < 0.5
    torch.testing.assert_close(out.tangent, torch.where(dropped, 0.0, v / 0.7))
    torch.manual_seed(3)
    assert torch.equal(f.dropout(x, 0.3), out.value)


def test_unit_magnitude_of_zeros_has_a_finite_tangent():
    x, v = torch.zeros(2, 4, 1, 1), torch.ones(2, 4, 1, 1)
    assert unit_magnitude(Dual(x, v), (1,)).tangent.isfinite().all()


def test_a_tangent_costs_one_convolution():
    layer, x = Conv2d(4, 6, 3), torch.randn(1, 4, 6, 6)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        layer(Dual(x, x))
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::convolution") == 2


def test_values_under_autocast_and_tangents_in_full_precision():
    layer, x, v = random(Linear(8, 3)).float(), normal(2, 8).float(), normal(2, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(Dual(x, v))
    assert out.value.dtype == torch.bfloat16
    assert torch.equal(out.tangent, nn.functional.linear(v, layer.weight))
    assert out.to(torch.bfloat16).tangent.dtype == torch.float32
    assert math.isclose(out.to(torch.float64).tangent.sum(), out.tangent.double().sum(), rel_tol=1e-6)


# Compiled networks


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [IMAGE, ROW])
def test_a_norm_written_out_for_the_compiler_is_that_of_torch(shape: Shape, affine: bool):
    norm, x = random(GroupNorm(8, groups=2, affine=affine)), normal(*shape)
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for call in (norm, torch.compile(norm, backend="aot_eager", fullgraph=True)):
        y = call(x.requires_grad_())
        results.append([y, *torch.autograd.grad((y * normal(*shape, seed=1)).sum(), [x, *norm.parameters()])])
        assert y.stride() == x.stride()
    torch.testing.assert_close(results[1], results[0])


def test_it_has_statistics_in_float32_and_the_type_of_torch():
    norm, x = GroupNorm(8, groups=2), 30 + normal(*IMAGE).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        eager, y = norm(x), torch.compile(norm, backend="aot_eager", fullgraph=True)(x)
    assert y.dtype == eager.dtype
    torch.testing.assert_close(y.float(), nn.functional.group_norm(x.float(), 2, eps=1e-6), rtol=0.01, atol=0.01)


def test_compiled_norms_do_not_copy_channels_last(monkeypatch: pytest.MonkeyPatch):
    """On the meta device, which has no kernel that knows channels_last, like a GPU. Uncompiled norms copy there."""

    def both(x: Tensor, tangent: Tensor, cotangent: Tensor) -> list[Tensor]:
        y = norm(Dual(x.requires_grad_(), tangent))
        return [y.value, y.tangent, *torch.autograd.grad(y.value, [x, *norm.parameters()], cotangent)]

    norm = GroupNorm(8, groups=2).to("meta")
    where = [torch.empty(*IMAGE, device="meta").to(memory_format=torch.channels_last) for _ in range(3)]
    copies = {}
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda now=compiling: now)
        calls = [str(node.target) for node in make_fx(both)(*where).graph.nodes]
        copies[compiling] = sum("clone" in call or "contiguous" in call for call in calls)
    assert copies[False] >= 4  # of the image, the tangent, and both gradients
    assert copies[True] == 0
