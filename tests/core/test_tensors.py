"""Per-sample arithmetic and the uint8 conversions."""

import pytest
import torch

from cmcore.tensors import (
    expand_like,
    mean_per_sample,
    norm_per_sample,
    sum_per_sample,
    to_float,
    to_uint8,
)


def test_expand_like_scales_each_sample_by_its_own_value_in_the_dtype_of_the_images():
    x = torch.ones(3, 2, 4, 4)
    scaled = expand_like(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), x) * x
    assert scaled.dtype == x.dtype
    assert scaled[:, 1, 3, 2].tolist() == [1, 2, 3]


@pytest.mark.parametrize("shape", [(4,), (3, 1), ()])
def test_expand_like_refuses_values_that_are_not_one_per_sample(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected shape \(3,\)"):
        expand_like(torch.ones(shape), torch.ones(3, 1, 2, 2))


def test_reductions_keep_the_batch_only():
    x = torch.tensor([[[[3.0, 4.0]]], [[[0.0, -2.0]]]])
    assert sum_per_sample(x).tolist() == [7, -2]
    assert mean_per_sample(x).tolist() == [3.5, -1]
    assert norm_per_sample(x).tolist() == [5, 2]


def test_every_byte_survives_the_round_trip_through_floats():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    x = to_float(bytes_)
    assert (x.min(), x.max(), x.dtype) == (-1, 1, torch.float32)
    assert torch.equal(to_uint8(x), bytes_)
    assert torch.equal(to_uint8(x.double()), bytes_)


def test_to_uint8_truncates_like_edm_and_clips():
    # 127.5 x + 128 cut off: 0 gives 128, and a value just below the next integer stays down.
    x = torch.tensor([-3.0, -1.0, 0.0, (200.999 - 128) / 127.5, 1.0, 9.0], dtype=torch.float64)
    assert to_uint8(x).tolist() == [0, 0, 128, 200, 255, 255]
