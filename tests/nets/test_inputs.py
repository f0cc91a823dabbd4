"""Further inputs of networks: declared in one place, embedded in one way, seen by every network."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from duals import difference as central
from duals import jvp
from torch import Tensor, nn

from cmcore.config import ConfigError
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL, Input, InputError
from cmcore.diffusion.precond import Condition, Denoiser, noise_coordinate, with_inputs
from cmcore.dual import Dual, entrywise
from cmcore.layers.embeddings import one_hot
from cmcore.nets import adm, edm2, mlp, unet

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
KINDS = {
    mlp: {"hidden": 24, "blocks": 1, "features": 8, "embedding_width": 16},
    unet: {**SMALL, "dropout": 0.0},
    adm: {**SMALL, "head_channels": 4},
    edm2: {**SMALL, "head_channels": 4, "c_noise": "trig", "embedding": "positional", "modulation": "double"},
}
PREFIX = "embedding.inputs."
# Of networks with and without guidance scales: the sum of the initial weights of the first convolution, which are drawn
# after the embedding, and the root mean square of F with weights and images of `wave`, in float64. Computed when the
# scale was the only further input and had an embedding of its own.
VECTORS = {
    (mlp, False): (-7.52106154, 8.89097563647),
    (mlp, True): (-6.37263483, 8.56872327706),
    (unet, False): (-0.398428187, 0.811388288658),
    (unet, True): (1.42166297, 0.491666426658),
    (adm, False): (-0.762047532, 1.41721507142),
    (adm, True): (1.23037497, 1.19923037823),
    (edm2, False): (-2.40042221, 0.116420667095),
    (edm2, True): (31.9774822, 0.159459379921),
}
# Of a method that is not written yet: nothing but this declaration is needed.
STRENGTH, TARGET = Input("strength", neutral=0.5), Input("target", "time")


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", "").rsplit(".", 1)[-1] or None


every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)


def build(kind, declared: Sequence[Input] = (), **fields: object) -> nn.Module:
    torch.manual_seed(0)
    return kind.build(kind.Config(**KINDS[kind], **fields), channels=1, resolution=8, classes=3, inputs=declared)


def make(kind, declared: Sequence[Input] = (), noise: float = 0.15) -> nn.Module:
    """A network in float64 with all weights away from their initial values."""
    net = build(kind, declared).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(noise * torch.randn_like(parameter) if parameter.ndim else 5 * noise)
    return net.eval()


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def wave(shape: tuple[int, ...], k: int) -> Tensor:
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(0.37 * n * (1 + 0.01 * k) + k).reshape(shape)


def point() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, c_noise, labels and guidance scales."""
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, f64(0.2, 0.7, 1.3), torch.tensor([0, 2, NO_LABEL]), f64(1.0, 1.5, 2.0)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """The largest of every image."""
    return (a - b).flatten(1).abs().amax(1)


@pytest.mark.parametrize(("kind", "guided"), VECTORS, ids=name_of)
def test_guidance_is_one_input_among_others_and_numbers_are_those_of_an_embedding_of_its_own(kind, guided):
    net = build(kind, (GUIDANCE,) if guided else ())
    drawn, rms = VECTORS[kind, guided]
    assert net.get_parameter("input.weight").detach().double().sum().item() == pytest.approx(drawn, rel=1e-6)
    with torch.no_grad():
        for k, (_, tensor) in enumerate(sorted(net.double().eval().state_dict().items())):
            tensor.copy_(wave(tuple(tensor.shape), k) if tensor.ndim else 0.6 + 0.1 * wave((), k))
        _, c, labels, s = point()
        F = net(wave((3, 1, 8, 8), 50), c, Condition(labels, None, {"guidance": s} if guided else {}))
    assert F.square().mean().sqrt().item() == pytest.approx(rms, rel=1e-9)


@every_kind
def test_an_input_is_seen_and_its_neutral_value_is_that_of_an_absent_one(kind):
    net, (x, c, labels, s) = make(kind, (GUIDANCE, STRENGTH, TARGET)), point()
    plain = net(x, c, labels)
    for name, value, neutral in (
        ("guidance", s, torch.ones_like(s)),
        ("strength", s, torch.full_like(s, 0.5)),
        ("target", s, c),  # a second time is the first one where there is none
    ):
        seen = net(x, c, with_inputs(labels, **{name: value}))
        assert difference(seen, net(x, c, with_inputs(labels, **{name: 2.5 - value})))[[0, 2]].min() > 1e-6
        torch.testing.assert_close(plain, net(x, c, with_inputs(labels, **{name: neutral})))
    together = net(x, c, with_inputs(labels, guidance=s, strength=s, target=s))
    assert difference(together, net(x, c, with_inputs(labels, strength=s, target=s)))[1:].min() > 1e-6


@every_kind
def test_embeddings_start_as_nothing_and_have_a_prefix_of_their_own(kind):
    """All weights but theirs are away from their initial values."""
    declared = (GUIDANCE, STRENGTH, TARGET)
    net, plain, (x, c, labels, s) = make(kind, declared), make(kind), point()
    weights = plain.state_dict()
    own = {name: t for name, t in build(kind, declared).double().state_dict().items() if name.startswith(PREFIX)}
    assert {*net.state_dict()} - {*weights} == {*own}
    assert {name.removeprefix(PREFIX).split(".")[0] for name in own} == {"guidance", "strength", "target"}
    net.load_state_dict(own | weights)
    condition = with_inputs(labels, guidance=s, strength=s, target=s)
    assert torch.equal(net(x, c, condition), plain(x, c, labels))
    assert plain(x, c, labels).abs().max() > 1e-3
    net.zero_grad()
    net(x, c, condition).square().sum().backward()
    for known in declared:  # each can leave zero
        grown = [p.grad for name, p in net.named_parameters() if name.startswith(f"{PREFIX}{known.name}.")]
        assert any(g is not None and g.abs().max() > 0 for g in grown)


@every_kind
def test_derivatives_by_image_noise_level_and_second_time_equal_differences(kind):
    """Through the denoiser, by levels in the units of sigma: alone and all together, also where none is given."""
    net, (x, _, labels, s) = make(kind, (GUIDANCE, TARGET)), point()
    coordinate = kind.Config(**KINDS[kind]).c_noise
    denoiser = Denoiser(net, sigma_data=0.5, coordinate=coordinate, inputs=(GUIDANCE, TARGET))

    def raw(x: Any, level: Any, target: Any) -> Any:
        c_noise = entrywise(lambda v: noise_coordinate(v, 0.5, coordinate), level)
        return denoiser.raw(x, c_noise, with_inputs(labels, guidance=s, target=target))

    where = (x, f64(0.3, 1.0, 4.0), f64(0.1, 0.8, 1.5))
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    one, none = torch.ones(3, dtype=x.dtype), torch.zeros(3, dtype=x.dtype)
    for along in ((dx, none, none), (0 * dx, one, none), (0 * dx, none, one), (dx, one, -one)):
        value, derivative = jvp(raw, where, along)
        expected = central(raw, where, along)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(value, raw(*where))
    # MeanFlow (arXiv 2505.13447): along x and the first time, with the second fixed and no Dual at all.
    fixed = raw(Dual(where[0], dx), Dual(where[1], one), where[2]).tangent
    torch.testing.assert_close(fixed, jvp(raw, where, (dx, one, none))[1])
    # An absent time moves with the noise level.
    c = noise_coordinate(where[1], 0.5, coordinate)
    absent = denoiser.raw(x, Dual(c, one), labels).tangent
    level = {"log": lambda c: (4 * c).exp(), "trig": lambda c: 0.5 * c.tan()}[coordinate]
    same = jvp(lambda c: denoiser.raw(x, c, with_inputs(labels, target=entrywise(level, c))), (c,), (one,))[1]
    torch.testing.assert_close(absent, same)


@every_kind
@pytest.mark.parametrize("coordinate", ["log", "trig", "log1000"])
def test_a_second_time_comes_in_the_coordinate_of_the_first_and_may_be_zero(kind, coordinate):
    net, (x, _, labels, s) = make(kind, (GUIDANCE, TARGET)), point()
    denoiser = Denoiser(net, sigma_data=0.5, coordinate=coordinate, inputs=(GUIDANCE, TARGET))
    seen: list[Condition] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    sigma, target = f64(0.3, 1.0, 4.0), f64(0.1, 0.8, 1.5)
    denoiser(x, sigma, with_inputs(labels, guidance=s, target=target))
    assert torch.equal(seen[0].inputs["target"], noise_coordinate(target, 0.5, coordinate))
    assert torch.equal(seen[0].inputs["guidance"], s)
    zero = torch.zeros(3, dtype=torch.float64)
    c_noise = noise_coordinate(sigma, 0.5, coordinate)
    with torch.no_grad():
        value, derivative = jvp(
            lambda r: denoiser.raw(x, c_noise, with_inputs(labels, target=r)), (zero,), (torch.ones_like(zero),)
        )
    assert bool(value.isfinite().all() and derivative.isfinite().all())
    assert difference(value, denoiser.raw(x, c_noise, with_inputs(labels, target=sigma))).min() > 1e-6


@every_kind
def test_what_a_network_does_not_see_is_one_error(kind):
    x, c, labels, s = point()
    net, plain = make(kind, (GUIDANCE,)), make(kind)
    with pytest.raises(InputError, match="labels: expected class indices below 3, got None; see `conditional`"):
        net(x, c)
    with pytest.raises(InputError, match=r"augment: expected None, got a tensor \(3, 2\); see `augment_dim`"):
        net(x, c, Condition(labels, torch.zeros(3, 2)))
    refused = r"guidance: expected None, as the network has no further inputs, got a tensor \(3,\); see `inputs`"
    with pytest.raises(InputError, match=refused):
        plain(x, c, with_inputs(labels, guidance=s))
    with pytest.raises(InputError, match=refused):  # the denoiser has to know the inputs of its network
        Denoiser(net, sigma_data=0.5)(x, s, with_inputs(labels, guidance=s))
    with pytest.raises(InputError, match="target: expected one of the inputs guidance, got"):
        net(x, c, with_inputs(labels, target=s))
    with pytest.raises(InputError, match=r"guidance: expected shape \(3,\), got a tensor \(1,\)"):
        net(x, c, with_inputs(labels, guidance=s[:1]))


def test_impossible_declarations_are_refused():
    with pytest.raises(ConfigError, match="name: expected letters"):
        Input("a.b")
    with pytest.raises(ValueError, match="each name once, got guidance, guidance"):
        build(mlp, (GUIDANCE, GUIDANCE))


def test_a_compiled_network_sees_inputs():
    """One graph without breaks, of any number of inputs."""
    net, (x, c, labels, s) = make(mlp, (GUIDANCE, TARGET)), point()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for condition in (Condition(labels), with_inputs(labels, guidance=s), with_inputs(labels, guidance=s, target=c)):
        assert torch.equal(compiled(x, c, condition), net(x, c, condition))


def test_no_label_is_a_zero_vector():
    assert one_hot(torch.tensor([1, NO_LABEL, 0]), 3).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(RuntimeError):
        one_hot(torch.tensor([-2]), 3)
