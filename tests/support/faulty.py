"""Runs with bad steps, and the training loop as it is on a device that works on its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from cmcore.methods.base import Batch, LossOut, Method
from cmcore.rng import Draws
from cmcore.train import steps
from cmcore.train.state import State, state_tensors


def copied(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_tensors(state).items()}


@contextmanager
def gate(deferred: bool) -> Iterator[None]:
    """The loop as it is on a device that works on its own, or as it is on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "is_synchronous", lambda device: not deferred)
        yield


class Overflows(Method):
    """A method some of whose steps have gradients that are not finite."""

    def __init__(self, inner: Any, bad: Callable[[int], bool], kind: str = "gradient") -> None:
        self.inner, self.bad, self.kind = inner, bad, kind

    @property
    def traits(self) -> Any:
        return self.inner.traits

    @property
    def networks(self) -> Any:
        return self.inner.networks

    def after(self, progress: Any) -> Any:
        return self.inner.after(progress)

    def loss(self, nets: Any, batch: Batch, progress: Any, draws: Draws) -> LossOut:
        out = self.inner.loss(nets, batch, progress, draws)
        if not self.bad(progress.iteration):
            return out
        if self.kind == "loss":
            return LossOut(out.loss * float("inf"), out.scalars)
        zero = (out.loss - out.loss.detach()).clamp(min=0)  # sqrt has an infinite slope here, and a finite value
        return LossOut(out.loss.detach() + zero.sqrt(), out.scalars)
