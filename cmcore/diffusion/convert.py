"""What a network may predict, converted to the prediction of the clean image and back, on any path.

At a point (x, t) with x = alpha x_0 + sigma eps, these say the same: x_0; the noise eps; the velocity
v = d_alpha x_0 + d_sigma eps, which is dx/dt of the probability flow when x_0 is the optimal prediction; and the score
-eps/sigma. x and the predictions are (B, ...), the point's coefficients (B,).
"""

from torch import Tensor

from cmcore.diffusion.path import VE, Path, PathPoint, TrigFlow
from cmcore.tensors import expand_like


def eps_from_x0(x: Tensor, x0: Tensor, point: PathPoint) -> Tensor:
    """The noise that x holds beside x_0; sigma must not be 0."""
    return (x - expand_like(point.alpha, x) * x0) / expand_like(point.sigma, x)


def x0_from_eps(x: Tensor, eps: Tensor, point: PathPoint) -> Tensor:
    """The inverse of `eps_from_x0`; alpha must not be 0."""
    return (x - expand_like(point.sigma, x) * eps) / expand_like(point.alpha, x)


def velocity_from_x0(x: Tensor, x0: Tensor, point: PathPoint) -> Tensor:
    """d_alpha x_0 + d_sigma eps; sigma must not be 0."""
    return expand_like(point.d_alpha, x) * x0 + expand_like(point.d_sigma, x) * eps_from_x0(x, x0, point)


def x0_from_velocity(x: Tensor, v: Tensor, point: PathPoint) -> Tensor:
    """The inverse of `velocity_from_x0`: the two linear equations for x and v, solved for x_0.

    Regular at both ends: the determinant is -1 on VE and Linear, -sigma_data on TrigFlow.
    """
    determinant = point.sigma * point.d_alpha - point.alpha * point.d_sigma
    return expand_like(point.sigma / determinant, x) * v - expand_like(point.d_sigma / determinant, x) * x


def score_from_x0(x: Tensor, x0: Tensor, point: PathPoint) -> Tensor:
    """Tweedie's formula, (alpha x_0 - x) / sigma^2; sigma must not be 0."""
    return (expand_like(point.alpha, x) * x0 - x) / expand_like(point.sigma**2, x)


def x0_from_score(x: Tensor, score: Tensor, point: PathPoint) -> Tensor:
    """The inverse of `score_from_x0`; alpha must not be 0."""
    return (x + expand_like(point.sigma**2, x) * score) / expand_like(point.alpha, x)


def change_path(x: Tensor, t: Tensor, source: Path, target: Path) -> tuple[Tensor, Tensor]:
    """The same point on another path, (x, t) there: x/alpha and sigma/alpha are common to all; alpha must not be 0."""
    here = source.at(t)
    t_there = target.time_of_ratio(here.sigma / here.alpha)
    return expand_like(target.at(t_there).alpha / here.alpha, x) * x, t_there


def ve_to_trig(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """EDM's (x, sigma) -> TrigFlow's (x_t, t): t = arctan(sigma/sigma_data), x_t = cos t x."""
    return change_path(x, sigma, VE(), TrigFlow(sigma_data))


def trig_to_ve(x_t: Tensor, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """TrigFlow's (x_t, t) -> EDM's (x, sigma): sigma = sigma_data tan t, x = x_t / cos t."""
    return change_path(x_t, t, TrigFlow(sigma_data), VE())
