"""Networks that are spread over the workers: each holds some rows of every parameter, and of what belongs to it.

A pass gathers the parameters of a block before it is computed and drops them after it (FSDP2, arXiv 2304.11277), by
hooks on the blocks, which see every call of the network. Rows are whole along all dimensions but the first, so the
optimiser, averages and the normalisation of EDM2's weights work on them as on whole parameters, and as plain tensors.
Parameters that are one number, such as EDM2's gains, are whole on every worker.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmcore.layers.blocks import blocks
from cmcore.train.workers import Worker

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(net: nn.Module) -> "FSDPModule":
    """Spread a network over all workers, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # Of a network that ends in a change of shape. Nothing here works in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(next(net.parameters()).device.type, (dist.get_world_size(),))
    single = {parameter for parameter in net.parameters() if parameter.ndim == 0}
    for module in (*blocks(net), net):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=single & set(module.parameters()))
    for module in net.modules():
        if isinstance(module, FSDPModule):  # sums, and not means: a worker's loss is divided by the global batch
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(net, FSDPModule)
    return net


def spread(modules: Iterable[nn.Module]) -> list["FSDPModule"]:
    """Those of some modules that are spread over the workers, each once."""
    from torch.distributed.fsdp import FSDPModule

    return list(dict.fromkeys(module for module in modules if isinstance(module, FSDPModule)))


def is_sharded(tensor: Tensor) -> bool:
    """Whether this worker holds some rows only."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # takes long to import, which a single worker is spared

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows that this worker holds, without a graph and in the same memory; of a whole tensor all."""
    part: Any = tensor.detach()
    return part.to_local() if is_sharded(tensor) else part


def parts(net: nn.Module) -> list[Tensor]:
    """What this worker holds of the parameters of a network."""
    return [local(parameter) for parameter in net.parameters()]


def trainable(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, or for a sharded one the rows that this worker holds as a parameter in the same memory."""
    return nn.Parameter(local(parameter)) if is_sharded(parameter) else parameter


def like(whole: Tensor, part: Tensor) -> Tensor:
    """What this worker holds of something of the shape of a parameter, in that parameter's form."""
    if not is_sharded(whole):
        return part
    from torch.distributed.tensor import DTensor

    form: Any = whole
    return DTensor.from_local(part, form.device_mesh, form.placements, shape=form.shape, stride=form.stride())


def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of what this worker holds of every tensor."""
    own = module.state_dict()
    module.load_state_dict({name: like(own[name], part) if name in own else part for name, part in weights.items()})


def rows(parameter: Tensor) -> slice:
    """Which rows of a sharded parameter this worker holds."""
    share = -(-len(parameter) // dist.get_world_size())  # as torch.chunk cuts
    start = min(dist.get_rank() * share, len(parameter))
    return slice(start, start + len(local(parameter)))


def whole(named: Mapping[str, Tensor], lead: bool) -> dict[str, Tensor]:
    """The whole tensors, sharded ones in the memory of the lead's host.

    Every worker of a sharded run has to call it; the lead alone gets them.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():  # one at a time, so that no device holds more than one
        form: Any = tensor
        full = form.full_tensor() if is_sharded(tensor) else tensor
        if lead:
            tensors[name] = full.cpu() if is_sharded(tensor) else full
    return tensors


def total_norm(gradients: Mapping[nn.Parameter, Tensor], worker: Worker) -> Tensor:
    """The norm () of all gradients together, of which those of sharded parameters are what every worker holds."""
    if not worker.shard:
        return nn.utils.get_total_norm(list(gradients.values()))
    spread = [gradient for parameter, gradient in gradients.items() if is_sharded(parameter)]
    other = [gradient for parameter, gradient in gradients.items() if not is_sharded(parameter)]
    device = next(iter(gradients.values())).device
    squares = [nn.utils.get_total_norm(some).to(device, torch.float64).square() for some in (spread, other)]
    worker.total(squares[:1])
    return (squares[0] + squares[1]).sqrt().float()
