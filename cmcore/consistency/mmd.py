"""Maximum mean discrepancy between the particles of groups (Gretton et al., 2012)."""

import torch
from torch import Tensor

LEAST_DISTANCE = 1e-4  # the norm has no gradient at 0


def laplace(a: Tensor, b: Tensor, rate: Tensor) -> Tensor:
    """exp(-rate ||a_i - b_j|| / d) for particles a, b (G, M, d) of G groups and rates (G,): (G, M, M)."""
    distance = torch.linalg.vector_norm(a[:, :, None] - b[:, None], dim=-1).clamp(min=LEAST_DISTANCE)
    return torch.exp(-rate[:, None, None] * distance / a.shape[-1])


def squared_mmd(a: Tensor, b: Tensor, rate: Tensor) -> Tensor:
    """The squared MMD (G,) of particles a and b (G, M, d), diagonals included, under the Laplace kernel."""
    within = laplace(a, a, rate) + laplace(b, b, rate)
    return (within - 2 * laplace(a, b, rate)).mean((1, 2))
