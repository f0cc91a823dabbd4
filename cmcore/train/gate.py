"""Steps that are taken only where a flag on the device says so, and learning of it without waiting for the device.

A training loop that asks the device after every step whether the loss was a finite number keeps it idle. Here the
update itself depends on the flag, and the flag travels to the host while the device goes on.
"""

from collections import deque
from collections.abc import Iterator, Sequence
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
    held = dict(_held(optimiser))
    copies = [torch.empty_like(tensor) for tensor in held.values()]
    torch._foreach_copy_(copies, list(held.values()))
    before = dict(zip(held, copies, strict=True))
    optimiser.step()
    now = dict(_held(optimiser))
    # A slot that the first step creates starts from zero.
    choose(go, list(now.values()), [before[key] if key in before else torch.zeros_like(now[key]) for key in now])


def choose(go: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> None:
    """Where go, a bool (), does not hold, give the float32 tensors `new` the bits of `old`, all at once.

    old + go (new - old) is exact in integers, which wrap around, whatever the bits mean; in floats a nan would stay.
    """
    bits, kept = ([tensor.view(torch.int32) for tensor in tensors] for tensors in (new, old))
    torch._foreach_sub_(bits, kept)
    torch._foreach_mul_(bits, go.to(torch.int32))
    torch._foreach_add_(bits, kept)


def _held(optimiser: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """All tensors that a step changes, each under a key."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        yield (index, ""), parameter.detach()
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
