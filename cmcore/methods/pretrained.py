"""Weights that others have trained: the run is the file under our names, and nothing is learned."""

import re
from dataclasses import dataclass, field
from typing import Literal

from cmcore.config import require
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, LossOut, Models, Needs, Progress
from cmcore.rng import Draws


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which file, and what its network does. `make import-weights FILE=...` prints what belongs here and to `net`."""

    file: str = ""  # a network pickle of NVlabs or a state dict of OpenAI
    sha256: str = ""  # of the file; another file is refused. Empty accepts any
    part: str = "ema"  # which entry of a pickle
    kind: Literal["diffusion", "consistency"] = "diffusion"
    boundary: bool = True  # of a consistency model: eps-shifted scalings, which OpenAI's have and ECT's have not

    def __post_init__(self) -> None:
        known = not self.sha256 or re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
        require(known, "sha256", "64 hexadecimal digits", self.sha256)


@dataclass(frozen=True)
class Pretrained:
    """A teacher, an initialisation or a model to evaluate; it is not trained here."""

    config: Config
    needs: Needs = field(default_factory=lambda: Needs(file=True))

    @property
    def boundary(self) -> bool:
        """Whether f(x, sigma_min) = x exactly, as in the public consistency models (arXiv 2303.01469, App. C)."""
        return self.few_step and self.config.boundary

    @property
    def few_step(self) -> bool:
        """Whether the file is a consistency model."""
        return self.config.kind == "consistency"

    def loss(self, models: Models, batch: Batch, progress: Progress, draws: Draws) -> LossOut:
        """There is none."""
        raise NotImplementedError("pretrained has no loss")

    def target_decay(self, progress: Progress) -> float:
        """There is no target."""
        raise NotImplementedError("pretrained has no EMA target")


def build(config: Config, diffusion: DiffusionConfig) -> Pretrained:
    """The method; the noise range is the file's own affair."""
    del diffusion
    return Pretrained(config)
