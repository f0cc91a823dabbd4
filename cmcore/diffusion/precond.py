"""Preconditioning: from the raw network F to the denoiser D, which everything else speaks to.

D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))   (EDM, arXiv 2206.00364, Eq. 7)

x is variance-exploding throughout: x = x_0 + sigma z. TrigFlow's x_t (arXiv 2410.11081) is the same point scaled: with
sigma = sigma_data tan t, x_t = cos t x, and F_trig = -F. So one denoiser serves every method, and weights carry over.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cmcore.diffusion.inputs import NO_LABEL, Input, declared
from cmcore.diffusion.path import TrigFlow
from cmcore.dual import Dual, Value, add, each, entrywise, mul
from cmcore.tensors import expand_like

NoiseCoordinate = Literal["log", "trig", "log1000"]
LEAST_LEVEL = 1e-6  # of a second noise level in a logarithmic coordinate, where 0 itself would be infinitely far away


class Condition(NamedTuple):
    """Inputs of a network beside the image and its noise level; passed wherever plain labels are.

    `labels` are class indices (B,) int64, of which NO_LABEL is none, or rows of words (B, L) (diffusion/words.py);
    `augment` is how each image was augmented, (B, augment_dim), and None is zeros; `inputs` are values (B,) of further
    inputs by name (see diffusion/inputs.py).
    """

    labels: Tensor | None
    augment: Tensor | None = None
    inputs: Mapping[str, Value] = MappingProxyType({})


Labels = Tensor | Condition | None


def as_condition(labels: Labels) -> Condition:
    """Plain labels, or none, as a `Condition`."""
    return labels if isinstance(labels, Condition) else Condition(labels)


def with_inputs(labels: Labels, **inputs: Value) -> Condition:
    """Labels with values (B,) of further inputs by name."""
    condition = as_condition(labels)
    return condition._replace(inputs={**condition.inputs, **inputs})


def rows_of(labels: Labels, rows: slice) -> Condition:
    """The labels of some rows."""
    condition = as_condition(labels)
    labels, augment = (None if part is None else part[rows] for part in condition[:2])
    return Condition(
        labels, augment, {name: each(lambda v: v[rows], value) for name, value in condition.inputs.items()}
    )


def where_rows(chosen: Tensor, labels: Tensor | int, others: Tensor) -> Tensor:
    """`labels` in the rows chosen (B,) bool, in the rest `others`, which are classes (B,) or rows of words (B, L)."""
    return torch.where(chosen.reshape(-1, *[1] * (others.ndim - 1)), labels, others)


def is_labelled(labels: Tensor) -> Tensor:
    """Which rows of classes (B,) or of words (B, L) have a label, bool (B,)."""
    known = labels != NO_LABEL
    return known if known.ndim == 1 else known.any(1)


class Scalings(NamedTuple):
    """The four preconditioning factors, each (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def noise_coordinate(sigma: Tensor, sigma_data: float, kind: NoiseCoordinate) -> Tensor:
    """c_noise, the noise level as the network sees it.

    "log" is ln(sigma)/4 (EDM, Table 1), "trig" is t = arctan(sigma/sigma_data) (sCM, sec. 4.1), and "log1000" is
    1000 ln(sigma)/4, which the public consistency models were trained with (arXiv 2303.01469, their repository).
    """
    if kind == "trig":
        return TrigFlow(sigma_data).time(sigma)
    return sigma.log() / 4 if kind == "log" else 250 * (sigma + 1e-44).log()


def edm_scalings(sigma: Tensor, sigma_data: float, coordinate: NoiseCoordinate = "log") -> Scalings:
    """EDM's scalings (arXiv 2206.00364, Table 1), for sigma (B,)."""
    total = sigma**2 + sigma_data**2
    return Scalings(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=noise_coordinate(sigma, sigma_data, coordinate),
    )


def boundary_scalings(
    sigma: Tensor, sigma_data: float, epsilon: float, coordinate: NoiseCoordinate = "log"
) -> Scalings:
    """Scalings shifted by epsilon, so that c_skip = 1 and c_out = 0 at sigma = epsilon (arXiv 2303.01469, App. C)."""
    plain = edm_scalings(sigma, sigma_data, coordinate)
    shifted = sigma - epsilon
    return plain._replace(
        c_skip=sigma_data**2 / (shifted**2 + sigma_data**2),
        c_out=sigma_data * shifted / (sigma**2 + sigma_data**2).sqrt(),
    )


class Denoiser(nn.Module):
    """(x, sigma, labels) -> the prediction of the clean image.

    Of a consistency model this is the consistency function f itself: both share the form.

    Args:
        net: F, called as net(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W).
        sigma_data: standard deviation of the data.
        epsilon: the boundary sigma at which D(x, epsilon) = x exactly; 0 means plain EDM scalings.
        coordinate: which c_noise the network was built for.
        inputs: the further inputs that the network was built with.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        sigma_data: float,
        epsilon: float = 0.0,
        coordinate: NoiseCoordinate = "log",
        inputs: Sequence[Input] = (),
    ) -> None:
        super().__init__()
        if not (sigma_data > 0 and math.isfinite(sigma_data)):
            raise ValueError(f"sigma_data: expected a positive number, got {sigma_data}")
        self.net, self.sigma_data, self.epsilon = net, sigma_data, epsilon
        self.coordinate: NoiseCoordinate = coordinate
        self.inputs = tuple(inputs)

    def scalings(self, sigma: Tensor) -> Scalings:
        """The scalings in the precision of sigma: pass float64 levels for float64 arithmetic."""
        if self.epsilon > 0:
            return boundary_scalings(sigma, self.sigma_data, self.epsilon, self.coordinate)
        return edm_scalings(sigma, self.sigma_data, self.coordinate)

    def forward(self, x: Value, sigma: Value, labels: Labels = None) -> Any:
        """Denoise x (B, C, H, W) at levels sigma (B,); the result has the dtype of x. Of Duals it is a Dual."""
        c_skip, c_out, c_in, c_noise = self._scalings(sigma)
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        F = self.raw(mul(expand_like(c_in, x), x).to(dtype), c_noise, labels)
        return add(mul(expand_like(c_skip, x), x), mul(expand_like(c_out, x), F.to(x.dtype)))

    def _scalings(self, sigma: Value) -> Sequence[Any]:
        if not isinstance(sigma, Dual):
            return self.scalings(sigma)
        return [entrywise(lambda v, i=i: self.scalings(v)[i], sigma) for i in range(len(Scalings._fields))]

    def raw(self, u: Value, c_noise: Value, labels: Labels = None) -> Any:
        """F at u = c_in x (B, C, H, W) and c_noise (B,), with second noise levels brought to the same coordinate.

        Of Duals it is a Dual; a further input may be one as well.
        """
        return self.net(u, c_noise.to(u.dtype), self._seen(labels))

    def _seen(self, labels: Labels) -> Labels:
        condition = as_condition(labels)
        kinds = {name: declared(name, value, self.inputs).kind for name, value in condition.inputs.items()}
        levels = {
            name: entrywise(self._coordinate, condition.inputs[name]) for name, kind in kinds.items() if kind == "time"
        }
        return with_inputs(condition, **levels) if levels else labels

    def _coordinate(self, level: Tensor) -> Tensor:
        safe = level if self.coordinate == "trig" else level.clamp(min=LEAST_LEVEL)
        return noise_coordinate(safe, self.sigma_data, self.coordinate)
