"""Flow maps by self-distillation: Lagrangian, Eulerian and progressive (Boffi et al., arXiv 2505.18825)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.meanflow import identity_error
from cmcore.consistency.tangents import derivative_precision, end_derivative, total_derivative
from cmcore.consistency.weights import PairWeight
from cmcore.diffusion.jumps import SECOND_TIME
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Denoiser, Labels, rows_of, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.flowmap import linear_jumps
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

WEIGHT = "weight"  # the name of the learned weight among the networks of a run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which equation of the flow map is its loss, and how often."""

    objective: Literal["lagrangian", "eulerian", "progressive"] = "lagrangian"  # the paper's best
    middle: Literal["half", "uniform"] = "half"  # of a progressive jump: the paper's PSD-M, or PSD-U
    every: int = 4  # one row of so many has r < t (a quarter: from memory, unverified); the others are flow matching
    weighting: Literal["learned", "none"] = "learned"

    def __post_init__(self) -> None:
        require(self.every >= 2, "every", "at least 2", self.every)


@dataclass(frozen=True)
class FlowMaps(Method):
    """||u(x_t, t, t) - (z - x)||^2, and in rows with r < t the square of one of three equations of the map.

    X(x_t, t, r) = x_t - (t - r) u on the linear path, u = (x_t - D)/t with a denoiser D that sees r, and the network's
    own velocity v(x, t) = u(x, t, t). Each equation says that X is the flow of v:

    - lagrangian: dX/dr = v(X, r), by the derivative in the end alone;
    - eulerian: dX/dt = 0 along v, with all but u constant, as in MeanFlow, where the paper keeps more of the gradient;
    - progressive: X(x_t, t, r) = X(X(x_t, t, m), m, r), the loss that of u.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step model whose network knows where a jump ends."""
        return Traits(inputs=(SECOND_TIME,), second_order=self.config.objective == "lagrangian")

    @property
    def networks(self) -> Mapping[str, Network]:
        """The weight w of exp(-w) error + w."""
        return {WEIGHT: Network(role="trained", make=PairWeight)} if self.config.weighting == "learned" else {}

    def rows(self, draws: Draws) -> slice:
        """The rows with r < t: every so many, as images come shuffled; so any part of a batch knows its own."""
        every = self.config.every
        return slice((every - 1 - (draws.rows.start or 0)) % every, None, every)

    def times(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """t, m and r (B,), float64: t uniform on the noise range; where r < m < t, t and r uniform in a triangle."""
        path = Linear()
        ends = torch.tensor([self.diffusion.sigma_min, self.diffusion.sigma_max], dtype=torch.float64)
        first, last = path.time(ends).tolist()
        one, other = (first + (last - first) * draws.uniform(stream=stream) for stream in ("level", "end"))
        t, r, rows = one.clone(), one.clone(), self.rows(draws)
        t[rows], r[rows] = torch.maximum(one, other)[rows], torch.minimum(one, other)[rows]
        share = 0.5 if self.config.middle == "half" else draws.uniform(stream="middle")
        return t, r + (t - r) * share, r

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """Both kinds of rows. Errors are means over the pixels."""
        del progress  # no curriculum
        path, rows, every = Linear(), self.rows(draws), self.config.every
        t, m, r = self.times(draws)
        sigma = path.level(t)
        z = draws.normal(batch.x.shape[1:], stream="noise").to(batch.x.dtype)
        x = batch.x + expand_like(sigma, z) * z
        with draws.dropout():
            D = nets.student(x, sigma, with_inputs(batch.labels, **{SECOND_TIME.name: path.level(r)}))
        error = mean_per_sample((D - batch.x) ** 2) / (t**2).to(D.dtype)
        if len(t[rows]):
            labels = rows_of(batch.labels, rows)
            off = self.off_diagonal(nets.student, D[rows], x[rows], t[rows], m[rows], r[rows], labels, draws)
            error = error.clone()
            error[rows] = off.to(error.dtype)
        found, away = error.detach(), (r < t).to(error.dtype)
        scalars: dict[str, Tensor | float] = {"flow_error": every / (every - 1) * (found * (1 - away)).mean()}
        scalars["map_error"] = every * (found * away).mean()
        if self.config.weighting == "none":
            return LossOut(error, scalars)
        w = nets[WEIGHT](t, r)
        return LossOut((-w).exp() * error + w, scalars)

    def off_diagonal(
        self, student: Denoiser, D: Tensor, x: Tensor, t: Tensor, m: Tensor, r: Tensor, labels: Labels, draws: Draws
    ) -> Tensor:
        """The error (B,) of the map's equation, from the prediction D (B, ...) at x (B, ...) for the jump to r."""
        equation = {"lagrangian": self._lagrangian, "eulerian": self._eulerian, "progressive": self._progressive}
        return equation[self.config.objective](student, D, x, t, m, r, labels, draws)

    def _lagrangian(
        self, student: Denoiser, D: Tensor, x: Tensor, t: Tensor, m: Tensor, r: Tensor, labels: Labels, draws: Draws
    ) -> Tensor:
        """dX/dr - v(X, r) = (1 - r/t) dD/dr - (D - D(X, r, r))/r; gradients pass through dX/dr alone."""
        del D, m
        path = Linear()
        sigma, end = path.level(t), path.level(r)
        with draws.dropout():
            D, by_end = end_derivative(student, x, sigma, SECOND_TIME.name, end, labels)
        with torch.no_grad(), draws.dropout():
            X = expand_like(end / sigma, x) * x + expand_like(1 - end / sigma, x) * D
            D_r = student(X, end, with_inputs(labels, **{SECOND_TIME.name: end}))
        slope = expand_like((1 - r / t) / (1 - r) ** 2, x) * by_end  # dsigma_r/dr = 1/(1 - r)^2
        constant = (expand_like(1 / t - 1 / r, x) * D + expand_like(1 / r, x) * D_r).detach()
        return mean_per_sample((slope - expand_like(1 / t, x) * D + constant) ** 2)

    def _eulerian(
        self, student: Denoiser, D: Tensor, x: Tensor, t: Tensor, m: Tensor, r: Tensor, labels: Labels, draws: Draws
    ) -> Tensor:
        """The MeanFlow identity with the network's own velocity in the place of the sample's."""
        del D, m
        path, name = Linear(), SECOND_TIME.name
        sigma, end = path.level(t), path.level(r)
        with torch.no_grad(), derivative_precision(x.device), draws.dropout():
            D_t = student(x, sigma, with_inputs(labels, **{name: sigma}))
        dx = (x - D_t) / expand_like(sigma, x)
        with draws.dropout():
            D, dD = total_derivative(student, x, sigma, dx, with_inputs(labels, **{name: end}))
        return identity_error(D, dD, D_t, D_t, t, r) / x[0].numel()

    def _progressive(
        self, student: Denoiser, D: Tensor, x: Tensor, t: Tensor, m: Tensor, r: Tensor, labels: Labels, draws: Draws
    ) -> Tensor:
        """The target is the prediction with which one jump lands where two do, the mean of theirs by what they keep."""
        sigma, middle, end = (Linear().level(v) for v in (t, m, r))
        with torch.no_grad(), draws.dropout():
            first = student(x, sigma, with_inputs(labels, **{SECOND_TIME.name: middle}))
        with torch.no_grad(), draws.dropout():
            a, b = middle / sigma, end / middle
            x_m = expand_like(a, x) * x + expand_like(1 - a, x) * first
            second = student(x_m, middle, with_inputs(labels, **{SECOND_TIME.name: end}))
        target = torch.lerp(second, first, expand_like(b * (1 - a) / (1 - a * b), x))
        return mean_per_sample((D - target) ** 2) / (t**2).to(D.dtype)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2 and 4 jumps, of equal length in t."""
        return [self.guided(linear_jumps(n, self.diffusion, SECOND_TIME.name), sampling) for n in (1, 2, 4)]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: jumps add no noise whose level could be chosen."""
        return []


def build(config: Config, diffusion: DiffusionConfig) -> FlowMaps:
    """The method for a noise range."""
    return FlowMaps(config, diffusion)
