"""The `eval` section of the parameters. Imports no torch, so that reading parameters stays cheap."""

import re
from dataclasses import dataclass
from typing import Literal

from cmcore.config import require


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The small classifier whose penultimate layer is the offline feature space of a workload.

    The extractor's name ends in a digest of its weights, so values before and after a change here have other names.
    """

    width: int = 32  # channels of the first stage; they double at every halving of the resolution
    features: int = 64  # dimension of the feature space, the D of the Frechet distance
    images: int = 30_000  # training images seen
    batch: int = 64
    lr: float = 3e-3  # peak of a one-cycle schedule
    weight_decay: float = 0.05
    shift: float = 0.125  # augmentation: largest translation, as a fraction of the resolution
    holdout: float = 0.2  # fraction of the labelled images that only measures accuracy
    seed: int = 0
    threads: int = 1  # part of the definition: the last bits of the weights, hence the name, depend on it

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.features >= 1, "features", "at least 1", self.features)
        require(self.images >= 1, "images", "at least 1", self.images)
        require(self.batch >= 2, "batch", "at least 2", self.batch)
        require(self.lr > 0, "lr", "a positive number", self.lr)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require(0 <= self.shift < 1, "shift", "a fraction in [0, 1)", self.shift)
        require(0 < self.holdout < 1, "holdout", "a fraction in (0, 1)", self.holdout)


@dataclass(frozen=True, kw_only=True)
class InceptionConfig:
    """Source of the weights of the Inception network of published FIDs; absent by default."""

    path: str = ""  # torch-fidelity's weights-inception-2015-12-05-6726825d.pth
    download: bool = False  # download them where `path` is empty


@dataclass(frozen=True, kw_only=True)
class Dinov2Config:
    """Source of the weights of DINOv2, in whose features rows get a second distance; absent by default."""

    path: str = ""  # dinov2_vitl14_pretrain.pth as EDM2's FD_DINOv2, or another size; .pth or .safetensors
    download: bool = False  # download ViT-L/14's, 1.2 GB, where `path` is empty
    sha256: str = ""  # of the file, checked where given

    def __post_init__(self) -> None:
        hex_digest = bool(re.fullmatch(r"[0-9a-f]{64}|", self.sha256))
        require(hex_digest, "sha256", "64 hexadecimal digits (lower case) or nothing", self.sha256)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder of latents; unused where the data are images."""

    path: str = ""  # folder of a diffusers AutoencoderKL: its config.json and diffusion_pytorch_model.safetensors
    sha256: str = ""  # of its weights, checked where given

    def __post_init__(self) -> None:
        hex_digest = bool(re.fullmatch(r"[0-9a-f]{64}|", self.sha256))
        require(hex_digest, "sha256", "64 hexadecimal digits (lower case) or nothing", self.sha256)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation of every run of a workload."""

    samples: int = 5000  # in every seed range; published FIDs have 50,000
    seed_ranges: int = 1  # samples 0 to N-1, N to 2N-1, ...: papers measure 3 and quote the least or the mean
    batch: int = 500  # images generated at once; no result depends on it beyond rounding
    shard: int = 5000  # samples measured, and kept through a kill, as one; moments are added up shard by shard
    kept: int = 50_000  # most features of the samples, and of the reference, that are kept for KID, precision, recall
    labels: Literal["reference", "uniform"] = "reference"  # of conditional samples: as frequent as there, or all alike
    seed: int = 1  # of the samples' noise, of the bootstrap and of the subsets
    teacher_steps: int = 18  # Heun steps of a diffusion model: NFE = 2 * steps - 1
    bootstrap: int = 20  # replicates behind the spread of the Frechet distance; 0 for none, as with several ranges
    kid_subsets: int = 50
    kid_size: int = 500
    neighbours: int = 3  # k of precision and recall
    score_splits: int = 10
    nearest: int = 1000  # samples of a row whose nearest training images are searched for copies; 0 for none
    endpoints: int = 1000  # images of the comparison with the teacher's probability-flow end points
    scan: tuple[float, ...] = ()  # second-step levels to try for two-step sampling
    scan_samples: int = 2000
    guidance: tuple[float, ...] = ()  # scales at which each model that knows them is sampled, beside its run's own
    snapshot_samples: int = 2000
    extractor: Literal["", "shipped"] = ""  # weights of the workload's classifier that come with the project; "" trains
    reference: ClassifierConfig = ClassifierConfig()
    reference_npz: str = (
        ""  # published Inception moments: EDM's .npz, EDM2's .pkl, or a .pt of torch-fidelity; empty: our own images'
    )
    inception: InceptionConfig = InceptionConfig()
    dinov2: Dinov2Config = Dinov2Config()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self) -> None:
        for key in (
            "batch",
            "teacher_steps",
            "kid_subsets",
            "neighbours",
            "score_splits",
            "endpoints",
            "seed_ranges",
            "shard",
        ):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        require(self.bootstrap >= 0 and self.bootstrap != 1, "bootstrap", "0 or at least 2", self.bootstrap)
        require(self.nearest >= 0, "nearest", "0 or more", self.nearest)
        require(self.kid_size >= 2, "kid_size", "at least 2", self.kid_size)
        for key in ("samples", "scan_samples", "snapshot_samples", "kept"):
            count = getattr(self, key)
            require(count >= self.least, key, f"at least {self.least} (kid_size, neighbours + 1, score_splits)", count)
        for index, level in enumerate(self.scan):
            require(level > 0, f"scan[{index}]", "a positive noise level", level)
        for index, s in enumerate(self.guidance):
            require(s >= 0 and s not in self.guidance[:index], f"guidance[{index}]", "another scale, at least 0", s)

    @property
    def least(self) -> int:
        """The smallest number of samples that suffices for every metric."""
        return max(self.kid_size, self.neighbours + 1, self.score_splits)
