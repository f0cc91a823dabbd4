"""Steps that are taken only where a flag on the device says so, and learning of it without waiting for the device.

A training loop that asks the device after every step whether the loss was a finite number keeps it idle. Here the
update itself depends on the flag, and the flag travels to the host while the device goes on.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not a finite number; the optimiser step was not taken."""


@torch.no_grad()
def gated_step(optimiser: torch.optim.Optimizer, go: Tensor) -> None:
    """`optimiser.step()` where go, a bool (), holds; where it does not, weights and optimiser keep every bit."""
    if optimiser.defaults.get("fused"):
        setattr(optimiser, "found_inf", (~go).to(torch.float32))  # noqa: B010 (PyTorch's own protocol of fused kernels)
        optimiser.step()
        return
    before = {key: tensor.clone() for key, tensor in _held(optimiser)}
    optimiser.step()
    for key, tensor in _held(optimiser):
        # A slot that the first step creates starts from zero.
        old = before[key] if key in before else torch.zeros_like(tensor)
        torch.where(go, tensor, old, out=tensor)


def _held(optimiser: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """All tensors that a step changes, each under a key."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        yield (index, ""), parameter
        slots = optimiser.state.get(parameter, {})
        yield from (((index, name), slot) for name, slot in slots.items() if isinstance(slot, Tensor))


class Report(NamedTuple):
    """The outcome of a step on its way to the host: the numbers (bad, loss, gradient norm), and their step."""

    values: Tensor
    event: "torch.cuda.Event | None"  # None where the values are there already
    step: int
    images: int


class Watch:
    """Closes the gate at the first bad step, for good, and raises as soon as the host has heard of it."""

    def __init__(self, method: str, device: torch.device) -> None:
        self._method = method
        self._waiting: deque[Report] = deque()
        self.open = torch.ones((), dtype=torch.bool, device=device)

    def add(self, bad: Tensor, loss: Tensor, grad_norm: Tensor, step: int, images: int) -> None:
        """Note a step of which `bad`, a bool (), says whether the run has to end there."""
        self.open = self.open & ~bad
        values, event = torch.stack([bad.to(loss.dtype), loss, grad_norm.to(loss.dtype)]), None
        if values.is_cuda:
            values = torch.empty(3, dtype=loss.dtype, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append(Report(values, event, step, images))

    def look(self) -> None:
        """Raise a NonFiniteError if a bad step is known of by now; never waits."""
        while self._waiting and (self._waiting[0].event is None or self._waiting[0].event.query()):
            self._judge(self._waiting.popleft())

    def settle(self) -> None:
        """Wait until all steps so far are known of, and raise a NonFiniteError if one was bad."""
        if self._waiting and self._waiting[-1].event is not None:
            self._waiting[-1].event.synchronize()
        self.look()

    def _judge(self, report: Report) -> None:
        bad, loss, grad_norm = report.values.tolist()
        if bad:
            raise NonFiniteError(
                f"{self._method}: loss {loss:g} with gradient norm {grad_norm:g} at step {report.step} "
                f"({report.images} images seen); the step was not taken. Try a lower train.lr or a train.clip_norm"
            )
