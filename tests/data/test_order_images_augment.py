"""Which image comes when, how it is read back, and how it is flipped."""

import json

import numpy as np
import pytest
import torch

from cmcore.data.augment import flip
from cmcore.data.images import ImageData
from cmcore.data.order import indices
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError
from cmcore.rng import Draws


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (10, 10), (7, 20), (1, 4)])
def test_every_epoch_is_a_permutation_whatever_the_batch(count, batch):
    steps = -(-6 * count // batch)
    stream = np.concatenate([indices(count, k * batch, batch, 5) for k in range(steps)])[: 6 * count]
    assert stream.dtype == np.int64
    for epoch in stream.reshape(6, count):
        assert sorted(epoch) == list(range(count))
    np.testing.assert_array_equal(stream, indices(count, 0, 6 * count, 5))  # a pure function of the position
    np.testing.assert_array_equal(stream[count // 2 : 3 * count], indices(count, count // 2, 3 * count - count // 2, 5))


def test_epochs_and_seeds_differ():
    first = indices(1000, 0, 1000, 1)
    fixed_points = [(first == other).sum() for other in (indices(1000, 1000, 1000, 1), indices(1000, 0, 1000, 2))]
    assert max(fixed_points) < 10  # about one is expected of unrelated permutations


def test_the_order_cannot_be_spoilt_by_its_user():
    indices(50, 0, 50, 3)[:] = 0
    assert sorted(indices(50, 0, 50, 3)) == list(range(50))


@pytest.mark.parametrize("arguments", [(0, 0, 1, 1), (5, -1, 1, 1), (5, 0, 0, 1)])
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(ValueError, match="expected count, batch >= 1"):
        indices(*arguments)


@pytest.fixture
def digits(tmp_path):
    prepare(DataConfig(), tmp_path / "digits")
    return tmp_path / "digits"


def test_batch_is_a_copy_in_the_asked_order(digits):
    data = ImageData.open(digits)
    x, labels = data.batch([5, 0, 5])
    assert (x.dtype, x.shape, labels.dtype, labels.shape) == (torch.uint8, (3, 1, 8, 8), torch.int64, (3,))
    np.testing.assert_array_equal(x.numpy(), data.images[[5, 0, 5]])
    assert labels.tolist() == [int(data.labels[i]) for i in (5, 0, 5)]
    x.zero_()
    assert data.images[5].any()
    assert isinstance(data.images, np.memmap)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_missing_or_cut_files_are_refused(digits, name):
    whole = (digits / name).read_bytes()
    (digits / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a prepared data set"):
        ImageData.open(digits)
    (digits / name).unlink()
    with pytest.raises(DataError, match="run the prepare stage"):
        ImageData.open(digits)


def test_files_that_do_not_belong_together_are_refused(digits):
    np.save(digits / "labels.npy", np.zeros(5, np.int64))
    with pytest.raises(DataError, match=r"labels\.npy: expected int64 \(1797,\), got int64 \(5,\)"):
        ImageData.open(digits)
    manifest = json.loads((digits / "manifest.json").read_text())
    (digits / "manifest.json").write_text(json.dumps(manifest | {"count": 3}))
    with pytest.raises(DataError, match=r"images\.npy: expected uint8 \(3, 1, 8, 8\), got uint8 \(1797, 1, 8, 8\)"):
        ImageData.open(digits)


def test_flip_is_addressed_and_fair():
    x = torch.arange(2000 * 6).reshape(2000, 1, 2, 3).to(torch.uint8)
    y = flip(x, Draws(1, 0, 2000))
    flipped = (y == x.flip(-1)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ flipped).all()
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.045)  # four standard errors
    assert torch.equal(y, flip(x, Draws(1, 0, 2000)))
    assert not torch.equal(y, flip(x, Draws(1, 2000, 2000)))
    assert torch.equal(y[500:700], flip(x[500:700], Draws(1, 0, 2000, rows=slice(500, 700))))
    assert torch.equal(flip(x, Draws(1, 0, 2000), probability=1.0), x.flip(-1))
