"""The budget of training a workload, before any compute and without its data: operations, memory, time, money."""

import functools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cmcore.assemble.models import ModelShape, build_denoiser, declared_shape, some_labels
from cmcore.assemble.project import Project
from cmcore.assemble.run import NetChoice, Run
from cmcore.budget.cost import PassCost, PassKind, lpips_cost, on_meta, parameter_count, pass_cost
from cmcore.budget.machines import Machine
from cmcore.budget.passes import Passes, head_count, passes
from cmcore.config import ConfigError, digest
from cmcore.consistency.tangents import jvp_precision
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.layers.blocks import blocks
from cmcore.report.readers import Operations
from cmcore.train.precision import HALF

FLOAT = 4  # bytes: weights, gradients, moments and averages are float32 under every precision
RESERVE = 1.5e9  # bytes that the driver, the libraries and their work spaces take
FRAGMENTED = 0.05  # share of the memory that the allocator cannot use
GATHERED = 3  # blocks: the one at work, the next on its way, and the gradients of the one before on theirs
Parts = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """The machines that runs are planned for."""

    machine: Machine
    count: int = 1
    efficiency: float = 0.4  # share of the peak matrix rate that a training step reaches
    price: float | None = None  # of one machine for one hour
    shard: bool = False  # whether the networks are spread over the machines
    bandwidth: float = 0.0  # bytes a second, each way, between machines; 0 for the link of the machine's kind

    @property
    def link(self) -> float:
        """Bytes a second, each way."""
        return self.bandwidth or self.machine.link


@dataclass(frozen=True)
class RunPlan:
    """The budget of one run. Bytes are those of each machine; operations are of one image."""

    name: str
    method: str
    passes: Passes
    parameters: int
    forward: float  # operations of the network
    training: Counter[torch.dtype]  # operations of a training step by precision
    images: int
    steps: int
    rows: int  # micro-batch of the parameter file on each machine
    most_rows: int  # largest that fits, 0 for none
    memory: Parts  # at `rows`
    exchanged: float  # bytes that each machine sends in a training step
    exchange: float  # seconds that this takes
    exposed: float  # seconds of them that no computation covers
    seconds: float  # of the training from all seeds
    cost: float | None
    seeds: int = 1  # from which it is trained

    @property
    def bytes(self) -> float:
        """Memory at the micro-batch of the parameter file."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the run fits as the parameter file has it."""
        return self.most_rows >= self.rows

    @property
    def operations(self) -> float:
        """Of a training step, by image."""
        return float(sum(self.training.values()))


def data_shape(project: Project, data: Path, *, classes: int = 0) -> ModelShape:
    """The shape of the images, from the parameter file and from prepared data where there are any.

    Args:
        project: the parameters.
        data: the folder of the prepared data, which need not be there.
        classes: of conditional networks where neither says how many there are.

    Raises:
        ConfigError: the networks are conditional, and nothing says how many classes there are.
    """
    sections, manifest = project.sections, data / "manifest.json"
    if sections.conditional is True and manifest.is_file():
        classes = json.loads(manifest.read_text(encoding="utf-8"))["classes"] or classes
    shape = declared_shape(sections.data, sections.conditional, classes)
    if sections.conditional is True and not shape.classes:
        raise ConfigError("data.classes", "expected the number of classes, as the networks are conditional")
    return shape


class Costs:
    """Costs of the passes of the networks of a project; each is counted once."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._denoiser = functools.cache(self._build)
        self._known: dict[tuple[str, PassKind, torch.dtype | None, str], PassCost] = {}
        self.lpips = functools.cache(lpips_cost)

    def _build(self, net: "Net") -> Denoiser:
        return on_meta(lambda: build_denoiser(net.choice, self.shape, net.diffusion, boundary=False))

    def denoiser(self, run: Run) -> Denoiser:
        """The run's network, without memory."""
        return self._denoiser(Net(run.net, run.diffusion))

    def parameters(self, run: Run) -> int:
        """Of the run's network."""
        return parameter_count(self.denoiser(run))

    def largest_block(self, run: Run) -> int:
        """Parameters of the largest part of the run's network that is gathered at once."""
        net = self.denoiser(run).net
        sizes = [parameter_count(block) for block in blocks(net)]
        return max([parameter_count(net) - sum(sizes), *sizes])

    def of(self, run: Run, kind: PassKind) -> PassCost:
        """Of one pass through the run's network at the run's precision."""
        net, dtype = Net(run.net, run.diffusion), HALF.get(run.train.precision)
        key = (net.digest, kind, dtype, run.train.jvp_precision)
        if key not in self._known:
            size = (self.shape.channels, self.shape.resolution, self.shape.resolution)
            denoiser = self._denoiser(net)
            with jvp_precision(run.train.jvp_precision):
                self._known[key] = pass_cost(
                    denoiser, kind, size, labels_of=functools.partial(some_labels, self.shape), dtype=dtype
                )
        return self._known[key]


@dataclass(frozen=True)
class Net:
    """A network by its shape."""

    choice: NetChoice
    diffusion: DiffusionConfig

    @property
    def digest(self) -> str:
        return digest([self.choice.shape, self.choice.inputs, self.diffusion])

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Net) and self.digest == other.digest


def plan_run(run: Run, costs: Costs, setting: Setting, seeds: int = 1) -> RunPlan:
    """The budget of a run, trained from some seeds, on machines that share its global batch evenly."""
    count = passes(run)
    share = -(-run.train.batch // setting.count)
    rows = min(run.train.micro_batch or share, share)
    parameters = costs.parameters(run)
    trained = parameters + head_count(run, costs.denoiser(run))
    training = step_flops(run, count, costs)
    lpips = costs.lpips() if "lpips" in run.services else None
    copies = sum(network.make is None for network in run.objective.networks.values())
    split = setting.count if setting.shard else 1
    memory: Parts = {
        "weights": FLOAT * trained / split,
        "gradients": FLOAT * trained / split,
        "optimiser": 2 * FLOAT * trained / split,
        "averages": len(run.train.ema) * FLOAT * parameters / split,
        "teacher, target": copies * FLOAT * parameters / split + (lpips.base if lpips else 0),
        "reserve": RESERVE + FRAGMENTED * setting.machine.memory if setting.machine.name != "cpu" else 0.0,
    }
    if setting.shard:
        memory["gathered"] = GATHERED * FLOAT * costs.largest_block(run)
    kinds: list[PassKind] = [kind for _, kind in count]

    def activations(rows: int) -> float:
        """The largest pass, beyond the gradients; micro-batches keep those of the ones before, and keep them whole."""
        most = max((costs.of(run, kind).bytes(rows) for kind in kinds), default=0)
        added_up = memory["gradients"] if setting.shard else 0.0
        kept = added_up if rows < share else FLOAT * trained
        return max(0.0, most - kept) + (lpips.per_image * rows if lpips else 0)

    free = setting.machine.memory - sum(memory.values())
    units = "tf32" if run.train.jvp_precision == "tf32" else run.train.precision

    def time(flops: Counter[torch.dtype]) -> float:
        """Of these operations on one machine."""
        return sum(
            number / (setting.machine.rate(dtype, units) * setting.efficiency) for dtype, number in flops.items()
        )

    exchanged, exchange, exposed = 0.0, 0.0, 0.0
    if count and setting.count > 1:
        others = (setting.count - 1) / setting.count  # of a ring's data go through each link
        gathers = sum(times * (2 if kind.endswith("backward") else 1) for (_, kind), times in count.items())
        slices = -(-share // rows)
        sums = FLOAT * trained * others * (1 if setting.shard else 2)
        exchanged = sums + (gathers * slices * FLOAT * parameters * others if setting.shard else 0.0)
        exchange = exchanged / setting.link
        back: Counter[torch.dtype] = Counter()
        for (_, kind), times in count.items():
            back.update(_backward(run, kind, times, costs))
        # Gathers go beside every pass, and sums beside the last backward pass of a step.
        exposed = max(0.0, exchange - (share * time(training) if setting.shard else (share / slices) * time(back)))
    steps = run.train.steps if count else 0
    seconds = seeds * steps * (share * time(training) + exposed)
    return RunPlan(
        name=run.name,
        method=run.method,
        passes=count,
        parameters=parameters,
        forward=float(sum(costs.of(run, "forward").flops.values())),
        training=training,
        images=run.train.total if count else 0,
        steps=steps,
        rows=rows,
        most_rows=_most(activations, free, share),
        memory=memory | {"activations": activations(rows)},
        exchanged=exchanged,
        exchange=exchange,
        exposed=exposed,
        seconds=seconds,
        cost=None if setting.price is None else seconds / 3600 * setting.count * setting.price,
        seeds=seeds,
    )


def step_flops(run: Run, count: Passes, costs: Costs) -> Counter[torch.dtype]:
    """Operations of a training step by precision, of one image."""
    training: Counter[torch.dtype] = Counter()
    for (_, kind), times in count.items():
        for dtype, flops in costs.of(run, kind).flops.items():
            training[dtype] += times * flops
    if "lpips" in run.services:
        training.update(costs.lpips().flops)
    return training


def operations(run: Run, costs: Costs) -> Operations:
    """Operations of a run for the report.

    Raises:
        ConfigError: the loss refuses the batch.
    """
    count = passes(run)
    return Operations(
        training=float(sum(step_flops(run, count, costs).values()) * run.train.total) if count else 0.0,
        evaluation=float(sum(costs.of(run, "forward").flops.values())),
    )


def _backward(run: Run, kind: PassKind, times: int, costs: Costs) -> Counter[torch.dtype]:
    """Operations of the backward part of some passes of one image."""
    found: Counter[torch.dtype] = Counter()
    if kind.endswith("backward"):
        forward: PassKind = "jvp" if kind == "jvp+backward" else "forward"
        found.update({dtype: times * number for dtype, number in costs.of(run, kind).flops.items()})
        found.subtract({dtype: times * number for dtype, number in costs.of(run, forward).flops.items()})
    return found


def _most(activations: Callable[[int], float], free: float, share: int) -> int:
    """The largest micro-batch up to `share` whose activations are within `free` bytes."""
    if activations(share) <= free:  # a whole batch at once keeps no gradients of earlier micro-batches
        return share
    low, high = 0, share - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if activations(middle) <= free else (low, middle - 1)
    return low


def plan(project: Project, setting: Setting, data: Path) -> list[RunPlan]:
    """The plans of all runs of a workload.

    Args:
        project: the checked parameter file.
        setting: machines, their number, efficiency and price.
        data: the folder of prepared data, which may be absent.

    Raises:
        ConfigError: the parameter file does not say what the networks look like.
    """
    costs = Costs(data_shape(project, data))
    return [plan_run(run, costs, setting, project.replicates(name)) for name, run in project.runs.items()]
