"""The settings that samplers are made from. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from cmcore.diffusion.settings import DiffusionConfig

SolverName = Literal["euler", "euler_linear", "heun", "heun_churn", "dpmpp_2m", "dpmpp_2s"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a workload and a run that samplers are made from."""

    diffusion: DiffusionConfig
    steps: int  # of the ODE solver of a diffusion model
    two_step: float  # sigma of the second step of a few-step model
    guidance: float = 1.0  # scale of classifier-free guidance, 1 for none
    solvers: tuple[SolverName, ...] = ()  # further rows of a diffusion model: each of these
    nfe: tuple[int, ...] = ()  # with at most so many evaluations
