"""Feature maps of the blocks of every network: their shapes, gradients to the images, and nothing left behind."""

from typing import Any

import pytest
import torch
from exports import diffusers_library
from latent_models import TINY

from cmcore import plugins
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.words import Words
from cmcore.layers.blocks import block_maps, blocks
from cmcore.layers.heads import build_block_heads
from cmcore.rng import seeded

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16, "blocks": 3},
    "unet": {"model_channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4]},
    "gaussian_unet": {"model_channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4]},
    "dit": {"hidden": 16, "depth": 2, "heads": 2},
    **{f"diffusers {model}": {"model": model, "arguments": TINY[model]} for model in TINY},
    "adm": {
        "model_channels": 16,
        "head_channels": 8,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [4],
    },
    "edm2": {
        "model_channels": 16,
        "head_channels": 8,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [4],
    },
}


def denoiser(kind: str, **shape: Any) -> Denoiser:
    module = plugins.load("cmcore.nets", kind.split()[0])
    if module.__name__.endswith(".diffusers"):
        diffusers_library()  # or the test is skipped
    config = module.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in SMALL[kind].items()})
    with seeded(1, kind):
        net = module.build(config, channels=2, resolution=8, **{"classes": 3, **shape})
    return Denoiser(net, sigma_data=0.5, coordinate=config.c_noise).eval()


def test_every_network_is_tried():
    assert {kind.split()[0] for kind in SMALL} == set(plugins.available("cmcore.nets"))


@pytest.mark.parametrize("kind", SMALL)
def test_maps_are_of_all_blocks_and_carry_gradients_to_the_images(kind: str):
    model, x = denoiser(kind).requires_grad_(False), torch.randn(3, 2, 8, 8, requires_grad=True)
    sigma, labels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), torch.tensor([0, 2, -1])
    maps = block_maps(model, x, sigma, labels)
    assert len(maps) == len(blocks(model.net)) >= 2
    assert all(values.ndim == 4 and len(values) == 3 for values in maps)
    total = torch.stack([values.square().mean() for values in maps]).sum()
    gradient = torch.autograd.grad(total, x)[0]
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert not any(block._forward_hooks for block in blocks(model.net))
    last: list[Any] = []
    hook = blocks(model.net)[-1].register_forward_hook(lambda _, inputs, output: last.append(output))
    model(x, sigma, labels)
    hook.remove()
    assert torch.equal(last[0].flatten(), (maps[-1] if last[0].ndim != 3 else maps[-1][..., 0].mT).flatten())


@pytest.mark.parametrize("kind", SMALL)
def test_heads_fit_the_blocks_and_leave_the_network_as_it_was(kind: str):
    model = denoiser(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads = build_block_heads(model.train())
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    maps = block_maps(model, torch.randn(2, 2, 8, 8), torch.ones(2, dtype=torch.float64), torch.tensor([0, 1]))
    assert heads(maps).shape == (2, len(maps))


def test_networks_that_read_captions_have_maps_too():
    words = Words(("a", "circle", "red"), 3)
    model = denoiser("unet", classes=0, words=words)
    captions = torch.tensor([words.encode("a red circle"), words.encode("circle")])
    x, sigma = torch.randn(2, 2, 8, 8), torch.ones(2, dtype=torch.float64)
    heads = build_block_heads(model)
    assert heads(block_maps(model, x, sigma, captions)).shape == (2, len(blocks(model.net)))


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_networks_show_their_blocks_as_well(whole: bool):
    model, x, sigma = denoiser("mlp").requires_grad_(False), torch.randn(2, 2, 8, 8), torch.ones(2, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    known = block_maps(model, x, sigma, labels)
    for module in [model.net] if whole else blocks(model.net):
        module.compile(backend="eager")
    model(x, sigma, labels)
    torch.testing.assert_close(block_maps(model, x, sigma, labels), known)
