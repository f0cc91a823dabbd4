"""The end-point error: known offset, known standard error."""

import pytest
import torch

from cmcore.evaluate.endpoints import endpoint_rmse, squared_errors


def test_constant_offset():
    x = torch.randn((8, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    measured = endpoint_rmse(squared_errors(x.double() + 0.25, x))
    assert measured.value == pytest.approx(0.25, rel=1e-12)
    assert measured.spread == pytest.approx(0, abs=1e-12)
    assert endpoint_rmse(squared_errors(x, x))[:2] == (0.0, 0.0)


def test_standard_error_matches_independent_repetitions():
    rng = torch.Generator().manual_seed(1)
    zeros = torch.zeros(100, 1, 2, 2)
    draws = [endpoint_rmse(squared_errors(torch.randn(zeros.shape, generator=rng), zeros)) for _ in range(300)]
    observed = torch.tensor([draw.value for draw in draws]).std().item()
    assert sum(draw.spread for draw in draws) / 300 == pytest.approx(observed, rel=0.15)
    assert sum(draw.value for draw in draws) / 300 == pytest.approx(1, abs=0.01)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="two equal sets"):
        squared_errors(torch.zeros(3, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    with pytest.raises(ValueError, match="at least 2 images"):
        endpoint_rmse(torch.zeros(1))
