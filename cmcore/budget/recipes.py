"""The rules by which `cmlab new` chooses, with the source of each; networks and methods are in recipes.yaml."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cmcore.config import ConfigError, join, load_yaml, read, require
from cmcore.evaluate.settings import ClassifierConfig, EvalConfig

FILE = Path(__file__).with_name("recipes.yaml")

SIGMA_MAX = 80.0  # the papers' T, for 32x32 and more (arXiv 2206.00364, 2303.01469)
IMAGES_PER_PARAMETER = 1 / 6  # the teacher of workloads/cifar10-jpeg-gpu.yaml: 8.8M parameters, 1.4M images
EPOCHS = 4000  # most that a run sees of each image: EDM's 200M images of CIFAR-10's 50,000 (arXiv 2206.00364, App. F.3)
TEACHER = 0.5  # share of the training time of one method after the other: all students start from the teacher
AUGMENT = 0.12  # EDM's probability for CIFAR-10 (arXiv 2206.00364, App. F.2)
FEW_EPOCHS = 10  # up to which flips alone are enough against over-fitting
DROPOUT = 0.13  # EDM's for CIFAR-10
DROPOUT_EPOCHS = 100  # from which on it is used


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network, with the batch and the learning rates at which it was tried."""

    about: str
    devices: tuple[Literal["cpu", "cuda"], ...]
    resolutions: tuple[int, int]  # from the lowest to the highest
    batch: int
    lr: float  # of a diffusion model from random weights, under Adam
    tuned: float  # of what starts from it, under RAdam
    net: dict[str, Any]  # of the parameter file, as `section` completes it
    widths: tuple[int, ...] = ()  # of the channels at the first level of resolution, and at the others

    def __post_init__(self) -> None:
        require(len(self.widths) in (0, 2), "widths", "two factors, or none", self.widths)

    def section(self, resolution: int) -> dict[str, Any]:
        """The section of the parameter file: as many levels as lead down to about 8x8, the last one with attention."""
        if not self.widths:
            return {**self.net, "dropout": 0.0}
        levels = 1
        while resolution % 2**levels == 0 and resolution >> levels >= 7:
            levels += 1
        first, others = self.widths
        return {
            **self.net, "channel_mult": [first, *[others] * (levels - 1)],
            "attention_resolutions": [resolution >> (levels - 1)], "dropout": 0.0,
        }  # fmt: skip


def networks(resolution: int, device: str) -> list[Net]:
    """Networks for a resolution, the smallest first."""
    return [
        net for net in book().networks
        if net.resolutions[0] <= resolution <= net.resolutions[1] and device in net.devices
    ]  # fmt: skip


def least_images(resolution: int) -> int:
    """Images that a teacher has to see before its samples show anything, about.

    workloads/cifar10-jpeg.yaml, 30,000 images at 32x32, shows noise; with the side from there.
    """
    return round(60_000 * resolution / 32)


def sigma_data(images: np.ndarray) -> float:
    """Standard deviation of the pixels about the mean image, in [-1, 1], in two digits."""
    x = images.astype(np.float64) / 127.5 - 1
    return max(0.05, round(float(np.sqrt(((x - x.mean(0)) ** 2).mean())), 2))


def _two_digits(number: float) -> float:
    """With two significant digits."""
    return float(f"{number:.2g}")


def sigma_max(images: np.ndarray) -> float:
    """The largest distance between two images, at most SIGMA_MAX: noise of this level joins any two of them.

    Technique 1 of arXiv 2006.09011 (Song and Ermon), with pixels in [-1, 1]; in two significant digits.
    """
    x = torch.from_numpy(images).flatten(1).double() / 127.5
    squares = x.square().sum(1)
    largest = float((squares[:, None] + squares - 2 * x @ x.T).max().clamp(min=0).sqrt())
    return max(1.0, min(SIGMA_MAX, _two_digits(largest)))


def level_shift(data_std: float, resolution: int) -> float:
    """What is added to the P_mean of the papers, which is for sigma_data = 0.5 and 32x32 or 64x64.

    Noise is seen relative to the data; above 64x64 neighbouring pixels are alike, and it averages out
    (arXiv 2301.11093, sec. 2.2).
    """
    return round(math.log(data_std / 0.5) + max(0.0, math.log(resolution / 64)), 2)


@dataclass(frozen=True)
class Setting:
    """What the entry of a method depends on."""

    shift: float  # of `level_shift`
    pixels: int  # numbers in an image
    images: int  # that the run sees
    net: Net  # with its batch and rates


def _gaps(s: Setting, published: float) -> int:
    """iCT's s1 for a run of so many steps: that of 400,000 (arXiv 2310.14189), and half for a quarter of them."""
    steps = s.images // s.net.batch
    return max(40, min(int(published), 40 * round(published * math.sqrt(steps / 400_000) / 40)))


# Of a number in recipes.yaml, by the name that stands before it. Of pixels: 0.00054 sqrt(d) is iCT's (arXiv 2310.14189,
# sec. 3.3), and below 0.03 the digits were found to want it no smaller.
RULES: Mapping[str, Callable[[Setting, float], float | int]] = {
    "level": lambda s, papers: round(papers + s.shift, 2),
    "images": lambda s, share: round_to(share * s.images, s.net.batch),
    "teacher_lr": lambda s, factor: _two_digits(factor * s.net.lr),
    "tuned": lambda s, factor: _two_digits(factor * s.net.tuned),
    "root_pixels": lambda s, factor: max(0.03, _two_digits(factor * math.sqrt(s.pixels))),
    "gaps": _gaps,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The entry of a method in the parameter file; a value may be a rule."""

    about: str
    init: str = ""  # another run than the teacher, or random
    teacher: str = "none"
    two_step: bool = True  # whether `sample.two_step` is given
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("options", "train"):
            for name, value in getattr(self, key).items():
                if not isinstance(value, Mapping):
                    continue
                (rule, *more), numbers = value or {"": 0}, [v for v in value.values() if type(v) in (int, float)]
                if rule not in RULES or more or not numbers:
                    expected = f"a value, or one of {', '.join(RULES)} with a number"
                    raise ConfigError(join(key, name), f"expected {expected}, got {value!r}")


def written(values: Mapping[str, Any], s: Setting) -> dict[str, Any]:
    """The values of a recipe for a run, with the rules worked out."""
    return {
        name: RULES[next(iter(value))](s, next(iter(value.values()))) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


@dataclass(frozen=True, kw_only=True)
class Book:
    """The file of networks and recipes."""

    teacher: str
    networks: tuple[Net, ...]
    methods: dict[str, Recipe]

    def __post_init__(self) -> None:
        require(self.teacher in self.methods, "teacher", f"one of {', '.join(self.methods)}", self.teacher)

    def init(self, method: str) -> str:
        """The run that a method starts from, or random."""
        return self.methods[method].init or self.teacher


@functools.cache
def book() -> Book:
    """Networks and recipes; a ConfigError names the first value of the file that is wrong."""
    return read(Book, load_yaml(FILE))


def round_to(number: float, batch: int) -> int:
    """A number of images as whole batches, at least one."""
    return max(1, round(number / batch)) * batch


def evaluation(count: int, test: int, samples: int, steps: int, batch: int, classifier: dict[str, Any]) -> EvalConfig:
    """The evaluation that so many images allow.

    Args:
        count: training images.
        test: images that are held out.
        samples: of every row.
        steps: of the diffusion model's sampler.
        batch: images generated at once.
        classifier: of `classifier`.
    """
    kid = max(2, min(500, count // 2, samples, *([test] if test else [])))
    few = min(samples, max(200, kid, samples // 4))
    return EvalConfig(
        samples=samples,
        batch=batch,
        teacher_steps=steps,
        bootstrap=10,
        kid_subsets=20,
        kid_size=kid,
        neighbours=3,
        nearest=min(200, samples),
        endpoints=min(200, samples),
        scan=(),
        scan_samples=few,
        snapshot_samples=few,
        reference=ClassifierConfig(**classifier),
    )


def classifier(count: int, resolution: int) -> dict[str, Any]:
    """The extractor: as many features as ten images each allow, so that their covariance is known."""
    features = next((n for n in (64, 32, 16) if 10 * n <= count), 8)
    size = {"width": 16, "images": 40_000} if resolution < 32 else {"width": 32, "images": 60_000}
    return {**size, "features": features, "batch": 64}
