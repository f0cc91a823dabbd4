"""Public networks under our names compute what the public implementations do, from numbers that those gave."""

import pytest
import torch
from public_weights import CASES, EDM, OPENAI, inputs, weights
from torch import Tensor, nn

from cmcore import plugins
from cmcore.config import read
from cmcore.diffusion.precond import Condition
from cmcore.nets.public import edm, openai
from cmcore.nets.public.base import MappingError, PublicNet, heads_first

STEP = 97  # every so many numbers of the output are kept


def mapping(case: str):
    return edm if case in EDM else openai


def public(case: str, **attributes) -> PublicNet:
    return mapping(case).read(weights(case), {**CASES[case]["attributes"], **attributes})


def network(found: PublicNet, **options) -> nn.Module:
    module = plugins.load("cmcore.nets", found.kind)
    config = read(module.Config, {**found.options, **options}, "net")
    net = module.build(config, channels=found.channels, resolution=found.resolution, classes=found.classes)
    net.load_state_dict(found.tensors)
    return net.double().eval()


def output(case: str, found: PublicNet, net: nn.Module) -> Tensor:
    x, c_noise, labels, augment = inputs(case)
    condition = Condition(labels if found.classes else None, augment if found.options.get("augment_dim") else None)
    with torch.no_grad():
        return net(x, c_noise, condition)


@pytest.mark.parametrize("case", CASES)
def test_forward_is_that_of_the_public_implementation(case: str):
    found = public(case)
    assert found.unknown == []
    F, expected = output(case, found, network(found)), CASES[case]["output"]
    assert F.mean().item() == pytest.approx(expected["mean"], abs=1e-7)
    assert F.std().item() == pytest.approx(expected["std"], rel=1e-6)
    values = torch.tensor(expected["values"], dtype=torch.float64)
    torch.testing.assert_close(F.flatten()[::STEP], values, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_would_show_a_change(case: str):
    """Of the order of heads, of a norm's constant, of sines and cosines, and of the skips' scale."""
    found = public(case)
    expected = torch.tensor(CASES[case]["output"]["values"], dtype=torch.float64)
    turned = {name: tensor.flip(0) if ".attention.qkv." in name else tensor for name, tensor in found.tensors.items()}
    swapped = dict(found.tensors)
    name = "embedding.layer0.weight"
    swapped[name] = swapped[name].roll(swapped[name].shape[1] // 2, 1)
    changed = [network(PublicNet(**{**vars(found), "tensors": tensors})) for tensors in (turned, swapped)]
    changed.append(network(found, norm_eps=1e-3))
    for net in changed:
        assert (output(case, found, net).flatten()[::STEP] - expected).abs().max() > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_only_its_own_family_recognises_a_network(case: str):
    named, attributes = weights(case), CASES[case]["attributes"]
    assert [m for m in (edm, openai) if m.recognise(named, attributes)] == [mapping(case)]


def test_openai_s_shape_comes_from_names_and_sizes():
    found = public("openai_shift")
    assert found.options == {
        "c_noise": "log1000", "model_channels": 32, "channel_mult": [1, 1, 2], "blocks": 1,
        "attention_resolutions": [8, 4], "head_channels": 16, "embedding_mult": 4, "norm": "group", "group_channels": 1,
    }  # fmt: skip
    assert public("openai_adaptive").options["norm"] == "adaptive"
    assert public("openai_adaptive").classes == 10
    assert openai.read(weights("openai_shift"), {"head_channels": 16}).resolution == 32  # 8 x 8 at the lowest level


def test_the_three_orders_of_heads():
    q, k, v = (torch.arange(12.0).reshape(2, 3, 2) + 100 * part for part in range(3))  # heads, channels, inputs
    ours = torch.stack([q, k, v], 1).reshape(18, 2)
    assert torch.equal(heads_first(torch.stack([q, k, v], 2).reshape(18, 2), 2, "hcq"), ours)
    assert torch.equal(heads_first(torch.stack([q, k, v], 0).reshape(18, 2), 2, "qhc"), ours)
    assert torch.equal(heads_first(torch.stack([q, k, v], 2).reshape(18, 2)[:, 0], 2, "hcq"), ours[:, 0])


def test_guided_diffusion_s_1d_convolutions_have_our_order():
    named = weights("openai_shift")
    flat = {name: t.squeeze(-1) if name.endswith(("qkv.weight", "proj_out.weight")) else t for name, t in named.items()}
    key = "middle_block.1.qkv.weight"
    found = openai.read(flat, CASES["openai_shift"]["attributes"])
    assert torch.equal(found.tensors["decoder.4x4_in0.attention.qkv.weight"], named[key])


WRONG = {
    "VPPrecond": ("ddpmpp", {"class_name": "VPPrecond"}, "VPPrecond: expected one of EDMPrecond, ECMPrecond"),
    "skip": ("ddpmpp", {"encoder_type": "skip"}, "encoder_type: expected standard or residual, got skip"),
}


@pytest.mark.parametrize("what", WRONG)
def test_other_parametrisations_are_refused(what: str):
    case, attributes, message = WRONG[what]
    with pytest.raises(MappingError, match=message):
        public(case, **attributes)


def test_openai_s_other_networks_are_refused():
    named = weights("openai_shift")
    doubled = {**named, "out.2.weight": named["out.2.weight"].repeat(2, 1, 1, 1)}
    with pytest.raises(MappingError, match=r"out\.2\.weight: expected 3 output channels, got 6"):
        openai.read(doubled, {})
    with pytest.raises(MappingError, match="expected residual blocks that resample"):
        openai.read({**named, "input_blocks.2.0.op.weight": named["out.2.weight"]}, {})
    with pytest.raises(MappingError, match="the same number for each of"):
        openai.read({**named, "input_blocks.6.0.in_layers.0.weight": torch.ones(1)}, {})


def test_what_has_no_place_is_listed():
    assert OPENAI
    found = openai.read({**weights("openai_shift"), "ema_decay": torch.ones(1)}, {"head_channels": 16})
    assert found.unknown == ["ema_decay"]
    named = {**weights("ddpmpp"), "model.enc.16x16_block0.gate.weight": torch.ones(1)}
    assert edm.read(named, CASES["ddpmpp"]["attributes"]).unknown == ["enc.16x16_block0.gate.weight"]
