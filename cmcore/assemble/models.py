"""Networks from configuration and from weight files. A weight file carries its own configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmcore import plugins
from cmcore.assemble.adapters import STORED
from cmcore.assemble.run import NetChoice, Run
from cmcore.config import plain, read
from cmcore.data.images import NUMBERS, Prepared, read_captions, read_manifest, read_text
from cmcore.data.settings import SPOKEN, DataConfig
from cmcore.data.sources import shapes
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Conditional, Text, Words
from cmcore.layers import text
from cmcore.rng import seeded
from cmcore.sample.stream import drawn_captions, drawn_labels
from cmcore.train import checkpoint

RAW = "raw"
INPUTS = "embedding.inputs."  # the weights of a network's further inputs, by name


@dataclass(frozen=True)
class ModelShape:
    """The properties of a network that the data decide."""

    channels: int
    resolution: int
    classes: int  # 0 for a network that sees no classes
    words: Words | None = None  # of the captions that it reads; None for a network that reads none
    text: Text | None = None  # of captions that are encoded, in the place of words

    @property
    def reads(self) -> Words | Text | None:
        """What captions are to the network; None for one that reads none."""
        return self.words or self.text

    @property
    def labelled(self) -> bool:
        """Whether the network sees labels: classes or captions."""
        return self.classes > 0 or self.reads is not None

    @property
    def given(self) -> dict[str, Any]:
        """What a network is built with: words only where there are some."""
        shape = {"channels": self.channels, "resolution": self.resolution, "classes": self.classes}
        return shape if self.reads is None else {**shape, "words": self.reads}

    @property
    def described(self) -> dict[str, Any]:
        """The shape as plain data."""
        return plain({key: value for key, value in vars(self).items() if value is not None})

    @classmethod
    def from_plain(cls, described: dict[str, Any]) -> "ModelShape":
        """The shape that `described` describes."""
        return read(cls, described, "shape")

    @classmethod
    def of(cls, data: Prepared, conditional: Conditional) -> "ModelShape":
        """The shape for a data set; a ValueError where a conditional network meets images without labels."""
        if conditional == "words":
            words = data.seen(conditional).words
            return cls(data.shape[0], data.shape[1], 0, None if data.text else words, data.text)
        if conditional and data.classes < 2:
            raise ValueError("conditional: expected images with class labels, got a data set without; set it to false")
        return cls(data.shape[0], data.shape[1], data.classes if conditional else 0)


def drawn(
    shape: ModelShape, rows: Sequence[int], seed: int, *, counts: Sequence[int] = (), captions: Tensor | None = None
) -> Tensor | None:
    """Labels of samples by their numbers: classes (B,), or rows of words (B, L); None for an unconditional network.

    Args:
        shape: of the network.
        rows: the numbers.
        seed: of the samples.
        counts: in proportion to which classes are drawn; none: all alike.
        captions: that are drawn from, int64 (N, L).

    Raises:
        ValueError: the network reads captions, and there are none to draw from.
    """
    if shape.reads is None:
        return drawn_labels(rows, seed, (counts or (1,) * shape.classes) if shape.classes else ())
    if captions is None:
        raise ValueError("prompt: expected a caption, as there are no data at hand whose captions could be drawn")
    return drawn_captions(rows, seed, captions)


def provide_text(folder: Path) -> np.ndarray | None:
    """What networks are told of the captions of a prepared folder, whose encoded ones are made known to networks.

    Numbers (N, 1) of encoded captions, else rows of words (N, L); None where there are no captions.
    """
    if (found := read_text(folder)) is None:
        return read_captions(folder)
    text.provide(read_manifest(folder)["text"]["encoder"], *found)
    return read_captions(folder, NUMBERS)


def some_labels(shape: ModelShape, rows: int, device: torch.device | str | None = None) -> Tensor | None:
    """Labels in the form that a network of the shape sees, to measure it with; None where it sees none."""
    places = () if shape.reads is None else (shape.reads.length,)
    return torch.zeros(rows, *places, dtype=torch.int64, device=device) if shape.labelled else None


def declared_shape(config: DataConfig, conditional: Conditional, classes: int) -> ModelShape:
    """The shape that parameters declare, with so many classes where they do not say how many: before there are data."""
    channels, resolution, _ = config.seen_shape
    if conditional == "words":
        if config.text is not None:
            return ModelShape(channels, resolution, 0, text=Text("", config.text.tokens, config.text.width))
        return ModelShape(channels, resolution, 0, usual_words(config))
    return ModelShape(channels, resolution, (config.classes or classes) if conditional else 0)


def usual_words(config: DataConfig) -> Words:
    """The words of drawn scenes, or that are spoken; of other captions, which `prepare` reads, as many as are usual."""
    if config.source == "shapes":
        return shapes.WORDS
    if config.spoken:
        return Words.of(SPOKEN)
    return Words(tuple(sorted(f"word{k}" for k in range(2000))), 16)


def build_denoiser(
    net: NetChoice, shape: ModelShape, diffusion: DiffusionConfig, *, boundary: bool, seed: int = 0
) -> Denoiser:
    """A denoiser with random weights, the same for the same seed."""
    with seeded(seed, "init"):
        module = plugins.load("cmcore.nets", net.kind).build(net.config, **shape.given, inputs=net.inputs)
    return Denoiser(
        module,
        sigma_data=diffusion.sigma_data,
        epsilon=diffusion.sigma_min if boundary else 0.0,
        coordinate=net.config.c_noise,
        inputs=net.inputs,
    )


def save_empty(path: Path, kind: str) -> None:
    """A weight file without weights, for `init: random` and `teacher: none`: so every run has both files."""
    checkpoint.save(path, {}, {"kind": kind})


def save_model(
    path: Path,
    profiles: dict[str, dict[str, Tensor]],
    run: Run,
    shape: ModelShape,
    meta: dict[str, Any],
    adapter: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the weights of some EMA profiles with everything that is needed to build the denoiser again.

    An adapter, if there is one, is part of these weights and stands beside them, so that it can be added to others.
    """
    tensors = {f"{profile}/{name}": tensor for profile, named in profiles.items() for name, tensor in named.items()}
    described = {
        "kind": "model",
        "run": run.name,
        "method": run.method,
        "net": {"kind": run.net.kind, **plain(run.net.config)},
        "inputs": plain(run.net.inputs),
        "diffusion": plain(run.diffusion),
        "boundary": run.objective.traits.boundary,
        "shape": shape.described,
        "eval_ema": run.train.eval_ema,
        "profiles": sorted(profiles),
        **meta,
    }
    if adapter:
        tensors |= {f"{STORED}{name}": tensor for name, tensor in adapter.items()}
        described["adapter"] = {**plain(run.train.adapter), "base": run.init}
    checkpoint.save(path, tensors, described)


def start_from(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network the weights of another that may have fewer inputs."""
    own = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(INPUTS)}
    net.load_state_dict(own | weights)


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser in eval mode, and the description from its file."""

    denoiser: Denoiser
    profile: str
    shape: ModelShape
    diffusion: DiffusionConfig
    meta: dict[str, Any]
    file: Path | None = None  # a weight file of this project, where it is from one


def load_model(path: Path, profile: str = "", *, device: str = "cpu") -> LoadedModel:
    """Build the denoiser that a weight file describes, with the weights of one EMA profile.

    Args:
        path: written by `save_model`.
        profile: which average; by default the one that the run evaluates.
        device: where the denoiser goes.

    Returns:
        The denoiser, in eval mode, and what the file says of it.

    Raises:
        CheckpointError: no weight file of a model, or the profile is not in it.
    """

    def chosen(meta: dict[str, Any]) -> str:
        if meta.get("kind") != "model":
            raise checkpoint.CheckpointError(f"{path}: expected a model, got a file of kind {meta.get('kind')!r}")
        name = profile or meta["eval_ema"]
        if name not in meta["profiles"]:
            raise checkpoint.CheckpointError(
                f"{path}: expected one of the profiles {', '.join(meta['profiles'])}, got {name!r}"
            )
        return f"{name}/"

    tensors, meta = checkpoint.load(path, chosen)
    options = {key: value for key, value in meta["net"].items() if key != "kind"}
    net = NetChoice(
        kind=meta["net"]["kind"],
        config=read(plugins.load("cmcore.nets", meta["net"]["kind"]).Config, options, "net"),
        inputs=tuple(read(Input, known, f"inputs[{index}]") for index, known in enumerate(meta["inputs"])),
    )
    shape, diffusion = ModelShape.from_plain(meta["shape"]), read(DiffusionConfig, meta["diffusion"], "diffusion")
    denoiser = build_denoiser(net, shape, diffusion, boundary=meta["boundary"])
    denoiser.net.load_state_dict(tensors)
    return LoadedModel(denoiser.eval().to(device), profile or meta["eval_ema"], shape, diffusion, meta, path)
