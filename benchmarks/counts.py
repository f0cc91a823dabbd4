"""The arithmetic of a training step, where there is no GPU to time it on.

    python -m benchmarks.counts [--net teacher] [--batch 4] [--methods edm,ect,sct,scd,cd,meanflow] [--compile]

Counts for every method the operations of its matrix products, the calls of PyTorch operations, the bytes that are saved
for the backward pass, and the most bytes that tensors made in a step occupy at one time, saved ones included; for the
optimisers the calls of a step on all tensors of the network; and with `--compile` what a step starts whose networks
torch.compile has compiled for this processor: fused kernels, calls of libraries (matrix products, convolutions,
attention), and calls outside of the networks. Prints Markdown. Calls are those of PyTorch's dispatcher: on a GPU each
is one launch or a few.
"""

import argparse
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import benchmarks.gpu  # noqa: F401 (adds its network)
from benchmarks.clock import Job
from benchmarks.speed import Rows, markdown
from benchmarks.speed_jobs import METHODS, NETS, Case, training
from cmcore.budget.cost import Meter
from cmcore.train import state
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
        self.counts[name] += name not in VIEWS and not name.startswith("profiler::")
        return func(*args, **(kwargs or {}))


def counted(case: Case, name: str) -> Job:
    """A step of a method with the Adam of GPUs, which is one call: that of CPUs takes ten for every tensor."""
    with patch.object(state, "build_optimiser", lambda parameters, _: torch.optim.Adam(parameters, fused=True)):
        return training(case, name)


def steps(case: Case, names: Sequence[str]) -> Rows:
    """A step of every method."""
    rows: Rows = []
    for name in names:
        job = counted(case, name)
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


class Kernels(Calls):
    """Counts what compiled networks start, and beside it the calls of PyTorch operations outside of them.

    The networks go through all of torch.compile but the C++ compiler: their kernels write zeros. So this takes seconds
    where compiling takes minutes, and the counts are those of the compiled networks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.libraries = 0
        self._inside = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether networks compile in spite of this mode."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def __enter__(self) -> Self:
        from torch._dynamo.utils import counters
        from torch._inductor import config
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.output_code import CompiledFxGraph
        from torch._inductor.scheduler import FusedSchedulerNode, Scheduler, SchedulerNode
        from torch._inductor.utils import fresh_cache

        run, codegen = CompiledFxGraph.__call__, Scheduler.codegen

        def codegen_counted(scheduler: Scheduler) -> None:
            fused = sum(isinstance(node, FusedSchedulerNode | SchedulerNode) for node in scheduler.nodes)
            counters["inductor"]["fused_kernels"] += fused  # of which a compiled graph keeps its own share
            codegen(scheduler)

        def run_counted(graph: CompiledFxGraph, inputs: Any) -> Any:
            self.kernels += graph.counter_deltas["fused_kernels"]
            self.libraries += graph.counter_deltas["extern_calls"]
            self._inside = True
            try:
                return run(graph, inputs)
            finally:
                self._inside = False

        def zeros(_: AsyncCompile, kinds: list[str], source: str) -> Callable[..., None]:
            del source

            def kernel(*args: Any) -> None:
                for kind, arg in zip(kinds, args, strict=True):
                    if kind.endswith("*") and not kind.startswith("const"):
                        arg.zero_()

            return kernel

        self._patches = ExitStack()
        self._patches.enter_context(fresh_cache())  # of kernels that write zeros, and of graphs that were counted
        self._patches.enter_context(config.patch({"cpp.simdlen": 1}))  # no vectors: they change no kernel's extent
        self._patches.enter_context(patch.object(CompiledFxGraph, "__call__", run_counted))
        self._patches.enter_context(patch.object(Scheduler, "codegen", codegen_counted))
        self._patches.enter_context(patch.object(AsyncCompile, "cpp_pybinding", zeros))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()


def compiled(case: Case, names: Sequence[str]) -> Rows:
    """A step of every method with compiled networks."""
    rows: Rows = []
    with Kernels() as found:  # methods share the graphs that they have in common
        for name in names:
            torch.compiler.reset()
            job = counted(replace(case, train={**case.train, "compile": True}), name)
            job()  # compiles, and makes the optimiser's state
            found.kernels = found.libraries = 0
            found.counts.clear()
            job()
            calls = sum(found.counts.values())
            rows.append({"method": name, "kernels": found.kernels, "library calls": found.libraries,
                         "calls outside": calls, "in all": found.kernels + found.libraries + calls})  # fmt: skip
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
        print(f"\nA step with compiled networks\n\n{markdown(compiled(case, names))}")


if __name__ == "__main__":
    main()
