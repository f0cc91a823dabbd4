"""PD: progressive distillation (Salimans and Ho, arXiv 2202.00512) in EDM's form (Song et al., arXiv 2303.01469)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.guidance import Guided, Scales, check_scales, draw_scales, guidance_inputs, with_scale
from cmcore.diffusion.ode import euler_prediction, euler_step
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
)
from cmcore.rng import Draws
from cmcore.sample.base import Sampler
from cmcore.sample.settings import Sampling
from cmcore.sample.solvers import Euler
from cmcore.tensors import expand_like, mean_per_sample

EARLIER = "earlier"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The constants for CIFAR-10 of CM's comparison (openai/consistency_models_cifar10)."""

    steps: int = 4096  # of the first student; its teacher takes twice as many
    long: int = 2  # so many of the last stages are twice as long
    guidance: Scales | None = None  # range of the teacher's guidance scale, which the student learns (arXiv 2210.03142)

    def __post_init__(self) -> None:
        check_scales(self.guidance)
        require(self.steps >= 1 and self.steps & (self.steps - 1) == 0, "steps", "a power of two", self.steps)
        require(0 <= self.long <= self.stages, "long", f"from 0 to the {self.stages} stages", self.long)

    @property
    def stages(self) -> int:
        """The last one has a single step."""
        return self.steps.bit_length()

    @property
    def ends(self) -> list[int]:
        """When each stage ends, in units of the length of a short one."""
        return list(accumulate([1] * (self.stages - self.long) + [2] * self.long))


@dataclass(frozen=True)
class PD(Method):
    """max(1/t^2, 1) ||D(x_t, t) - D~||^2: one Euler step of the student makes two of the teacher, on the Karras grid.

    Euler's step in VE time is DDIM's. From stage to stage the student becomes the teacher and the steps are halved. The
    last step goes to sigma_min, as in the authors' code, and no further denoising follows.

    With guidance the student sees the scale, as in Meng et al.; the first stage has the guided teacher for its own, so
    that their stage of as many steps as the teacher's is left out.
    """

    config: Config
    diffusion: DiffusionConfig

    @property
    def traits(self) -> Traits:
        """One step from noise to images in the end, taught by a diffusion model."""
        scales = self.config.guidance
        return Traits(teacher="diffusion", inputs=guidance_inputs(scales), guidance=scales)

    @property
    def networks(self) -> Mapping[str, Network]:
        """The teacher, first the run's, then the student of the stage before."""
        if self.config.guidance is None:
            return {TEACHER: Network(start="teacher", role="moved", dropout=False)}
        # The run's teacher has no input for the scale, so the student of the stage before has its own place.
        earlier = Network(start="student", role="moved", dropout=False)
        return {TEACHER: Network(start="teacher"), EARLIER: earlier}

    def stage(self, progress: Progress) -> int:
        """The stage that a step belongs to."""
        return next(index for index, end in enumerate(self._ends(progress)) if progress.images < end)

    def _ends(self, progress: Progress) -> list[int]:
        """Images seen at the end of each stage: the first step that reaches it, as for the snapshots of a run."""
        ends = self.config.ends
        return [-(-end * progress.iterations // ends[-1]) * progress.batch for end in ends]

    def loss(self, nets: Nets, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """The target is the prediction with which a single Euler step lands where the teacher's two do."""
        stage = self.stage(progress)
        M = self.config.steps >> stage
        grid = _levels(2 * M, self.diffusion, batch.x.device)
        i = 2 * (draws.uniform(stream="level") * M).long().clamp(max=M - 1)
        t, t2, t3 = grid[i], grid[i + 1], grid[i + 2]
        x_t = batch.x + expand_like(t, batch.x) * draws.normal(batch.x.shape[1:], stream="noise")
        labels, teacher, told = batch.labels, nets.teacher, batch.labels
        if self.config.guidance is not None:
            s = draw_scales(self.config.guidance, draws)
            labels = with_scale(batch.labels, s)
            teacher, told = (Guided(teacher, s), batch.labels) if stage == 0 else (nets[EARLIER], labels)
        with torch.no_grad():
            x_t2 = euler_step(teacher, x_t, t, t2, told)
            x_t3 = euler_step(teacher, x_t2, t2, t3, told)
            target = euler_prediction(x_t, x_t3, t, t3)
        with draws.dropout():
            D = nets.student(x_t, t, labels)
        error = mean_per_sample((D - target) ** 2)
        weight = (1 / t**2).clamp(min=1).to(error.dtype)
        return LossOut(weight * error, {"steps": float(M), "error": error.detach().mean()})

    def after(self, progress: Progress) -> Sequence[Action]:
        """At the end of a stage the averaged student becomes the teacher, and starts anew from there."""
        ends, stage = self._ends(progress), self.stage(progress)
        if progress.images == 0:
            # Nothing is asked before the first step, so the first stage's schedule is declared right after it.
            return (Restart(ends[0]),)
        if progress.next.images < ends[stage] or stage + 1 == self.config.stages:
            return ()
        earlier = TEACHER if self.config.guidance is None else EARLIER
        return (Copy(earlier, averaged=True), Copy(STUDENT, averaged=True), Restart(ends[stage + 1]))

    def samplers(self, sampling: Sampling) -> list[Sampler]:
        """1, 2, 4 and 8 steps, as far as there was a stage for each, with the weights that it ended with."""
        counts = [M for M in (1, 2, 4, 8) if self.config.steps >= M]
        rows = [Euler(_levels(M, self.diffusion, torch.device("cpu"))) for M in counts]
        return [self.guided(row, sampling) for row in rows]

    def moment(self, sampler: Sampler) -> float:
        """The end of the stage with as many steps."""
        ends = self.config.ends
        return ends[(self.config.steps // sampler.nfe).bit_length() - 1] / ends[-1]

    def scan(self, sampling: Sampling, levels: Sequence[float]) -> list[Sampler]:
        """None: its steps are those that it was trained with."""
        return []


@lru_cache(maxsize=4)
def _levels(steps: int, diffusion: DiffusionConfig, device: torch.device) -> Tensor:
    return karras_grid(steps + 1, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho).to(device)


def build(config: Config, diffusion: DiffusionConfig) -> PD:
    """The method for a noise range."""
    return PD(config, diffusion)
