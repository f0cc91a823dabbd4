"""Files that are written while training goes on: the state is copied at once, a thread brings it to the disk."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Held(NamedTuple):
    """Tensors as they were at one moment, in the host's memory once `ready` has returned."""

    tensors: dict[str, Tensor]
    ready: Callable[[], None]


def held(tensors: Mapping[str, Tensor]) -> Held:
    """A copy of named tensors that later changes of them do not reach; the host waits for no device.

    Two names of one memory stay two names of one memory.
    """
    copies: dict[tuple[object, ...], Tensor] = {}
    found: dict[str, Tensor] = {}
    on_device = False
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in copies or not tensor.numel():
            copies[key] = _copy(tensor)
        found[name] = copies[key]
        on_device = on_device or tensor.is_cuda
    if not on_device:
        return Held(found, lambda: None)
    copied = torch.cuda.Event()
    copied.record()
    return Held(found, copied.synchronize)


def _copy(tensor: Tensor) -> Tensor:
    """On a GPU the copy is queued behind what the state still waits for, and what changes the state later behind it."""
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


class Writer:
    """Writes in the order in which they are asked for, one at a time, beside the thread that asks.

    An error of a write surfaces at the next one, or at the end of the block. At most one write is on its way, so memory
    holds at most one copy. A block that ends by an error of its own raises that one.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._job: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Wait for the write before, then begin this one."""
        self.wait()
        self._job = self._pool.submit(write)

    def wait(self) -> None:
        """Wait for the write that is on its way, and raise its error if it had one."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self.wait()
            else:
                with suppress(Exception):
                    self.wait()
        finally:
            self._pool.shutdown()
