"""Exact networks of normal classes: the guided flow is that of a normal class with another mean.

N(MEAN, STD^2) under the label, N(0, STD^2) without one: guided with s it is N(s MEAN, STD^2) exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from exact import SD, Exact, ExactMap
from torch import Tensor

from cmcore.diffusion.inputs import NO_LABEL, Input
from cmcore.diffusion.precond import Condition, Denoiser, Labels, as_condition
from cmcore.methods.base import Batch
from cmcore.oracles import Gaussian
from cmcore.rng import Draws

MEAN, STD, SHAPE = 0.3, 0.8, (1, 2, 2)
LABELLED = Gaussian(MEAN, STD)
Scale = Callable[[Condition], Tensor | float]


def at(s: float) -> Scale:
    return lambda _: s


def told(condition: Condition) -> Tensor | float:
    """The scale that the network is told, else 1."""
    return condition.inputs.get("guidance", 1.0)


def oracle(labels: Labels, scale: Scale) -> Gaussian:
    condition = as_condition(labels)
    assert condition.labels is not None
    mean = torch.where(condition.labels == NO_LABEL, 0.0, torch.as_tensor(scale(condition)).double() * MEAN)
    return Gaussian(mean[:, None, None, None], STD)


class ClassMap(ExactMap):
    """The exact map between levels of the class that a row is of, at a guidance scale."""

    def __init__(self, end_of: Callable[[Tensor, Condition], Tensor], scale: Scale) -> None:
        super().__init__(LABELLED, end_of)
        self.scale = scale

    def _exact(self, u: Tensor, c_noise: Tensor, labels: Labels) -> Tensor:
        self.oracle = oracle(labels, self.scale)
        return super()._exact(u, c_noise, labels)


class Class(Exact):
    """The exact denoiser, or with `end` the consistency function, of the class that a row is of."""

    def __init__(self, scale: Scale, end: float | None = None) -> None:
        super().__init__(LABELLED, end)
        self.scale = scale

    def forward(self, u: Any, c_noise: Any, labels: Any) -> Any:
        self.oracle = oracle(labels, self.scale)
        return super().forward(u, c_noise, None)


def class_map(name: str, inputs: Sequence[Input], scale: Scale) -> Denoiser:
    """Exact maps, where the input `name` is the level at which a jump ends."""

    def end_of(sigma: Tensor, condition: Condition) -> Tensor:
        del sigma
        return (4 * condition.inputs[name]).exp()

    return Denoiser(ClassMap(end_of, scale), sigma_data=SD, inputs=inputs)


def class_denoiser(scale: Scale, inputs: Sequence[Input] = ()) -> Denoiser:
    """The exact denoiser at a guidance scale."""
    net = Class(scale)
    denoiser = Denoiser(net, sigma_data=SD, inputs=inputs)
    net.outer = (denoiser,)
    return denoiser


class Mean(Draws):
    """Draws whose noise leads from the mean of all images that a point may come from to that point.

    A loss that is affine in image and noise is then, at every row, what it is on average given the point.
    """

    def __init__(self, seed: int, batch: int, sigma: Callable[[Draws], Tensor], stream: str = "noise") -> None:
        super().__init__(seed, 0, batch)
        self.stream = stream
        level = sigma(self)[:, None, None, None]
        n = super().normal(SHAPE, stream="point", dtype=torch.float64)
        self.x = MEAN + (STD**2 + level**2).sqrt() * n
        self.image = LABELLED.denoise(self.x, sigma(self))
        self.z = (self.x - self.image) / level

    def normal(self, shape: Sequence[int] = (), *, stream: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.z if stream == self.stream else super().normal(shape, stream=stream, dtype=dtype)

    @property
    def data(self) -> Batch:
        """The mean images, all of the one class."""
        return Batch(self.image, torch.zeros(self.batch, dtype=torch.int64))


def of_class(draws: Draws) -> Batch:
    """Images of the one class."""
    x = LABELLED.sample(draws.normal(SHAPE, stream="data", dtype=torch.float64))
    return Batch(x, torch.zeros(len(x), dtype=torch.int64))
