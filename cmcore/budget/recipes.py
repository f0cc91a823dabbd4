"""The rules by which `cmlab new` chooses: networks, entries of methods, and constants, each with its source.

Papers' constants are for millions of images seen; these are the ones that the workloads of the project were made with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cmcore.evaluate.settings import ClassifierConfig, EvalConfig

SIGMA_MAX = 80.0  # the papers' T, for 32x32 and more (arXiv 2206.00364, 2303.01469)
IMAGES_PER_PARAMETER = 1 / 6  # the teacher of workloads/cifar10-jpeg-gpu.yaml: 8.8M parameters, 1.4M images
EPOCHS = 4000  # most that a run sees of each image: EDM's 200M images of CIFAR-10's 50,000 (arXiv 2206.00364, App. F.3)
TEACHER = 0.5  # share of the training time of one method after the other: all students start from the teacher
AUGMENT = 0.12  # EDM's probability for CIFAR-10 (arXiv 2206.00364, App. F.2)
FEW_EPOCHS = 10  # up to which flips alone are enough against over-fitting
DROPOUT = 0.13  # EDM's for CIFAR-10
DROPOUT_EPOCHS = 100  # from which on it is used


@dataclass(frozen=True)
class Net:
    """A network, with the batch and the learning rates at which it was tried."""

    section: dict[str, Any]  # of the parameter file
    batch: int
    lr: float  # of a diffusion model from random weights, under Adam
    tuned: float  # of what starts from it, under RAdam


def networks(resolution: int, device: str) -> list[Net]:
    """Networks for a resolution, the smallest first.

    At 8x8 a multilayer perceptron; above U-Nets of the DDPM++ family, which halve down to about 8x8. The narrow ones
    have one block per resolution: in minutes of a core the number of images decides. On CIFAR-10 at 16x16, after 45 s
    of a core, the loss is 0.36 with 16 channels, 0.38 with 32, and 0.50 with a perceptron of 512 units.
    """
    if resolution <= 8 and device == "cpu":
        return [Net({"kind": "mlp", "c_noise": "log", "hidden": 384, "blocks": 4, "dropout": 0.0}, 256, 1e-3, 4e-4)]
    levels = 1
    while resolution % 2**levels == 0 and resolution >> levels >= 7:
        levels += 1

    def unet(channels: int, blocks: int, first: int, batch: int, lr: float, tuned: float) -> Net:
        section = {
            "kind": "unet", "c_noise": "log", "model_channels": channels,
            "channel_mult": [first, *[2] * (levels - 1)], "blocks": blocks,
            "attention_resolutions": [resolution >> (levels - 1)], "dropout": 0.0,
        }  # fmt: skip
        return Net(section, batch, lr, tuned)

    narrow = [unet(16, 1, 1, 64, 3e-3, 1e-3), unet(32, 1, 1, 64, 2e-3, 7e-4)]
    wide = [unet(64, 2, 2, 256, 1e-3, 3e-4), unet(128, 3, 2, 256, 1e-3, 3e-4)]
    return narrow + wide if device == "cpu" else wide


def least_images(resolution: int) -> int:
    """Images that a teacher has to see before its samples show anything, about.

    workloads/cifar10-jpeg.yaml, 30,000 images at 32x32, shows noise; with the side from there.
    """
    return round(60_000 * resolution / 32)


def sigma_data(images: np.ndarray) -> float:
    """Standard deviation of the pixels about the mean image, in [-1, 1], in two digits."""
    x = images.astype(np.float64) / 127.5 - 1
    return max(0.05, round(float(np.sqrt(((x - x.mean(0)) ** 2).mean())), 2))


def sigma_max(images: np.ndarray) -> float:
    """The largest distance between two images, at most SIGMA_MAX: noise of this level joins any two of them.

    Technique 1 of arXiv 2006.09011 (Song and Ermon), with pixels in [-1, 1]; in two significant digits.
    """
    x = torch.from_numpy(images).flatten(1).double() / 127.5
    squares = x.square().sum(1)
    largest = float((squares[:, None] + squares - 2 * x @ x.T).max().clamp(min=0).sqrt())
    return max(1.0, min(SIGMA_MAX, float(f"{largest:.2g}")))


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
    steps: int
    teacher_lr: float
    batch: int

    @property
    def huber_c(self) -> float:
        """0.00054 sqrt(d) (arXiv 2310.14189, sec. 3.3), and not below what the digits were found to want."""
        return max(0.03, float(f"{0.00054 * math.sqrt(self.pixels):.2g}"))

    def p_mean(self, papers: float) -> dict[str, float]:
        """The option, where it is not the paper's."""
        return {"P_mean": round(papers + self.shift, 2)} if self.shift else {}


@dataclass(frozen=True)
class Recipe:
    """The entry of a method in the parameter file."""

    about: str
    init: str = "edm"  # or random
    teacher: str = "none"
    options: Callable[[Setting], dict[str, Any]] = lambda s: {}
    train: Callable[[Setting], dict[str, Any]] = lambda s: {}
    two_step: bool = True


def _gaps(s: Setting) -> int:
    """iCT's s1 for a run of so many steps: 1,280 for 400,000 (arXiv 2310.14189), and half for a quarter."""
    return max(40, min(1280, 40 * round(1280 * math.sqrt(s.steps / 400_000) / 40)))


RECIPES: dict[str, Recipe] = {
    "edm": Recipe(
        "the diffusion model: teacher of the others, or where they start", init="random", two_step=False,
        options=lambda s: s.p_mean(-1.2),
        train=lambda s: {"optimiser": "adam", "lr": s.teacher_lr, "lr_ramp_images": round_to(s.images / 20, s.batch)},
    ),
    "ect": Recipe(
        "from the diffusion model to one step by a gap that closes in stages",
        options=lambda s: {"q": 4.0, "stages": 4, "huber_c": s.huber_c, **s.p_mean(-1.1)},
    ),
    "sct": Recipe(
        "the same in the limit of a closed gap",
        options=lambda s: {"warmup_images": round_to(s.images / 8, s.batch)},
    ),
    "imm": Recipe("moments of groups of samples; strong from two steps on", options=lambda s: {"g": 8.0}),
    "ict": Recipe(
        "without a teacher, from random weights", init="random",
        options=lambda s: {"s0": 10, "s1": _gaps(s), "huber_c": s.huber_c, **s.p_mean(-1.1)},
        train=lambda s: {"lr": float(f"{0.7 * s.teacher_lr:.2g}")},
    ),
    "cd": Recipe(
        "distilled over 18 grid points, against an average of itself", teacher="edm",
        options=lambda s: {"N": 18, "solver": "heun", "distance": "pseudo_huber", "huber_c": s.huber_c, "mu": 0.95},
    ),
    "ccd": Recipe("CD in the limit of a fine grid", teacher="edm", options=lambda s: {"weighting": "grid"}),
    "cct": Recipe("CT in the limit of a fine grid", options=lambda s: {"weighting": "grid"}),
    "scd": Recipe(
        "sCT with the teacher's direction", teacher="edm",
        options=lambda s: {"warmup_images": round_to(s.images / 8, s.batch)},
    ),
    "meanflow": Recipe("the average velocity between two times", two_step=False),
    "soflow": Recipe("the map between two times, without a derivative", two_step=False),
    "pd": Recipe(
        "half as many steps in every stage", teacher="edm", two_step=False,
        options=lambda s: {"steps": 32, "long": 2}, train=lambda s: {"optimiser": "adam", "snapshots": 8},
    ),
}  # fmt: skip


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
