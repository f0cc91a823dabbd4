"""Workers that train one run together, and sums over all of them: of gradients as soon as they are there."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

BUCKET = (
    25 * 2**20
)  # bytes that are summed at a time: enough that their number costs little, and that the first go early
Wait = Callable[[], object]
Begin = Callable[[Tensor], Wait]


def begin_sum(tensor: Tensor) -> Wait:
    """Begin to sum a tensor over all processes, in place; the result waits for the end. All get the same bits."""
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    return work.wait


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a run together; by default the only one. Each computes its share of a batch."""

    rank: int = 0
    world: int = 1
    shard: bool = False  # whether networks, gradients, optimisers and averages are spread over the workers
    begin: Begin = begin_sum
    rows: int = 0  # that it computes at once at most, 0 for no limit; as `train.micro_batch`, but no part of the run

    @property
    def lead(self) -> bool:
        """Whether this is the one worker that writes files."""
        return self.rank == 0

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the workers, in place, by one message for each dtype."""
        if self.world == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            group = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1).to(tensors[0].device) for tensor in group])
            self.begin(flat)()
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def agreed(self, flag: bool, device: torch.device) -> bool:
        """The lead's flag, for all workers; they wait for one another."""
        said = torch.tensor(float(flag and self.lead), device=device)
        self.total([said])
        return bool(said)


ALONE = Worker()


class GradientSums:
    """Sums over the workers of the gradients of some parameters, which begin during the backward pass.

    A gradient is complete when the last backward pass of a step has come by its parameter. Parameters are in buckets
    from the last to the first, as gradients come about; a full bucket is summed while the backward pass goes on.

    The hooks are on the parameters, and there is no DistributedDataParallel: that sees one forward pass through one
    module, where a loss calls several networks, several times, with and without gradients and of Duals.

    Args:
        parameters: those whose gradients are summed.
        worker: of the run.
        sharded: networks that sum their gradients by themselves, after the last backward pass of a step alone.
        size: of a bucket, in bytes.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        worker: Worker,
        sharded: Sequence["FSDPModule"] = (),
        size: int = BUCKET,
    ) -> None:
        self._begin, self._sharded, self._buckets = worker.begin, sharded, _buckets(parameters, size)
        self._missing: list[int] = []  # how many gradients every bucket waits for, during the last backward pass alone
        self._waits: list[Wait] = []
        self._sent = 0
        self._ran: set[Any] = set()  # networks, since the last reset; others cannot be reset
        for net in sharded:
            cast("nn.Module", net).register_forward_pre_hook(lambda net, _: self._ran.add(net))
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.requires_grad_()  # or it cannot have a hook
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._complete(index))

    def reset(self) -> None:
        """Forget passes that no backward pass has followed, of the turn before or of a failed one."""
        for net in self._ran:
            net.reset_iter_state()
        self._ran.clear()
        self._missing = []

    def prepare(self, *, last: bool) -> None:
        """Announce a backward pass, and whether it is the last one of the step."""
        for net in self._sharded:
            net.set_requires_gradient_sync(last)
        if last:
            self._missing, self._waits, self._sent = [len(bucket) for bucket in self._buckets], [], 0

    def finish(self) -> None:
        """Sum what was not summed on the way, and wait for all sums."""
        self._send(len(self._buckets))
        self._missing = []
        for wait in self._waits:
            wait()

    def _complete(self, index: int) -> None:
        if self._missing:
            self._missing[index] -= 1
            # In the same order on all workers, or different buckets would be added.
            self._send(next((i for i, missing in enumerate(self._missing) if missing), len(self._missing)))

    def _send(self, until: int) -> None:
        for bucket in self._buckets[self._sent : until]:
            gradients = {parameter: parameter.grad for parameter in bucket if parameter.grad is not None}
            if gradients:
                flat = torch.cat([_dense(gradient) for gradient in gradients.values()])
                parts = flat.split([gradient.numel() for gradient in gradients.values()])
                for (parameter, gradient), part in zip(gradients.items(), parts, strict=True):
                    parameter.grad = part.as_strided(gradient.size(), gradient.stride())  # no second copy is kept
                self._waits.append(self._begin(flat))
        self._sent = max(self._sent, until)


def _buckets(parameters: Iterable[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """The parameters from the last to the first, in groups of one dtype and of about `size` bytes."""
    buckets: list[list[nn.Parameter]] = []
    filled = size
    for parameter in reversed(list(parameters)):
        if filled >= size or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += parameter.nbytes
    return buckets


def _dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient (n,) in the order of the memory, which is that of its parameter on every worker."""
    return gradient.as_strided((gradient.numel(),), (1,))
