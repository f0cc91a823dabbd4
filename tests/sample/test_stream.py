"""Streams of samples: the random numbers of an image belong to it, whatever batch it is drawn in."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.precond import Denoiser
from cmcore.oracles import Gaussian, as_consistency, as_denoiser
from cmcore.rng import NoiseSource, derive_seed
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun
from cmcore.sample.stream import drawn_labels, generate, uniform_labels

SHAPE = (3, 4, 4)
TWO_STEP = Multistep((80.0, 0.8), 0.002)
CHURN = Heun(with_zero(karras_grid(6, 0.002, 80.0)), S_churn=3.0)
ORACLE = Gaussian(0.1, 0.4)
CASES = [(TWO_STEP, as_consistency(ORACLE, 0.002)), (CHURN, as_denoiser(ORACLE))]


def by_label(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """A conditional model that paints its label's grey value, so that labels can be read off the images."""
    assert labels is not None
    return (labels.reshape(-1, 1, 1, 1) / 127.5 - 1).expand_as(x).to(x.dtype)


@pytest.mark.parametrize(("sampler", "denoiser"), CASES, ids=["multistep", "churn"])
@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_images_do_not_depend_on_the_batch(sampler, denoiser, batch: int):
    whole = next(generate(sampler, denoiser, SHAPE, range(7), seed=1, batch=7))
    parts = list(generate(sampler, denoiser, SHAPE, range(7), seed=1, batch=batch))
    assert [len(part) for part in parts] == [min(batch, 7 - start) for start in range(0, 7, batch)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == torch.uint8
    assert whole.shape == (7, *SHAPE)


def test_images_do_not_depend_on_which_others_are_drawn():
    sampler, denoiser = CASES[0]
    whole = next(generate(sampler, denoiser, SHAPE, range(10), seed=1, batch=10))
    some = next(generate(sampler, denoiser, SHAPE, [8, 2, 5], seed=1, batch=3))
    assert torch.equal(some, whole[[8, 2, 5]])


def test_images_differ_by_number_and_by_seed():
    sampler, denoiser = CASES[0]
    a, b = (next(generate(sampler, denoiser, SHAPE, range(4), seed=seed, batch=4)) for seed in (1, 2))
    assert len({image.numpy().tobytes() for image in [*a, *b]}) == 8


def test_uniform_labels_belong_to_the_image_and_leave_the_noise_alone():
    labels = uniform_labels(range(2000), seed=1, classes=10)
    assert labels is not None
    counts = labels.bincount(minlength=10)
    # Chi-squared with 9 degrees of freedom: 27.9 has probability 0.001.
    assert len(counts) == 10
    assert ((counts - 200) ** 2 / 200).sum().item() < 27.9
    shown = torch.cat(list(generate(TWO_STEP, by_label, SHAPE, range(40), seed=1, batch=9, classes=10)))[:, 0, 0, 0]
    assert shown.tolist() == labels[:40].tolist()

    sampler, denoiser = CASES[0]
    conditional = next(generate(sampler, denoiser, SHAPE, range(4), seed=1, batch=4, classes=10))
    assert torch.equal(conditional, next(generate(sampler, denoiser, SHAPE, range(4), seed=1, batch=4)))


def test_labels_are_as_frequent_as_their_counts():
    counts = (200, 5, 95)
    labels = drawn_labels(range(3000), seed=1, counts=counts)
    assert labels is not None
    expected = torch.tensor(counts) * 10
    # Chi-squared with 2 degrees of freedom: 13.8 has probability 0.001.
    assert ((labels.bincount(minlength=3) - expected) ** 2 / expected).sum().item() < 13.8
    assert torch.equal(labels[100:200], drawn_labels(range(100, 200), seed=1, counts=counts))
    assert drawn_labels(range(5), seed=1, counts=()) is None
    assert drawn_labels([0, 1], seed=1, counts=(7,)).tolist() == [0, 0]


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_equal_counts_are_uniform_labels_to_the_bit(classes):
    for each in (1, 6, 5000):
        assert torch.equal(
            drawn_labels(range(500), seed=3, counts=[each] * classes), uniform_labels(range(500), 3, classes)
        )
    plain = NoiseSource(derive_seed(3, "labels"), range(500)).integers(classes)
    assert torch.equal(plain, uniform_labels(range(500), 3, classes))


def test_labels_can_be_given_by_image_number():
    def labels(indices: Sequence[int]) -> Tensor:
        return torch.tensor([10 * i for i in indices])

    images = torch.cat(list(generate(TWO_STEP, by_label, SHAPE, [4, 0, 7], seed=1, batch=2, labels=labels, classes=10)))
    assert images[:, 0, 0, 0].tolist() == [40, 0, 70]


def test_training_mode_is_refused():
    denoiser = Denoiser(nn.Identity(), sigma_data=0.5)
    with pytest.raises(ValueError, match="eval mode"):
        next(generate(TWO_STEP, denoiser, SHAPE, range(2), seed=1, batch=2))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch >= 1"):
        next(generate(TWO_STEP, CASES[0][1], SHAPE, range(2), seed=1, batch=0))
