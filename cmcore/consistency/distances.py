"""Distances between two batches of images: (B, ...), (B, ...) -> (B,). The config field `distance` names one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

from cmcore.tensors import mean_per_sample, sum_per_sample

Distance = Callable[[Tensor, Tensor], Tensor]
DistanceName = Literal["l1", "l2", "huber", "pseudo_huber", "lpips"]

_provided: dict[str, Distance] = {}


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference over the pixels."""
    return mean_per_sample((a - b).abs())


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over the pixels, the CM paper's l2."""
    return mean_per_sample((a - b) ** 2)


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c with the norm of the whole image, not of a pixel (arXiv 2310.14189, Eq. 9)."""
    return (sum_per_sample((a - b) ** 2) + c**2).sqrt() - c


def huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """Mean of sqrt((a - b)^2 + c^2) - c over the pixels, of the training scripts for LCM (arXiv 2310.04378)."""
    return mean_per_sample(((a - b) ** 2 + c**2).sqrt() - c)


def huber_constant(dimension: int) -> float:
    """iCT's c = 0.00054 sqrt(d) for images of d numbers (arXiv 2310.14189, sec. 3.3)."""
    return 0.00054 * dimension**0.5


def services(name: DistanceName) -> tuple[str, ...]:
    """The networks from elsewhere that a distance needs, as `Traits.services` names them."""
    return (name,) if name == "lpips" else ()


def provide(name: str, distance: Distance) -> None:
    """Make a distance available that needs a network, such as LPIPS; called at the edge, where its weights are."""
    _provided[name] = distance


@contextmanager
def provided(distances: Mapping[str, Distance]) -> Iterator[None]:
    """Distances that are available inside this context, in place of any others of their names."""
    before = dict(_provided)
    _provided.update(distances)
    try:
        yield
    finally:
        _provided.clear()
        _provided.update(before)


def distance(name: DistanceName, c: float) -> Distance:
    """The distance of that name; c is used by both Hubers only. A ValueError where LPIPS was not provided."""
    if name in ("huber", "pseudo_huber"):
        of_c = huber if name == "huber" else pseudo_huber
        return lambda a, b: of_c(a, b, c)
    if name == "lpips":
        if name not in _provided:
            raise ValueError(
                "distance: lpips needs its weights (set train.lpips_weights), or choose pseudo_huber, l2 or l1"
            )
        return _provided[name]
    return {"l1": l1, "l2": l2}[name]
