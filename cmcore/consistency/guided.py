"""Classifier-free guidance inside a loss: targets that a network makes of its own predictions with and without labels.

The guided velocity of a sample, (1 - b - c) v + b v(no label) + c v(label), is that of a line through the same point
to another image: v is affine in the prediction of the clean image. So a guided loss is the plain one with that image.
"""

import torch
from torch import Tensor

from cmcore.config import require
from cmcore.diffusion.inputs import NO_LABEL, InputError
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.precond import Condition, Labels, as_condition, is_labelled, where_rows
from cmcore.tensors import expand_like


def check_dropout(guided: bool, label_dropout: float) -> None:
    """Refuse a share that is none, and guidance without dropped labels; for a method's Config."""
    require(0 <= label_dropout <= 1, "label_dropout", "a probability, from 0 to 1", label_dropout)
    require(
        not guided or label_dropout > 0, "label_dropout", "above 0, as guidance needs dropped labels", label_dropout
    )


def no_label(labels: Labels) -> Condition:
    """The same condition without labels."""
    condition = as_condition(labels)
    if condition.labels is None:
        raise InputError("labels", "class indices, which guidance needs", None, "`conditional` in the parameters")
    return condition._replace(labels=torch.full_like(condition.labels, NO_LABEL))


def keep_labels(dropped: Labels, labels: Labels, kept: Tensor) -> Condition:
    """The condition `dropped`, with the labels of before in the rows `kept` (B,)."""
    condition, own = as_condition(dropped), as_condition(labels).labels
    if own is None or condition.labels is None:
        return condition
    return condition._replace(labels=where_rows(kept, own, condition.labels))


def guided_image(
    D: Denoise, x: Tensor, level: Tensor, image: Tensor, labels: Labels, *, unlabelled: Tensor | float, labelled: float
) -> Tensor:
    """(1 - b - c) image + b D(no label) + c D(label), (B, ...), with the weights b = `unlabelled` and c = `labelled`.

    Args:
        D: the network, which is not asked with a weight of 0 for the label.
        x: noisy images (B, ...).
        level: their noise levels (B,).
        image: the clean images (B, ...).
        labels: of the images, none dropped.
        unlabelled: a number, or one for every image (B,).
        labelled: a number.
    """
    b = expand_like(torch.as_tensor(unlabelled, dtype=torch.float64, device=x.device).expand(len(x)), x)
    guided = image + b * (D(x, level, no_label(labels)) - image)
    return guided + labelled * (D(x, level, labels) - image) if labelled else guided


def where_labelled(labels: Labels, guided: Tensor, plain: Tensor) -> Tensor:
    """`guided` (B, ...) in rows that have a label, `plain` in those whose label was dropped."""
    known = as_condition(labels).labels
    assert known is not None
    return torch.where(is_labelled(known).reshape(-1, *[1] * (guided.ndim - 1)), guided, plain)
