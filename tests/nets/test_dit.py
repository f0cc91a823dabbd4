"""DiT computes what the public implementation does, from numbers that it gave, and has its number of parameters."""

import pytest
import torch
from torch import Tensor

from cmcore.diffusion.inputs import NO_LABEL
from cmcore.layers.transformer import grid_positions
from cmcore.nets import dit

HIDDEN, CLASSES = 24, 5
SMALL = {"hidden": HIDDEN, "depth": 2, "heads": 3}


def numbers(shape: tuple[int, ...], key: int) -> Tensor:
    """Numbers by a formula, which filled the public network's tensors in the order of its parameters."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.3 * torch.sin(0.37 * at * (1 + 0.01 * key) + key)).reshape(shape)


def filled() -> dict[str, Tensor]:
    """The tensors of a tiny public network, without the variance that it may predict, under our names."""
    D, width = HIDDEN, 4 * HIDDEN
    tensors: dict[str, Tensor] = {}
    at = iter(range(1, 100))  # 0 is the public network's embedding of positions

    def layer(name: str, *weight: int) -> None:
        tensors[f"{name}.weight"] = numbers(weight, next(at))
        tensors[f"{name}.bias"] = numbers(weight[:1], next(at))

    layer("input", D, 3, 2, 2)
    layer("embedding.layer0", D, 256)
    layer("embedding.layer1", D, D)
    table = numbers((CLASSES + 1, D), next(at))  # its last row is that of no label
    tensors["embedding.label.weight"] = (table[:CLASSES] - table[CLASSES]).T
    tensors["embedding.layer1.bias"] += table[CLASSES]
    for block in range(2):
        attention, feed = f"blocks.{2 * block}", f"blocks.{2 * block + 1}"
        layer(f"{attention}.branch.qkv", 3 * D, D)
        layer(f"{attention}.branch.out", D, D)
        layer(f"{feed}.branch.layer0", width, D)
        layer(f"{feed}.branch.layer1", D, width)
        for end, shape in (("weight", (6 * D, D)), ("bias", (6 * D,))):
            joint = numbers(shape, next(at))
            tensors[f"{attention}.modulation.layer.{end}"], tensors[f"{feed}.modulation.layer.{end}"] = joint.chunk(2)
    layer("output", 12, D)
    layer("modulation.layer", 2 * D, D)
    return tensors


def computed(tensors: dict[str, Tensor], **options) -> Tensor:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = dit.build(dit.Config(**SMALL, **options), channels=3, resolution=8, classes=CLASSES).eval()
    finally:
        torch.set_default_dtype(default)
    net.load_state_dict(tensors)
    x = torch.sin(torch.arange(2 * 3 * 64, dtype=torch.float64) * 0.11).reshape(2, 3, 8, 8)
    with torch.no_grad():
        return net(x, torch.tensor([-0.4, 37.5], dtype=torch.float64), torch.tensor([3, NO_LABEL]))


# Of facebookresearch/DiT, models.py, in float64 but for its features of time, which are in float32.
PUBLIC = [
    -2.208855972212751, 1.319835238929289, -1.8920773459619777, -1.2633454265806188, 0.7752998730230395,
    1.8223543030002125, -1.2865849715905677, -1.4616903838317503, 2.536926461648544, -0.5374541616373769,
]  # fmt: skip


def test_forward_is_that_of_the_public_implementation():
    F = computed(filled())
    assert F.mean().item() == pytest.approx(-0.18656087774221333, abs=1e-5)
    assert F.std().item() == pytest.approx(1.329085499542343, rel=1e-5)
    torch.testing.assert_close(F.flatten()[::41], torch.tensor(PUBLIC, dtype=torch.float64), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["blocks.0.branch.qkv.weight", "blocks.1.modulation.layer.weight", "output.weight"])
def test_the_numbers_would_show_another_order(name: str):
    tensors = filled()
    tensors[name] = tensors[name].flip(0)
    assert (computed(tensors).flatten()[::41] - torch.tensor(PUBLIC, dtype=torch.float64)).abs().max() > 1e-2


def test_the_numbers_would_show_another_constant_of_the_norms():
    assert (computed(filled(), norm_eps=1e-3).flatten()[::41] - torch.tensor(PUBLIC)).abs().max() > 1e-4


SIZES = {  # all parameters of the public classes; the paper prints 33M, 130M, 458M and 675M (arXiv 2212.09748, Table 4)
    (384, 12, 6): 32_963_360,
    (768, 12, 12): 130_512_416,
    (1024, 24, 16): 458_102_816,
    (1152, 28, 16): 675_129_632,
}


@pytest.mark.parametrize(("hidden", "depth", "heads"), SIZES)
def test_parameter_counts_are_the_published_ones(hidden: int, depth: int, heads: int):
    with torch.device("meta"):
        net = dit.build(dit.Config(hidden=hidden, depth=depth, heads=heads), channels=4, resolution=32, classes=1000)
    positions, no_label, variance = 256 * hidden, hidden, 16 * (hidden + 1)  # which the public classes have beside
    own = sum(parameter.numel() for parameter in net.parameters())
    assert own + positions + no_label + variance == SIZES[hidden, depth, heads]


def test_every_token_has_a_position_of_its_own():
    positions = grid_positions(16, 64).double()
    apart = torch.cdist(positions, positions) + torch.eye(256, dtype=torch.float64) * 9
    assert apart.min() > 0.1
    # A column is as far from its neighbour wherever they lie: sines and cosines of a difference.
    first, last = (positions[i + 1] - positions[i] for i in (0, 14))
    assert first.norm().item() == pytest.approx(last.norm().item(), rel=1e-6)


def test_a_patch_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="patch: expected a divisor of the resolution 9, got 2"):
        dit.build(dit.Config(**SMALL), channels=3, resolution=9, classes=0)
