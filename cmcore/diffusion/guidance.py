"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): towards the label, away from what has none.

D_s = D(no label) + s (D(label) - D(no label)), with the scale s of sCM (arXiv 2410.11081) and EDM2, where 1 is none.
The same holds of F and of the velocity, which are affine in D. The network has to have learned what has no label, by
training on labels of which some were dropped. A label is a class or a caption; without one is the empty caption.
A negative label, such as a negative prompt, takes the place of no label, and guidance leads away from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.inputs import GUIDANCE, NO_LABEL, Input, InputError
from cmcore.diffusion.precond import Condition, Labels, as_condition, where_rows, with_inputs
from cmcore.dual import Value, each
from cmcore.rng import Draws
from cmcore.tensors import expand_like

Model = Callable[[Tensor, Tensor, Labels], Tensor]
"""(x (B, ...), level (B,), labels) -> (B, ...): a `Denoiser`, or F."""
Scales = tuple[float, float]


def drop_labels(labels: Labels, probability: float, draws: Draws) -> Labels:
    """The labels of a step, each dropped with that probability; with 0 nothing is drawn."""
    condition = as_condition(labels)
    if not probability or condition.labels is None:
        return labels
    dropped = draws.uniform(stream="label_dropout") < probability
    return condition._replace(labels=where_rows(dropped, NO_LABEL, condition.labels))


def check_scales(scales: Scales | None) -> None:
    """Refuse what is no range of guidance scales; for a method's Config."""
    ordered = scales is None or 0 <= scales[0] <= scales[1]
    require(ordered, "guidance", "null, or the least and the largest scale, from 0 on", scales)


def guidance_inputs(scales: Scales | None, *, single: bool = True) -> tuple[Input, ...]:
    """The extra network input of a student that learns guidance scales; none where there is no range.

    With `single` a range of one scale has it as well.
    """
    return (GUIDANCE,) if scales is not None and (single or scales[0] < scales[1]) else ()


def draw_scales(scales: Scales, draws: Draws) -> Tensor:
    """s ~ U[lo, hi] for every image of a step, float64 (B,)."""
    low, high = scales
    return low + (high - low) * draws.uniform(stream="guidance")


def with_scale(labels: Labels, s: Tensor) -> Condition:
    """Labels with guidance scales (B,), for a network that has learned them."""
    return with_inputs(labels, **{GUIDANCE.name: s})


def at_scale(denoiser: Model, s: float) -> Model:
    """A `Denoiser` that has learned guidance scales, at one of them."""
    return lambda x, level, labels=None: denoiser(
        x, level, with_scale(labels, torch.full((len(x),), s, device=x.device))
    )


@dataclass(frozen=True)
class Guided:
    """A `Denoiser`, or F, under guidance: one pass of a batch twice as large.

    Args:
        model: the network that is guided.
        s: the scale: a number, or one for each image (B,).
        negative: a label () or a row of words (L,) that is the same for all images, in the place of no label.
    """

    model: Model
    s: Tensor | float
    negative: Tensor | None = None

    def __call__(self, x: Tensor, level: Tensor, labels: Labels = None) -> Tensor:
        with_label, without = self.model(_twice(x), _twice(level), self._both(labels)).chunk(2)
        s = self.s if isinstance(self.s, Tensor) else torch.full((len(x),), self.s, device=x.device)
        # Unlike the formula as it stands, lerp gives D(label) to the last bit at s = 1.
        return torch.lerp(without, with_label, expand_like(s, with_label))

    def _both(self, labels: Labels) -> Condition:
        """The condition of a batch, then the same without labels, or with the negative one."""
        indices, augment, inputs = as_condition(labels)
        if indices is None:
            raise InputError("labels", "class indices, which guidance needs", None, "`conditional` in the parameters")
        none = torch.full_like(indices, NO_LABEL) if self.negative is None else self.negative.expand_as(indices)
        return Condition(
            torch.cat([indices, none]),
            None if augment is None else _twice(augment),
            {name: _twice(value) for name, value in inputs.items()},
        )


def guided_at(model: Model, s: float) -> Model:
    """The model under guidance at one scale; the very same at 1."""
    return model if s == 1 else Guided(model, s)


def _twice(x: Value) -> Any:
    return each(lambda x: torch.cat([x, x]), x)
