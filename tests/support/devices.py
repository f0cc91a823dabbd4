"""The devices that tests run on, each skipped where there is none."""

import pytest
import torch

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
)
MPS = pytest.param(
    "mps",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device here")],
)
