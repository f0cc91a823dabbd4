"""The `data` section of the parameters. Imports no reader, so that code which only names data depends on none."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cmcore.config import require

AUGMENT_DIM = 9  # numbers that describe a distortion of EDM's augmentation pipeline
LATENT_CHANNELS = 4  # of the autoencoder whose latents EDM2 trains on
DOWNLOADS = ".work/downloads"
FASHION = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
CAPTIONED = ("shapes", "speech", "folder", "archive", "latents")  # the sources that may have captions
SPOKEN = (  # by espeak-ng: the core words of Speech Commands (arXiv 1804.03209)
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
)  # fmt: skip
OWN = "own"  # the value of `data.test` that asks for the source's own test images


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """An autoencoder whose latents networks see.

    - "kl": a small one (cmcore/layers/autoencoder.py), trained on the images;
    - "diffusers": the AutoencoderKL in a folder, as it is.
    """

    kind: Literal["kl", "diffusers"] = "kl"
    channels: int = 4  # of the latents
    factor: int = 4  # pixels along the side of an image for each along that of its latent
    path: str = ""  # of the folder, with config.json and diffusion_pytorch_model.safetensors
    sha256: str = ""  # of its weights, checked where given
    # Of `diffusers`: latents times this have deviation 1 for a public network; 0: as measured, channel by channel
    scale: float = 0.0
    # Of `kl` alone:
    width: int = 32  # channels of its first layers; they double at every halving of the resolution but the first
    kl: float = 1e-4  # weight of the KL term beside the squared error; both are means over numbers
    images: int = 60_000  # training images seen
    batch: int = 32
    lr: float = 2e-3  # peak of a one-cycle schedule
    seed: int = 0
    threads: int = 1  # part of the definition: the last bits of the weights depend on it

    def __post_init__(self) -> None:
        for key in ("channels", "width", "images", "batch", "threads"):
            require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        named = self.kind == "diffusers"
        wanted = "the folder of an AutoencoderKL" if named else "nothing for kind kl, which is trained"
        require(bool(self.path) == named, "path", wanted, self.path)
        scaled = self.scale >= 0 and (named or self.scale == 0)
        require(scaled, "scale", "a positive number of kind diffusers, or 0", self.scale)
        hex_digest = bool(re.fullmatch(r"[0-9a-f]{64}|", self.sha256))
        require(hex_digest, "sha256", "64 hexadecimal digits (lower case) or nothing", self.sha256)
        power = self.factor >= 1 and self.factor.bit_count() == 1
        require(power, "factor", "a power of 2, at least 1", self.factor)
        require(self.kl >= 0, "kl", "0 or more", self.kl)
        require(self.lr > 0, "lr", "a positive number", self.lr)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """An encoder of captions, which networks are told instead of their words: CLIP's text model, or that of T5."""

    path: str  # folder with its config.json, .safetensors and tokenizer; or with folders text_encoder and tokenizer
    tokens: int = 77  # places of a caption
    width: int = 768  # numbers of a vector

    def __post_init__(self) -> None:
        require(bool(self.path), "path", "the folder of a text encoder", self.path)
        require(self.tokens >= 1, "tokens", "at least 1", self.tokens)
        require(self.width >= 1, "width", "at least 1", self.width)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A source of images, and their common shape.

    - "digits": scikit-learn's handwritten digits, bundled with it (1,797 grey images of 8x8);
    - "shapes": drawn scenes with captions, `count` of them from `seed`: "a red circle above a blue square";
    - "speech": mel frames of words: `count` of them spoken by espeak-ng from `seed`, or a folder or archive of WAVs;
    - "cifar10": the official archive, cifar-10-python.tar.gz, at `path` or downloaded;
    - "fashion-mnist": a folder with the four idx files, by default that of Debian's package;
    - "folder": a folder of images, with one sub-folder per class or none, or EDM's dataset.json;
    - "archive": the same as a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file;
    - "array": a .npy or .npz file of uint8 images;
    - "latents": a folder or archive of .npy files as EDM2's dataset tool encodes images: means and deviations.
    """

    source: Literal[
        "digits", "shapes", "speech", "cifar10", "fashion-mnist", "folder", "archive", "array", "latents"
    ] = "digits"
    path: str = ""
    subfolder: str = ""  # only what lies below it; of CIFAR-10 and Fashion-MNIST "train" (the default) or "test"
    resolution: int = 8
    channels: int = 1
    sha256: str = ""  # of the file at `path`, checked where given; CIFAR-10's is known
    download: bool = False  # download CIFAR-10 if it is absent
    resize: Literal["lanczos", "adm"] = "lanczos"  # method of resizing; "adm" is that of the papers' ImageNet 64
    background: Literal["", "white", "black"] = ""  # what transparent images are laid over; "" refuses them
    precision: Literal["float32", "float16"] = "float32"  # of stored latents
    # Test images, on which nothing is trained: a share of each class, or `own`, the test images of the source.
    test: float | Literal["own"] = 0.0
    classes: int = 0  # expected number, 0 for any; with it `cmlab plan` works without the data
    count: int = 0  # scenes that `shapes` draws, words that are spoken to train on
    seed: int = 0  # of the scenes, or of the words and voices
    codec: CodecConfig | None = None  # networks see latents of the images; null: the images themselves
    text: TextConfig | None = None  # encodes the captions; null: networks learn their words

    def __post_init__(self) -> None:
        require(self.resolution >= 1, "resolution", "at least 1", self.resolution)
        require(self.classes >= 0, "classes", "at least 0", self.classes)
        self._check_shape()
        self._check_place()
        self._check_drawn()
        parts = PurePosixPath(self.subfolder).parts
        require(".." not in parts and "/" not in parts, "subfolder", "a relative path without '..'", self.subfolder)
        hex_digest = bool(re.fullmatch(r"[0-9a-f]{64}|", self.sha256))
        require(hex_digest, "sha256", "64 hexadecimal digits (lower case) or nothing", self.sha256)
        if self.test == OWN:
            trained = ("train",) if self.source == "speech" and self.path else ("", "train")
            own = self.source in ("cifar10", "fashion-mnist", "speech") and self.subfolder in trained
            which = "CIFAR-10, of Fashion-MNIST, of spoken words, and of recordings with data.subfolder: train"
            require(own, "test", f"a fraction, as only the training images of {which} have own", OWN)
        else:
            require(0 <= self.test < 1, "test", "a fraction in [0, 1), or own", self.test)
        if self.source in ("digits", "shapes", "folder", "fashion-mnist") or self.spoken:
            require(not self.sha256, "sha256", f"nothing for source {self.source}, which is not one file", self.sha256)

    def _check_shape(self) -> None:
        if self.source == "digits":
            require(self.resolution == 8, "resolution", "8 for the digits, which are 8x8 images", self.resolution)
            require(self.channels == 1, "channels", "1 for the digits, which are grey", self.channels)
        elif self.source == "cifar10":
            require(self.resolution == 32, "resolution", "32 for CIFAR-10", self.resolution)
            require(self.channels == 3, "channels", "3 for CIFAR-10, which is in colour", self.channels)
        elif self.source == "fashion-mnist":
            require(self.resolution == 28, "resolution", "28 for Fashion-MNIST", self.resolution)
            require(self.channels == 1, "channels", "1 for Fashion-MNIST, which is grey", self.channels)
        elif self.source == "shapes":
            require(self.resolution >= 16, "resolution", "at least 16 for drawn shapes", self.resolution)
            require(self.channels == 3, "channels", "3 for drawn shapes, which are in colour", self.channels)
        elif self.source == "speech":
            frames = 16 <= self.resolution <= 128
            require(frames, "resolution", "16 to 128 frames, each of as many mel bands", self.resolution)
            require(self.channels == 1, "channels", "1 for mel frames", self.channels)
        elif self.source == "latents":
            require(self.channels == LATENT_CHANNELS, "channels", f"{LATENT_CHANNELS} for latents", self.channels)
        else:
            require(self.channels in (1, 3), "channels", "1 (grey) or 3 (colour)", self.channels)
        resized = self.source in ("folder", "archive", "array")
        require(resized or self.resize == "lanczos", "resize", f"nothing for source {self.source}", self.resize)
        files = self.source in ("folder", "archive")
        require(files or not self.background, "background", f"nothing for source {self.source}", self.background)
        require(
            self.latent or self.precision == "float32",
            "precision", f"nothing for source {self.source} without data.codec, which is uint8", self.precision,
        )  # fmt: skip
        if self.text is not None:
            able = [source for source in CAPTIONED if source != "speech"]  # of which the report names the words
            known = f"null for source {self.source}; {', '.join(able)} may have captions to encode"
            require(self.source in able, "text", known, "one")
        if self.codec is not None:
            require(self.source != "latents", "codec", "null for source latents, which are encoded", self.codec.kind)
            factor = self.codec.factor
            whole = self.resolution % factor == 0
            require(whole, "codec.factor", f"a divisor of data.resolution = {self.resolution}", factor)

    def _check_place(self) -> None:
        if self.source == "digits":
            require(not self.path, "path", "nothing for the digits, which come with scikit-learn", self.path)
        elif self.source == "shapes":
            require(not self.path, "path", "nothing for shapes, which are drawn", self.path)
        elif self.source == "cifar10":
            there = bool(self.path) or self.download
            require(there, "path", "the place of cifar-10-python.tar.gz, or data.download: true", self.path)
        elif self.source not in ("fashion-mnist", "speech"):
            require(bool(self.path), "path", f"the place of the {self.source}", self.path)
        if self.source in ("cifar10", "fashion-mnist") or self.spoken:
            parts = ("", "train", "test")
            require(self.subfolder in parts, "subfolder", f"train, test or nothing for {self.source}", self.subfolder)
        downloads = self.source == "cifar10" or not self.download
        require(downloads, "download", "false, as only CIFAR-10 can be downloaded", self.download)
        if self.source in ("digits", "shapes", "array"):
            require(not self.subfolder, "subfolder", f"nothing for source {self.source}", self.subfolder)

    def _check_drawn(self) -> None:
        drawn = self.source == "shapes" or self.spoken
        given = "whose files are given" if self.source == "speech" else "which is not drawn"
        what = "words to speak" if self.spoken else "scenes to draw"
        wanted = f"the number of {what}" if drawn else f"0 for source {self.source}, {given}"
        require(self.count >= 1 if drawn else self.count == 0, "count", wanted, self.count)
        require(drawn or self.seed == 0, "seed", f"0 for source {self.source}, {given}", self.seed)

    @property
    def spoken(self) -> bool:
        """Whether the images are words that espeak-ng speaks."""
        return self.source == "speech" and not self.path

    @property
    def latent(self) -> bool:
        """Whether networks see latents."""
        return self.source == "latents" or self.codec is not None

    @property
    def seen_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what networks see."""
        if self.codec is None:
            return self.channels, self.resolution, self.resolution
        side = self.resolution // self.codec.factor
        return self.codec.channels, side, side

    @property
    def place(self) -> str:
        """Path of the data; empty where they come with a package."""
        defaults = {"cifar10": f"{DOWNLOADS}/cifar-10-python.tar.gz", "fashion-mnist": FASHION}
        return self.path or defaults.get(self.source, "")
