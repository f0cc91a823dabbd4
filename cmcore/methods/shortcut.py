"""Shortcut models: one network for steps of all sizes, two small ones teaching a large one (arXiv 2410.12557)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.consistency.guided import check_dropout, keep_labels
from cmcore.diffusion.grids import linear_grid
from cmcore.diffusion.guidance import Guided, drop_labels
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.ode import euler_prediction, euler_step
from cmcore.diffusion.path import Linear
from cmcore.diffusion.precond import Labels, rows_of, with_inputs
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import TARGET, Action, Batch, Blend, LossOut, Method, Nets, Network, Progress, Traits
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.flowmap import FlowMap
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.settings import Sampling
from cmcore.tensors import expand_like, mean_per_sample

HALVINGS = "halvings"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The authors' constants (kvfrans/shortcut-models, train.py), without guidance.

    On ImageNet 256 they have guidance 1.5 and a label dropout of 0.1 (README).
    """

    steps: int = 128  # M: the smallest step is 1/M of the way, and the others are its doubles
    every: int = 8  # one row of so many is bootstrapped; the others are rectified flow
    mu: float = 0.999  # decay a step of the average that makes the targets
    guidance: float = 1.0  # scale of the smallest steps as targets, part of the weights of all others; 1 for none
    label_dropout: float = 0.0  # share of labels left out of rectified flow, which guidance needs

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "a scale of at least 0", self.guidance)
        check_dropout(self.guidance != 1, self.label_dropout)
        power = self.steps >= 2 and self.steps & (self.steps - 1) == 0
        require(power, "steps", "a power of two, at least 2", self.steps)
        require(self.every >= 2, "every", "at least 2", self.every)
        require(0 <= self.mu < 1, "mu", "a number in [0, 1)", self.mu)

    @property
    def finest(self) -> int:
        """How often the whole way is halved until a step is the smallest."""
        return self.steps.bit_length() - 1


@dataclass(frozen=True)
class Shortcut(Method):
    """||s(x_t, t, d) - target||^2 for steps of d = T/2^k, where T = sigma_max/(1 + sigma_max) is all of the way.

    s is the average velocity from t to t - d on the linear path, s = (x_t - D)/t with a denoiser D that sees k. For
    the smallest d the target is the path's own velocity z - x; for the others the mean of two steps of d/2, guided
    where they are the smallest ones.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """A few-step model. Its network knows the size of the step; asked without one, it takes the smallest."""
        size = Input(HALVINGS, neutral=float(self.config.finest))
        s = self.config.guidance
        guidance = (s, s) if s != 1 else None
        return Traits(inputs=(size,), guidance=guidance, unlabelled=self.config.label_dropout > 0)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The average whose two steps are the target."""
        return {TARGET: Network(start="student", role="moved", dropout=False)}

    def step(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows are bootstrapped (B,), k (B,) int64, and the time (B,), at a multiple of the step of size k."""
        coarse = (draws.uniform(stream="size") * self.config.finest).long()
        bootstrapped = torch.zeros_like(coarse, dtype=torch.bool)
        bootstrapped[self.rows(draws)] = True
        k = torch.where(bootstrapped, coarse, self.config.finest)
        position = (draws.uniform(stream="level") * 2**k).floor() + 1
        return bootstrapped, k, self.way * position / 2**k

    def rows(self, draws: Draws) -> slice:
        """The bootstrapped rows: every so many, as images come shuffled; so any part of a batch knows its own."""
        every = self.config.every
        return slice((every - 1 - (draws.rows.start or 0)) % every, None, every)

    @property
    def way(self) -> float:
        """T, the time of the highest level."""
        return self.diffusion.sigma_max / (1 + self.diffusion.sigma_max)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The two kinds of rows in one pass; ||D - target||^2/t^2 is the squared difference of velocities."""
        del progress  # no curriculum
        bootstrapped, k, t = self.step(draws)
        sigma, z = Linear().level(t), draws.normal(batch.x.shape[1:], stream="noise")
        x = batch.x + expand_like(sigma, z) * z
        target = batch.x.clone()
        rows = self.rows(draws)
        if len(t[rows]):
            target[rows] = self.bootstrap(nets, x[rows], k[rows], t[rows], rows_of(batch.labels, rows))
        labels = batch.labels
        if self.config.label_dropout:
            labels = keep_labels(drop_labels(labels, self.config.label_dropout, draws), labels, bootstrapped)
        with draws.dropout():
            D = nets.student(x, sigma, with_inputs(labels, **{HALVINGS: k.to(t.dtype)}))
        error = mean_per_sample((D - target) ** 2) / (t**2).to(D.dtype)
        found = error.detach()
        every = self.config.every
        bootstrap_error = every * (found * bootstrapped).mean()
        flow_error = every / (every - 1) * (found * ~bootstrapped).mean()
        scalars: dict[str, Tensor | float] = {"flow_error": flow_error, "bootstrap_error": bootstrap_error}
        return LossOut(error, scalars)

    @torch.no_grad()
    def bootstrap(self, nets: Nets, x: Tensor, k: Tensor, t: Tensor, labels: Labels) -> Tensor:
        """The prediction with which one step of size k lands where two of size k + 1 of the average do."""
        path, d = Linear(), self.way / 2**k
        inputs = with_inputs(labels, **{HALVINGS: (k + 1).to(t.dtype)})
        start, middle, end = (path.level(time) for time in (t, t - d / 2, t - d))
        target, s = nets.target, self.config.guidance
        if s != 1:
            target = Guided(target, torch.where(k + 1 == self.config.finest, s, 1.0))
        half = euler_step(target, x, start, middle, inputs)
        return euler_prediction(x, euler_step(target, half, middle, end, inputs), start, end)

    def after(self, progress: Progress) -> Sequence[Action]:
        """Target weights <- mu target + (1 - mu) student, after every step."""
        del progress
        return (Blend(TARGET, self.config.mu),)

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2, 4 and 8 steps, as far as there are so many, and all of them."""
        counts = sorted({n for n in (1, 2, 4, 8) if n < self.config.steps} | {self.config.steps})
        rows, s = [self.guided(self._sampler(n), sampling) for n in counts], self.config.guidance
        # The smallest steps have learned no guidance.
        return rows if s == 1 else [*rows[:-1], GuidedSampler(self._sampler(counts[-1]), s)]

    def _sampler(self, n: int) -> Sampler:
        halvings = float(n.bit_length() - 1)
        grid = linear_grid(n, 0.0, self.diffusion.sigma_max)
        return FlowMap(grid, lambda sigma, _: {HALVINGS: torch.full_like(sigma, halvings)})

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: its steps are those that it was trained with."""
        return []


def build(config: Config, diffusion: DiffusionConfig) -> Shortcut:
    """The method for a noise range."""
    return Shortcut(config, diffusion)
