"""Memory and time that the stages of a workload need on a device, counted once for each network and remembered."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cmcore.assemble.gallery import COUNT, edit_passes
from cmcore.assemble.project import Project
from cmcore.assemble.run import Run
from cmcore.atomic import write_atomic
from cmcore.budget.machines import Machine
from cmcore.budget.plan import FLOAT, Costs, Setting, data_shape, plan_run
from cmcore.closure import source_digest
from cmcore.config import digest

PROCESS = 0.4e9  # bytes of a process with torch and Ray, before any network
CLASSES = 10  # where neither parameters nor data say how many; the number is of no weight
EFFICIENCY = 0.4  # share of the nominal rate that a training step reaches


@dataclass(frozen=True)
class Need:
    """What a stage takes of the device, in bytes by the number of rows that are computed at once, and in seconds.

    The rows are the whole batch, half of it, and so on. Seconds are those of one replicate.
    """

    memory: Mapping[int, float]
    seconds: float

    @property
    def most(self) -> float:
        """Bytes with the whole batch at once."""
        return self.memory[max(self.memory)]

    def at_most(self, rows: int) -> "Need":
        """Under a limit of the rows at once."""
        within = {n: needed for n, needed in self.memory.items() if n <= rows}
        least = min(self.memory)
        return replace(self, memory=within or {least: self.memory[least]})

    def most_rows(self, room: float) -> int:
        """The largest number of rows at once for which the bytes suffice, 0 for none."""
        return max((rows for rows, needed in self.memory.items() if needed <= room), default=0)


def halves(rows: int, group: int = 1) -> list[int]:
    """`rows`, half of them, and so on to one group: whole groups."""
    found = [rows]
    while (half := found[-1] // 2 // group * group) >= group:
        found.append(half)
    return found


def fewer_rows(run: Run, rows: int, workers: int = 1) -> int:
    """Half of the rows that a worker computes at once under a limit, 0 for none; 0 where it is one group already."""
    group, share = run.objective.traits.group, -(-run.train.batch // workers)
    now = min(share, *(limit for limit in (run.train.micro_batch, rows) if limit), share)
    return next(iter(halves(now, group)[1:]), 0)


def rows_matter(run: Run) -> str:
    """Why the number of rows computed at once decides more than rounding; empty where it does not."""
    return "dropout draws a mask for each micro-batch" if getattr(run.net.config, "dropout", 0.0) else ""


def training_need(run: Run, costs: Costs, setting: Setting) -> Need:
    """Of a training run, on each of the machines that share its batch; of one that reads its weights, to hold them."""
    if run.weights:
        return Need({1: 2 * FLOAT * costs.parameters(run) + PROCESS}, 0.0)
    share = -(-run.train.batch // setting.count)
    rows = halves(min(run.train.micro_batch or share, share), run.objective.traits.group)
    plans = {n: plan_run(replace(run, train=replace(run.train, micro_batch=n)), costs, setting) for n in rows}
    return Need({n: plan.bytes + PROCESS for n, plan in plans.items()}, plans[rows[0]].seconds)


def evaluation_need(run: Run, project: Project, costs: Costs, setting: Setting) -> Need:
    """Of the samples of its tables, scans and snapshots; measuring them is not counted."""
    config, forward = project.sections.eval, costs.of(run, "forward")
    pixels = costs.shape.channels * costs.shape.resolution**2
    fixed = 2 * FLOAT * costs.parameters(run) + config.shard * pixels + PROCESS
    memory = {rows: fixed + forward.bytes(rows) for rows in halves(config.batch)}
    steps = 3 if run.objective.traits.few_step else 2 * config.teacher_steps - 1  # one and two evaluations
    several = config.samples * config.seed_ranges * (steps + len(run.sample.solvers) * sum(run.sample.nfe))
    scans = 2 * len(config.scan) * config.scan_samples if run.objective.traits.few_step else 0
    images = several + scans + run.train.snapshots * config.snapshot_samples * (steps if steps != 3 else 1)
    rate = setting.machine.fp32 * setting.efficiency * setting.count
    return Need(memory, images * sum(forward.flops.values()) / rate)


def edit_need(project: Project, costs: Costs, setting: Setting) -> Need:
    """Of known images restored by the runs one after the other, all of whose weights are in memory."""
    held, most, operations = PROCESS, 0.0, 0.0
    for run in project.runs.values():
        forward = costs.of(run, "forward")
        held, most = held + FLOAT * costs.parameters(run), max(most, forward.bytes(COUNT))
        operations += edit_passes(run, costs.shape.channels, costs.shape.resolution) * sum(forward.flops.values())
    return Need({COUNT: held + most}, operations / (setting.machine.fp32 * setting.efficiency))


def needs(
    project: Project, stages: Iterable[str], machine: Machine, data: Path, memory: Path, workers: int = 1,
    shard: bool = False,
) -> dict[str, Need]:  # fmt: skip
    """What the stages that train, evaluate or edit need.

    Args:
        project: the checked parameters.
        stages: as in `train@ect`; others are left out.
        machine: each of the devices.
        data: the folder of prepared data, which may be absent.
        memory: a file that remembers what was counted, as large networks take seconds.
        workers: of each stage.
        shard: whether the networks are spread over them.
    """
    kinds = ("train", "evaluate", *(() if project.sections.data.latent else ("edit",)))  # which leaves latents out
    wanted = [stage for stage in stages if stage.partition("@")[0] in kinds]
    if not wanted:
        return {}
    setting = Setting(machine, workers, EFFICIENCY, shard=shard)
    shape = data_shape(project, data, classes=CLASSES)
    costs = Costs(shape)
    plugins = {f"cmcore.methods.{run.method}" for run in project.runs.values()} | {
        f"cmcore.nets.{run.net.kind}" for run in project.runs.values()
    }
    common = [source_digest([__name__, *sorted(plugins)]), asdict(shape), asdict(setting)]
    known, found = _read(memory), dict[str, Need]()
    for stage in wanted:
        kind, _, name = stage.partition("@")
        runs = [replace(run, name="") for run in ([project.runs[name]] if name else project.runs.values())]
        key = digest([*common, kind, *runs, project.sections.eval if kind == "evaluate" else []])
        if key not in known:
            if kind == "train":
                known[key] = training_need(runs[0], costs, setting)
            elif kind == "evaluate":
                known[key] = evaluation_need(runs[0], project, costs, setting)
            else:
                known[key] = edit_need(project, costs, setting)
        found[stage] = known[key]
    text = json.dumps({key: asdict(need) for key, need in known.items()}, sort_keys=True)
    if not memory.is_file() or memory.read_text(encoding="utf-8") != text:
        write_atomic(memory, text.encode())
    return found


def _read(path: Path) -> dict[str, Need]:
    """What is remembered; a damaged file is forgotten."""
    try:
        return {
            str(key): Need({int(rows): float(size) for rows, size in need["memory"].items()}, float(need["seconds"]))
            for key, need in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
