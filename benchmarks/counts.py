"""The arithmetic of a training step, where there is no GPU to time it on.

    python -m benchmarks.counts [--net teacher] [--batch 4] [--methods edm,ect,sct,scd,cd,meanflow] [--compile]

Counts for every method the operations of its matrix products, the calls of PyTorch operations, the bytes that are saved
for the backward pass, and the most bytes that tensors made in a step occupy at one time, saved ones included; for the
optimisers the calls of a step on all tensors of the network; and with `--compile` the kernels that torch.compile makes
of a step's networks, on this device. Prints Markdown. Calls are those of PyTorch's dispatcher: on a GPU each is one
launch or a few.
"""

import argparse
import gc
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import benchmarks.gpu  # noqa: F401 (adds its network)
from benchmarks.speed import Rows, markdown
from benchmarks.speed_jobs import METHODS, NETS, Case, training
from cmcore.budget.cost import Meter
from cmcore.train.gate import gated_step
from cmcore.train.radam import FusedRAdam

VIEWS = (
    "aten::view", "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::t", "aten::permute", "aten::slice",
    "aten::select", "aten::unsqueeze", "aten::expand", "aten::as_strided", "aten::transpose", "aten::split",
)  # fmt: skip
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8}


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of what is saved for backward passes, without parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._known = {parameter.data_ptr() for parameter in parameters}
        self._held: dict[int, Any] = {}  # memory that is held is given to nothing else

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._held[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        """Until now."""
        return sum(storage.nbytes() for storage in self._held.values())


class Calls(TorchDispatchMode):
    """Counts the operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func.name().partition(".")[0]
        self.counts[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


def steps(case: Case, names: Sequence[str]) -> Rows:
    """A step of every method."""
    rows: Rows = []
    for name in names:
        job = training(case, name)
        job()  # makes the optimiser's state
        with Calls() as calls:
            job()
        saved = Saved(found for found in gc.get_objects() if type(found) is nn.Parameter)
        with saved:
            job()
        size = saved.bytes
        del saved  # it holds what it counted
        with Meter() as meter:
            job()
        flops = sum(meter.flops.values())
        rows.append({"method": name, "GFLOP an image": flops / case.batch / 1e9, "calls": sum(calls.counts.values()),
                     "saved MiB": size / 2**20, "peak MiB": meter.peak / 2**20})  # fmt: skip
        first = rows[0]
        rows[-1] |= {
            "operations over EDM": rows[-1]["GFLOP an image"] / first["GFLOP an image"],
            "memory over EDM": rows[-1]["peak MiB"] / first["peak MiB"],
        }
    return rows


def optimisers(case: Case) -> Rows:
    """A step of PyTorch's RAdam as a GPU has it, behind the gate, and of ours, on the tensors of the network."""
    from torch.optim import radam

    supported = radam._get_capturable_supported_devices
    radam._get_capturable_supported_devices = lambda *_, **__: ["cpu", "cuda"]  # its path for GPUs, on any device
    try:
        rows: Rows = []
        for said, make in (
            ("PyTorch's RAdam", lambda p: torch.optim.RAdam(p, **SETTINGS, foreach=True, capturable=True)),
            ("FusedRAdam", lambda p: FusedRAdam(p, **SETTINGS)),
        ):
            parameters = list(case.denoiser().parameters())
            optimiser = make(parameters)
            for _ in range(2):
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
                with Calls() as calls, torch.no_grad():
                    gated_step(optimiser, torch.tensor(True))
            rows.append({"optimiser": said, "tensors": len(parameters), "calls": sum(calls.counts.values())})
        return rows
    finally:
        radam._get_capturable_supported_devices = supported


def kernels(case: Case, names: Sequence[str]) -> Rows:
    """The kernels and the seconds of compiling a step's networks."""
    from torch._inductor import metrics

    from cmcore.train.compiled import CLOCK

    CLOCK.watch()
    rows: Rows = []
    for name in names:
        torch.compiler.reset()
        CLOCK.__init__()
        CLOCK.watch()
        metrics.reset()
        training(Case(case.net, case.batch, case.device, {**case.train, "compile": True}), name)()
        rows.append({"method": name, "kernels": metrics.generated_kernel_count, "compiling, s": CLOCK.seconds})
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="teacher")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--methods", default="edm,ect,sct,scd,cd,meanflow", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args(words)
    case = Case(options.net, options.batch, torch.device("cpu"), {"optimiser": "adam"})
    names = options.methods.split(",")
    size = sum(parameter.numel() for parameter in nn.ModuleList([case.denoiser()]).parameters())
    print(f"torch {torch.__version__}, network {options.net} of {size / 1e6:.1f}M parameters, batch {options.batch}")
    print(f"\nA training step\n\n{markdown(steps(case, names))}")
    print(f"\nA step of the optimiser\n\n{markdown(optimisers(case))}")
    if options.compile:
        print(f"\nA step of compiled networks\n\n{markdown(kernels(case, names))}")


if __name__ == "__main__":
    main()
