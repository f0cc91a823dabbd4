"""How a run is trained: the `train` section, shared by all runs and overridden by `runs.<name>.train`."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from cmcore.config import ConfigError, require

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
JvpPrecision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """One exponential moving average of the weights. Exactly one of half_life and power_std is set."""

    half_life: float = 0.0  # in images; EDM's convention
    ramp: float = 0.05  # the half-life is at most this share of the images seen before the step (EDM); 0: off
    power_std: float = 0.0  # sigma_rel of a power-function profile (EDM2, arXiv 2312.02696, Eq. 7)

    def __post_init__(self) -> None:
        require((self.half_life > 0) != (self.power_std > 0), "half_life", "a half_life or a power_std above 0", self)
        require(self.half_life >= 0, "half_life", "at least 0", self.half_life)
        require(self.ramp >= 0, "ramp", "at least 0", self.ramp)
        require(
            0 <= self.power_std < 0.28,
            "power_std",
            "below 0.28, where the profile's exponent is positive",
            self.power_std,
        )


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters, which are trained in the place of the network: LoRA (arXiv 2106.09685)."""

    rank: int = 64  # r; with alpha, LCM-LoRA's for Stable Diffusion (arXiv 2311.05556, the scripts of diffusers)
    alpha: float = 64.0  # the product B A is multiplied with alpha/r
    targets: str = ".*"  # regular expression: the layers whose whole name it matches

    def __post_init__(self) -> None:
        require(self.rank >= 1, "rank", "at least 1", self.rank)
        require(self.alpha > 0, "alpha", "a positive number", self.alpha)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError("targets", f"expected a regular expression, got {self.targets!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PlayerConfig:
    """How a player beside the student is trained, where it differs from the student; null means as the student."""

    optimiser: Literal["adam", "radam"] | None = None
    lr: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    lr_ramp_images: int | None = None
    lr_decay: Literal["constant", "inverse_sqrt", "linear"] | None = None
    lr_ref_images: int | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Work is counted in images seen, so that a changed batch size does not bend a schedule."""

    images: int  # images seen in all
    batch: int  # global batch of one optimiser step
    micro_batch: int = 0  # rows computed at once, 0 for the whole batch; changes memory, not the result
    seed: int = 1
    optimiser: Literal["adam", "radam"] = "radam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_ramp_images: int = 0  # linear warm-up
    lr_decay: Literal["constant", "inverse_sqrt", "linear"] = "constant"
    lr_ref_images: int = 0  # where inverse_sqrt starts to fall (EDM2's tref); linear falls to 0 from here to the end
    clip_norm: float = 0.0  # global gradient norm, 0 for none
    flip: bool = False  # random horizontal flips
    augment: float = 0.0  # probability of each distortion of EDM's pipeline, whose flips are always on; 0 for none
    precision: PrecisionName = "fp32"  # see train/precision.py
    jvp_precision: JvpPrecision = "fp32"  # of derivatives by time, in sCT, sCD, and the continuous-time CT and CD
    channels_last: bool = False  # memory format of the networks; convolutions in half precision are faster so
    compile: bool = False  # the networks, by torch.compile
    cuda_graphs: bool = False  # of compiled networks: for those so small that starting kernels takes the time
    adapter: AdapterConfig | None = None  # train low-rank adapters of the student alone; null trains all its weights
    ema: dict[str, EmaConfig] = field(default_factory=lambda: {"ema": EmaConfig(half_life=500_000.0)})
    eval_ema: str = "ema"  # the profile that is evaluated and that other runs start from; "raw" for none
    players: dict[str, PlayerConfig] = field(default_factory=dict)  # of methods with several; the student is above
    lpips_weights: str = ""  # file of torchvision's VGG-16 weights, for methods whose distance is lpips
    lpips_pooling: Literal["max", "average"] = "max"  # max in LPIPS itself; CM on ImageNet 64 and LSUN has the average
    snapshots: int = 4  # how many times on the way the evaluated weights are kept
    log_images: int = 5_000  # images between two lines of the history
    checkpoint_seconds: float = 20.0  # least time between two checkpoints

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.images >= self.batch, "images", f"at least one batch of {self.batch}", self.images)
        require(
            0 <= self.micro_batch <= self.batch, "micro_batch", f"between 0 and batch = {self.batch}", self.micro_batch
        )
        require(self.lr > 0, "lr", "a positive number", self.lr)
        require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        require(self.eps > 0, "eps", "a positive number", self.eps)
        require(self.lr_ramp_images >= 0, "lr_ramp_images", "at least 0", self.lr_ramp_images)
        decays = self.lr_decay == "inverse_sqrt"
        require(
            not decays or self.lr_ref_images > 0,
            "lr_ref_images",
            "a positive number for inverse_sqrt",
            self.lr_ref_images,
        )
        inside = self.lr_decay != "linear" or 0 <= self.lr_ref_images < self.images
        require(inside, "lr_ref_images", f"between 0 and images = {self.images} for linear", self.lr_ref_images)
        require(self.clip_norm >= 0, "clip_norm", "at least 0", self.clip_norm)
        require(0 <= self.augment <= 1, "augment", "a probability, from 0 to 1", self.augment)
        require(not (self.flip and self.augment), "flip", "false, as train.augment flips by itself", self.flip)
        units = self.jvp_precision != "tf32" or self.precision != "fp32"
        expected = "fp32 or bf16 where train.precision is fp32, as TF32 is allowed or not in a whole process"
        require(units, "jvp_precision", expected, self.jvp_precision)
        require(self.compile or not self.cuda_graphs, "cuda_graphs", "false, or compile to be true", self.cuda_graphs)
        require("raw" not in self.ema, "ema", "profile names other than 'raw'", sorted(self.ema))
        names = ["raw", *self.ema]
        require(self.eval_ema in names, "eval_ema", "one of " + ", ".join(names), self.eval_ema)
        for name in self.players:
            try:
                self.of(name)
            except ConfigError as error:
                raise ConfigError(f"players.{name}.{error.path}", error.message) from error
        require(self.snapshots >= 0, "snapshots", "at least 0", self.snapshots)
        require(self.log_images >= 1, "log_images", "at least 1", self.log_images)
        require(self.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", self.checkpoint_seconds)

    def of(self, player: str) -> "TrainConfig":
        """The settings of a player: its own where it has some, else those of the student."""
        own = vars(self.players.get(player, PlayerConfig()))
        return replace(self, players={}, **{key: value for key, value in own.items() if value is not None})

    @property
    def steps(self) -> int:
        """Optimiser steps of the run; `images` is rounded up to whole batches."""
        return -(-self.images // self.batch)

    @property
    def total(self) -> int:
        """Images seen when the run ends."""
        return self.steps * self.batch
