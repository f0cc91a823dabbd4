"""Toy: stages of a run. The student learns two steps of its teacher in one; then it becomes the teacher, and so on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.ode import euler_step
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import (
    STUDENT,
    TEACHER,
    Action,
    Batch,
    Copy,
    LossOut,
    Method,
    Nets,
    Network,
    Progress,
    Restart,
    Traits,
)  # fmt: skip
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.solvers import Euler
from cmcore.tensors import expand_like, mean_per_sample


@dataclass(frozen=True, kw_only=True)
class Config:
    """Number of stages; the last ends at one step."""

    stages: int = 2


@dataclass(frozen=True)
class ToyHalving(Method):
    """||one Euler step of the student - two of the teacher||^2 on a grid that is halved from stage to stage."""

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        return Traits(few_step=False)

    @property
    def networks(self) -> Mapping[str, Network]:
        return {TEACHER: Network(start="init", role="moved", dropout=False)}

    def _stage(self, progress: Progress) -> int:
        return min(int(progress.fraction * self.config.stages), self.config.stages - 1)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        d = self.diffusion
        stage = self._stage(progress)
        N = 2 ** (self.config.stages - stage) + 1
        grid = karras_grid(N, d.sigma_min, d.sigma_max, d.rho).to(batch.x.device)
        n = (draws.uniform(stream="level") * ((N - 1) // 2)).long() * 2
        t, middle, r = grid[n], grid[n + 1], grid[n + 2]
        x = batch.x + expand_like(t, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        with torch.no_grad():
            half = euler_step(nets.teacher, x, t, middle, batch.labels)
            target = euler_step(nets.teacher, half, middle, r, batch.labels)
        with draws.dropout():
            step = euler_step(nets.student, x, t, r, batch.labels)
        return LossOut(mean_per_sample((step - target) ** 2), {"stage": float(stage)})

    def after(self, progress: Progress) -> Sequence[Action]:
        after = progress.next
        if after.images >= progress.total or self._stage(after) == self._stage(progress):
            return ()
        until = progress.total * (self._stage(after) + 1) // self.config.stages
        return (Copy(TEACHER, averaged=True), Copy(STUDENT, averaged=True), Restart(until))

    def samplers(self, sampling):
        d = sampling.diffusion
        rows: list[Sampler] = [Euler(karras_grid(n + 1, d.sigma_min, d.sigma_max, d.rho)) for n in (1, 2, 4)]
        return rows


def build(config: Config, diffusion: DiffusionConfig) -> ToyHalving:
    return ToyHalving(config, diffusion)
