"""`cmlab plan`: operations, memory, time and cost of a workload, before any compute."""

from collections.abc import Sequence
from pathlib import Path

from cmcore.assemble.project import Project, load_project
from cmcore.budget.machines import machine
from cmcore.budget.plan import RunPlan, Setting, plan
from cmcore.budget.times import Here, plan_here
from cmcore.commands.place import workload_files
from cmcore.config import PARAMS, ConfigError, read, require
from cmcore.data.sources.pool import cores
from cmcore.edge.settings import ComputeConfig
from cmcore.numbers import duration, size
from cmcore.pipeline.common import Folders
from cmcore.pipeline.grow import longer
from cmcore.pipeline.sizes import disk_of

GPU, CPU, EFFICIENCY = "h100", "cpu", 0.4
HEADS = (
    *(
        "run",
        "method",
        "parameters",
        "GFLOP/image",
        "of a step",
        "images",
        "steps",
        "seeds",
        "micro-batch",
        "memory",
        "largest",
    ),
    *("time", "evaluation", "cost"),
)
EXCHANGE = """\
between machines: bytes that each sends in a step, over {link:.4g} GB/s each way; sums run beside the last backward
pass, the gathers of sharded networks beside all passes, and what the passes do not cover is in the time.
"""
SEEDS = """\
seeds: of `replicates`; images, steps and memory are those of one training, time and cost those of all.
"""
NOTE = """\
GFLOP/image: a forward pass, and a training step with all its passes; a multiply-add counts as 2.
memory: of each machine, at the micro-batch; largest: the largest micro-batch that fits. train.micro_batch changes
memory, not results.
{exchange}\
{seeds}\
{time}
Files of samples are not in the disk space, without which `cmlab repro` does not begin."""
ASSUMED = """\
time: operations over {efficiency:.0%} of the peak matrix rate of their precision. That share is an assumption;
measure a step, and say --efficiency. Reading data, sampling and evaluation are not in it."""
MEASURED = """\
time: of training steps that were measured now, by the processor's own clock, in which other programs do not count;
evaluation: of sampling and measuring, likewise. The total is that of the whole pipeline but for reading the images."""
LARGE = """
~ not measured, as a step is too large, or too many came before: its operations at the rate of the other runs, or
at 40% of that of a matrix product."""


def row(run: RunPlan, here: Here | None = None) -> tuple[str, ...]:
    """A run as cells; the time of one that was not measured among those that were has a mark."""
    mark = "~" if here and run.seconds and run.name not in here.measured else ""
    largest = str(run.most_rows) if run.most_rows else "none"
    return (
        run.name,
        run.method,
        size(run.parameters),
        f"{run.forward / 1e9:.4g}",
        f"{run.operations / 1e9:.4g}",
        size(run.images),
        size(run.steps),
        str(run.seeds) if run.seeds > 1 else "",
        str(run.rows),
        f"{run.bytes / 1e9:.3g} GB" + ("" if run.fits else " !"),
        largest,
        mark + duration(here.seconds[f"train@{run.name}"] if here else run.seconds),
        mark + duration(here.seconds[f"evaluate@{run.name}"]) if here else "",
        "" if run.cost is None else f"{run.cost:,.2f}",
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: names to the left, the rest to the right; empty columns are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    wide = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return [
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, wide, strict=True)))
        for line in lines
    ]


def passes_of(run: RunPlan) -> str:
    """The passes of a training step through the networks and what the machines exchange, in words."""
    said = [f"{times} x {who} {kind}" for (who, kind), times in sorted(run.passes.items())]
    if run.exchanged:
        said.append(
            f"{run.exchanged / 1e9:.3g} GB between machines in {run.exchange:.2g} s, {run.exposed:.2g} s uncovered"
        )
    return ", ".join(said)


def report(project: Project, plans: Sequence[RunPlan], setting: Setting, here: Here | None = None) -> list[str]:
    """The lines to print; `here` is the plan of all stages, where their times were measured."""
    machines = f"{setting.count} x {setting.machine.title}" + (", sharded" if setting.shard else "")
    lines = [f"{project.workload} on {machines}", "", *table([HEADS, *(row(run, here) for run in plans)]), ""]
    seconds = here.total(project) if here else sum(run.seconds for run in plans)
    total = (
        f"total: {duration(seconds)}, {sum(run.operations * run.images * run.seeds for run in plans):.3g} operations"
    )
    if here:
        total += (
            f", {here.jobs} stage{'s' * (here.jobs > 1)} of {here.threads} thread{'s' * (here.threads > 1)} at a time"
        )
    if setting.price is not None:
        total += f", {sum(run.cost or 0.0 for run in plans):,.2f} at {setting.price:g} a machine and hour"
    needed = disk_of(project, {run.name: run.parameters for run in plans})
    disk = f"disk: {size(needed, 'B', ' ')} for checkpoints, weights and snapshots"
    lines += [
        total,
        disk,
        "",
        "a training step:",
        *(f"  {run.name}: {passes_of(run)}" for run in plans if run.passes),
        "",
    ]
    for run in plans:
        if not run.fits:
            way = f"set train.micro_batch to {run.most_rows} or less" if run.most_rows else "not even one image fits"
            spread = "" if setting.shard else "; or compute.shard: true on several machines (--shard)"
            lines.append(f"! {run.name} does not fit: {way}{spread}")
    exchange = EXCHANGE.format(link=setting.link / 1e9) if setting.count > 1 else ""
    seeds = SEEDS if any(run.seeds > 1 for run in plans) else ""
    time = MEASURED if here else ASSUMED.format(efficiency=setting.efficiency)
    if here and not here.measured.issuperset(run.name for run in plans if run.seconds):
        time += LARGE
    return [*lines, NOTE.format(exchange=exchange, seeds=seeds, time=time)]


def lines(
    root: Path,
    workload: str = "",
    *,
    gpu: str = GPU,
    gpus: int = 1,
    price: float | None = None,
    efficiency: float | None = None,
    shard: bool = False,
    bandwidth: float | None = None,
) -> list[str]:
    """The plan of a workload, or of params.yaml where none is named.

    Args:
        root: the project folder.
        workload: a file of workloads/ without its ending.
        gpu: a machine of `cmcore.budget.machines`.
        gpus: how many of them.
        price: of one for an hour.
        efficiency: share of the peak matrix rate that a training step reaches; on this CPU it is measured.
        shard: whether the networks are spread over the machines.
        bandwidth: GB a second, each way, between machines; by default that of the machine's own link.

    Raises:
        ConfigError: an argument or the parameter file is wrong.
    """
    files = workload_files(root)
    require(workload in ("", *files), "WORKLOAD", f"one of {', '.join(files)}", workload)
    require(gpus >= 1, "--gpus", "at least 1", gpus)
    require(price is None or 0 < price < float("inf"), "--price", "a number above 0", price)
    require(efficiency is None or 0 < efficiency <= 1, "--efficiency", "a number above 0 and at most 1", efficiency)
    require(efficiency is None or gpu != CPU, "--efficiency", "a GPU, as on this CPU steps are measured", gpu)
    require(gpus > 1 or not shard, "--shard", "--gpus of at least 2", gpus)
    require(bandwidth is None or 0 < bandwidth < float("inf"), "--bandwidth", "a number above 0", bandwidth)
    try:
        chosen = machine(gpu)
    except ValueError as error:
        raise ConfigError("--gpu", str(error)) from error
    setting = Setting(chosen, gpus, efficiency or EFFICIENCY, price, shard, (bandwidth or 0.0) * 1e9)
    project = load_project(files.get(workload, root / PARAMS))
    folders, here = Folders(root, project.workload), None
    if gpu == CPU:
        threads = read(ComputeConfig, project.sections.compute, "compute").threads
        here = plan_here(project, setting, folders.data, threads, max(1, cores() // threads))
    plans = here.plans if here else plan(project, setting, folders.data)
    return [*report(project, plans, setting, here), *longer(project, folders)]
