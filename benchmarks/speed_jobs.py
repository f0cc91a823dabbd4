"""What is timed: training steps, the matrix products of a network alone, samplers, and the evaluation of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import Job
from cmcore import plugins
from cmcore.config import read
from cmcore.diffusion.grids import karras_grid, with_zero
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.evaluate.collect import collect
from cmcore.evaluate.features import random_extractor
from cmcore.methods.base import Batch
from cmcore.rng import Draws, NoiseSource
from cmcore.sample.fewstep import Multistep
from cmcore.sample.solvers import Heun
from cmcore.tensors import to_float
from cmcore.train.precision import autocast, choose_matrix_units
from cmcore.train.settings import TrainConfig
from cmcore.train.state import new_state
from cmcore.train.steps import steps

DIFFUSION = DiffusionConfig()
METHODS = ("edm", "ect", "ict", "ct", "tcm", "cd", "ctm", "sct", "scd", "meanflow", "imf", "soflow")
NETS: dict[str, dict[str, Any]] = {  # name -> kind, channels and resolution, and the fields of its Config
    "small": {"kind": "unet", "shape": (3, 32), "model_channels": 32, "channel_mult": (1, 2, 2), "blocks": 1,
              "attention_resolutions": (), "dropout": 0.0, "norm": "adaptive"},
    "digits": {"kind": "mlp", "shape": (1, 8), "hidden": 384, "blocks": 4},
    "ddpmpp": {"kind": "unet", "shape": (3, 32)},
    "ncsnpp": {"kind": "unet", "shape": (3, 32), "embedding": "fourier", "noise_mult": 2,
               "resample_filter": (1, 3, 3, 1), "encoder": "residual"},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One network at one batch, on one device."""

    net: str
    batch: int
    device: torch.device
    train: dict[str, Any]  # over the training settings
    resolution: int = 0  # 0: the network's own

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, resolution = NETS[self.net]["shape"]
        return channels, self.resolution or resolution, self.resolution or resolution

    @property
    def config(self) -> TrainConfig:
        """Settings of a run that never ends."""
        return TrainConfig(**{"images": 10**9, "batch": self.batch, **self.train})

    def denoiser(self, inputs: Sequence[Input] = ()) -> Denoiser:
        """The network with random weights, and with the inputs that a method declares."""
        options = {key: value for key, value in NETS[self.net].items() if key not in ("kind", "shape")}
        module = plugins.load("cmcore.nets", NETS[self.net]["kind"])
        torch.manual_seed(0)
        channels, resolution, _ = self.shape
        config = read(module.Config, options)
        net = module.build(config, channels=channels, resolution=resolution, classes=0, inputs=inputs)
        return Denoiser(net.to(self.device), sigma_data=DIFFUSION.sigma_data, inputs=inputs)


def training(case: Case, name: str) -> Job:
    """One step of a method, with optimiser and average."""
    choose_matrix_units(case.config.precision, case.config.jvp_precision)
    module = plugins.load("cmcore.methods", name)
    chooses = "distance" in module.Config.__dataclass_fields__
    method = module.build(module.Config(**({"distance": "pseudo_huber"} if chooses else {})), DIFFUSION)
    teacher = case.denoiser() if method.traits.teacher != "none" else None
    state = new_state(method, case.denoiser(method.traits.inputs), case.config, teacher=teacher)
    images = torch.rand(case.batch, *case.shape, device=case.device) * 2 - 1

    def batches(draws: Draws) -> Batch:
        return Batch(images[draws.rows], None)

    return partial(next, steps(state, method, batches, case.config))


def products(case: Case) -> Job:
    """The convolutions and linear layers of a step, forwards and backwards, with nothing between them."""
    denoiser = case.denoiser()
    layers: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        layers.append((layer, torch.randn_like(args[0]).requires_grad_(args[0].requires_grad)))

    if case.config.channels_last:
        denoiser.net.to(memory_format=torch.channels_last)
    hooks = [m.register_forward_pre_hook(note) for m in denoiser.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    x = torch.randn(case.batch, *case.shape, device=case.device)
    denoiser(x, torch.ones(case.batch, dtype=torch.float64, device=case.device))
    for hook in hooks:
        hook.remove()

    def step() -> None:
        for layer, x in layers:
            layer.zero_grad()
            x.grad = None
            with autocast(case.config.precision, case.device):
                y = layer(x)
            y.backward(torch.ones_like(y))

    return step


def samplers(case: Case) -> dict[str, Job]:
    """One batch of images in one step, in two, and by EDM's 18 steps of Heun (35 evaluations)."""
    denoiser, d = case.denoiser().eval(), DIFFUSION
    ways = {
        "1 step": Multistep((d.sigma_max,), d.sigma_min),
        "2 steps": Multistep((d.sigma_max, 0.821), d.sigma_min),
        "Heun, NFE 35": Heun(with_zero(karras_grid(18, d.sigma_min, d.sigma_max, d.rho))),
    }

    def draw(way: Multistep | Heun) -> None:
        with torch.no_grad():
            way(denoiser, case.shape, NoiseSource(1, range(case.batch), case.device), None)

    return {name: partial(draw, way) for name, way in ways.items()}


def evaluation(case: Case, count: int = 4) -> dict[str, Job]:
    """The pass over `count` batches of images with their moments, and the extractor's forward pass on them alone."""
    channels, resolution, _ = case.shape
    extractor = random_extractor(channels, resolution, width=32, features=64).to(case.device)
    images = torch.randint(0, 256, (count * case.batch, *case.shape), dtype=torch.uint8, device=case.device)
    ready = to_float(images)

    def batches(of: Tensor) -> Iterator[Tensor]:
        yield from of.split(case.batch)

    def bare() -> None:
        with torch.no_grad():
            for part in batches(ready):
                extractor.net.features(part)

    def whole() -> None:
        collect(batches(images), [extractor], shard=len(images), keep=len(images), device=case.device)

    return {"bare": bare, "pass": whole}
