"""The settings that samplers are made from. Imports no torch."""

from dataclasses import dataclass

from cmcore.diffusion.settings import DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a workload and a run that samplers are made from."""

    diffusion: DiffusionConfig
    steps: int  # of the ODE solver of a diffusion model
    two_step: float  # sigma of the second step of a few-step model
    guidance: float = 1.0  # scale of classifier-free guidance, 1 for none
