"""Networks that read captions: every word and its place count, no word is a dropped caption, tangents are right."""

import pytest
import torch
from torch import Tensor, nn

from cmcore.assemble.models import ModelShape, build_denoiser, some_labels
from cmcore.assemble.run import NetChoice
from cmcore.consistency.tangents import total_derivative
from cmcore.diffusion.guidance import Guided, drop_labels
from cmcore.diffusion.inputs import NO_LABEL, InputError
from cmcore.diffusion.precond import Denoiser, is_labelled
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Words
from cmcore.nets import unet
from cmcore.rng import Draws, generator

WORDS = Words(("a", "big", "cat", "dog"), 3)
CONFIG = unet.Config(
    model_channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0.0, embedding_mult=2, patch=2
)


@pytest.fixture
def reader() -> Denoiser:
    """A network in float64 none of whose weights is zero, as a new one's last layer is."""
    net = NetChoice(kind="unet", config=CONFIG)
    made = build_denoiser(net, ModelShape(1, 8, 0, WORDS), DiffusionConfig(), boundary=False).double().eval()
    draws = generator("weights")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
    return made


def rows(*captions: str) -> Tensor:
    return torch.tensor([WORDS.encode(caption) for caption in captions])


def images(count: int) -> Tensor:
    return torch.randn(1, 1, 8, 8, generator=generator("x"), dtype=torch.float64).expand(count, -1, -1, -1)


def test_every_word_and_its_place_count(reader: Denoiser):
    captions = ("a big cat", "a big dog", "big a cat", "a cat", "cat", "")
    made = reader(images(6), torch.ones(6, dtype=torch.float64), rows(*captions))
    for first in range(6):
        for second in range(first):
            assert (made[first] - made[second]).abs().max() > 1e-5


def test_positions_attend_to_words(reader: Denoiser):
    """Without the mean of the words in the modulation vector, captions still count."""
    embedding = reader.net.embedding
    assert isinstance(embedding, nn.Module)
    assert isinstance(embedding.words, nn.Linear)
    with torch.no_grad():
        embedding.words.weight.zero_()
    made = reader(images(2), torch.ones(2, dtype=torch.float64), rows("a big cat", "big a cat"))
    assert (made[0] - made[1]).abs().max() > 1e-6


def test_a_dropped_caption_is_the_empty_one(reader: Denoiser):
    x, level = images(64), torch.ones(64, dtype=torch.float64)
    told = rows("a big cat").expand(64, -1)
    dropped = drop_labels(told, 0.5, Draws(0, 0, 64))
    assert dropped.labels is not None
    gone = ~is_labelled(dropped.labels)
    assert 16 < int(gone.sum()) < 48
    made = reader(x, level, dropped)
    torch.testing.assert_close(made[gone], reader(x, level, rows("").expand(64, -1))[gone])
    torch.testing.assert_close(made[~gone], reader(x, level, told)[~gone])


def test_guidance_leads_from_the_empty_caption_to_the_caption(reader: Denoiser):
    x, level = images(2), torch.ones(2, dtype=torch.float64)
    told, none = reader(x, level, rows("a cat", "a dog")), reader(x, level, rows("", ""))
    guided = Guided(reader, 3.0)(x, level, rows("a cat", "a dog"))
    torch.testing.assert_close(guided, none + 3 * (told - none))


def test_the_derivative_is_that_of_finite_differences(reader: Denoiser):
    x, level, labels = images(3), torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64), rows("a cat", "big dog", "")
    direction = torch.randn(x.shape, generator=generator("direction"), dtype=torch.float64)
    value, derivative = total_derivative(reader, x, level, direction, labels)
    h = 1e-6
    ahead, behind = (reader(x + s * direction, level + s, labels) for s in (h, -h))
    torch.testing.assert_close(value, reader(x, level, labels))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), atol=1e-6, rtol=1e-5)


def test_words_are_learned_with_the_network(reader: Denoiser):
    reader(images(2), torch.ones(2, dtype=torch.float64), rows("a cat", "a")).square().sum().backward()
    table = dict(reader.named_parameters())["net.words.table"].grad
    assert table is not None
    # "no word", then the vocabulary: "big" and "dog" were not said.
    assert (table.abs().sum(1) > 0).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("labels", [None, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)])
def test_what_is_no_row_of_words_is_refused(reader: Denoiser, labels: Tensor | None):
    with pytest.raises(InputError, match="labels: expected rows of 3 words"):
        reader(images(2), torch.ones(2, dtype=torch.float64), labels)


def test_labels_to_measure_with_have_the_form_of_the_network():
    assert some_labels(ModelShape(1, 8, 0), 2) is None
    assert [tuple(some_labels(shape, 2).shape) for shape in (ModelShape(1, 8, 5), ModelShape(1, 8, 0, WORDS))] == [
        (2,),
        (2, 3),
    ]


def test_a_shape_with_words_is_plain_data_and_back():
    shape = ModelShape(1, 8, 0, WORDS)
    assert ModelShape.from_plain(shape.described) == shape
    assert ModelShape(1, 8, 3).described == {"channels": 1, "resolution": 8, "classes": 3}
    assert NO_LABEL == -1  # what words.py and files of captions rely on


def test_a_patch_is_one_position_with_its_pixels_as_channels():
    """The network on patches is the one of half the resolution and four times the channels."""
    inner = build_denoiser(
        NetChoice(kind="unet", config=unet.Config(**{**vars(CONFIG), "patch": 1})), ModelShape(4, 4, 0),
        DiffusionConfig(), boundary=False,
    ).double().eval()  # fmt: skip
    outer = build_denoiser(
        NetChoice(kind="unet", config=CONFIG), ModelShape(1, 8, 0), DiffusionConfig(), boundary=False
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator("p"), dtype=torch.float64)
    outer.load_state_dict(inner.state_dict())
    x, level = images(1), torch.ones(1, dtype=torch.float64)
    patches = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
    made = outer(x, level)
    told = inner(patches, level)
    for channel, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1)):
        torch.testing.assert_close(made[:, 0, i::2, j::2], told[:, channel])
    with pytest.raises(ValueError, match="patch: expected a divisor of the resolution 8, got 3"):
        unet.build(unet.Config(**{**vars(CONFIG), "patch": 3}), channels=1, resolution=8, classes=0)
