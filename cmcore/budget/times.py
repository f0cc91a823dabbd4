"""Times of all stages of a workload on this machine, from what is measured of the steps of its networks."""

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cmcore.assemble.gallery import edit_passes
from cmcore.assemble.project import Project
from cmcore.assemble.run import NONE, RANDOM, Run
from cmcore.budget.machines import this_cpu
from cmcore.budget.measure import feature_seconds, forward_seconds, sample_data, training_seconds
from cmcore.budget.need import CLASSES, EFFICIENCY, halves
from cmcore.budget.passes import passes
from cmcore.budget.plan import Costs, RunPlan, Setting, data_shape, plan_run, step_flops
from cmcore.budget.schedule import makespan
from cmcore.data.images import MANIFEST, Prepared, open_data
from cmcore.layers.fitting import threads

STARTING = 45.0  # seconds of Ray, DVC, MLflow, tables and figures
STAGE = 6.0  # seconds of a stage beside its work
ROW = 2.0  # seconds of the distances of a row, its bootstrap among them
PROBE = 2e10  # operations of a step that is measured, half a second of a core, but
FEW_ROWS = 4  # not less than these
LARGE = 1e11  # operations of a step that is not measured any more, some seconds of a core
ALLOWED = 15.0  # seconds of the processor after which no more runs of a workload are measured
EACH = 0.1  # seconds that are measured of each of them
SOME = 256  # images that stand for a data set


@dataclass(frozen=True)
class Times:
    """What was measured, in seconds by image."""

    training: Mapping[str, float]  # by run
    forward: Mapping[str, float]  # by run: an evaluation of its network
    feature: float
    classifier: float


def probe_rows(run: Run, most: int, costs: Costs) -> int:
    """Rows of a batch that is measured: of a large network a few, as on a CPU time is in proportion to them."""
    few = max(FEW_ROWS, int(PROBE / max(operations(run, costs), 1)))
    every = halves(most, run.objective.traits.group)
    return next((rows for rows in every if rows <= few), every[-1])


def operations(run: Run, costs: Costs) -> float:
    """Of a training step, by image."""
    return float(sum(step_flops(run, passes(run), costs).values()))


def stage_seconds(project: Project, times: Times, count: int) -> dict[str, float]:
    """Seconds of every stage but `prepare` and `tabulate`, with all replicates, for so many training images."""
    config, data = project.sections.eval, project.sections.data
    found = {"reference": STAGE + times.classifier * config.reference.images + 4 * ROW + times.feature * count}
    edits = 0.0
    for name, run in project.runs.items():
        seeds = project.replicates(name)
        found[f"train@{name}"] = STAGE + seeds * times.training[name] * (0 if run.weights else run.train.total)
        found[f"evaluate@{name}"] = STAGE + seeds * evaluation_seconds(run, project, times)
        edits += times.forward[name] * edit_passes(run, data.channels, data.resolution)
    if not data.latent:
        found["edit"] = STAGE + edits
    return found


def evaluation_seconds(run: Run, project: Project, times: Times) -> float:
    """Seconds of sampling and measuring a run, as `cmcore.assemble.passes` lists them."""
    config = project.sections.eval
    sampling = run.sampling(config.teacher_steps)
    rows, few_step = run.objective.samplers(sampling), run.objective.traits.few_step
    scans = run.objective.scan(sampling, config.scan)
    images = len(rows) * config.samples
    evaluations = sum(row.nfe for row in rows) * config.samples
    images += len(scans) * config.scan_samples + run.train.snapshots * config.snapshot_samples
    evaluations += sum(scan.nfe for scan in scans) * config.scan_samples
    evaluations += run.train.snapshots * config.snapshot_samples * rows[0].nfe
    if few_step and (run.init != RANDOM or run.teacher != NONE):
        evaluations += config.endpoints * (rows[0].nfe + 2 * config.teacher_steps - 1)
    measured = ROW * (len(rows) + 0.3 * (len(scans) + run.train.snapshots))
    return evaluations * times.forward[run.name] + images * times.feature + measured


def needs(project: Project) -> dict[str, Iterable[str]]:
    """The stages that a stage waits for."""
    found: dict[str, Iterable[str]] = {}
    for name, run in project.runs.items():
        found[f"train@{name}"] = [f"train@{parent}" for parent in run.parents]
        found[f"evaluate@{name}"] = [f"train@{name}", "reference", *(f"train@{parent}" for parent in run.parents)]
    return found | {"edit": [f"train@{name}" for name in project.runs]}


def total_seconds(project: Project, seconds: Mapping[str, float], jobs: int) -> float:
    """Seconds of the pipeline from start to end, up to `jobs` stages at a time, without reading the images."""
    return STARTING + makespan(seconds, needs(project), jobs)


def stand_in(project: Project, folder: Path) -> Prepared | None:
    """The prepared data, or noise of the same shape; None where only prepared data tell the shape.

    Args:
        project: the parameters.
        folder: of the prepared data, which may be absent.
    """
    if (folder / MANIFEST).is_file():
        return open_data(folder)
    sections = project.sections
    if sections.data.latent or sections.conditional == "words":
        return None
    shape = sections.data.channels, sections.data.resolution, sections.data.resolution
    images = np.random.default_rng(0).integers(0, 256, (SOME, *shape), dtype=np.uint8)
    return sample_data(images, sections.data.classes or CLASSES)


def measured(project: Project, data: Prepared | None, costs: Costs, cores: int) -> tuple[Times, set[str]]:
    """Measure steps of the runs of a workload on this CPU; also the runs that were measured.

    Of a step of many operations, of one with a network that is not trained here, as LPIPS has, or when ALLOWED is used
    up, the time is that of its operations at the rate of the runs before; where there is none, at a share of the rate
    of a matrix product.

    Args:
        project: the parameters.
        data: images to measure with; None: nothing is measured.
        costs: operations of the networks.
        cores: threads of a stage.
    """
    nominal = functools.cache(lambda: EFFICIENCY * this_cpu().fp32)
    training, forward, known = dict[str, float](), dict[str, float](), dict[str, float]()
    spent, done, found, config = 0.0, 0.0, set[str](), project.sections.eval
    start = time.process_time()

    def rate() -> float:
        return done / spent if spent else nominal()

    with threads(cores):
        for name, run in project.runs.items():
            each, rows = operations(run, costs), probe_rows(run, run.train.batch, costs)
            one = float(sum(costs.of(run, "forward").flops.values()))
            small, net = rows * each <= LARGE and not run.services, repr((run.net, run.diffusion))
            if data is not None and small and each and time.process_time() - start < ALLOWED:
                training[name] = training_seconds(run, data, rows, seconds=EACH)
                spent, done = spent + training[name], done + each
                found.add(name)
                if net not in known:
                    known[net] = forward_seconds(run, data, probe_rows(run, config.batch, costs), seconds=EACH)
            training.setdefault(name, each / rate())
            forward[name] = known.get(net, one / rate())
    trained = feature = 0.0
    if data is not None and not project.sections.data.latent and not config.extractor:
        with threads(1):
            few = sample_data(np.asarray(data.images[:SOME]), data.classes)
            trained, feature = feature_seconds(few, config.reference)
    return Times(training, forward, feature, trained), found


@dataclass(frozen=True)
class Here:
    """The plan of a workload on this CPU."""

    plans: list[RunPlan]
    seconds: Mapping[str, float]  # of every stage, as `stage_seconds`
    measured: set[str]  # runs whose steps were
    threads: int  # of a stage
    jobs: int  # stages at a time

    def total(self, project: Project) -> float:
        """Seconds of the pipeline, without reading the images."""
        return total_seconds(project, self.seconds, self.jobs)


def plan_here(project: Project, setting: Setting, folder: Path, threads: int, jobs: int) -> Here:
    """Plan the runs with the rates that their own steps reach.

    Args:
        project: the parameters.
        setting: processors like this one, and how many.
        folder: of the prepared data, which may be absent.
        threads: of a stage.
        jobs: stages at a time.
    """
    costs, data = Costs(data_shape(project, folder, classes=CLASSES)), stand_in(project, folder)
    times, found = measured(project, data, costs, threads)
    plans: list[RunPlan] = []
    for name, run in project.runs.items():
        rate = operations(run, costs) / times.training[name] if times.training[name] else setting.machine.fp32
        own = replace(setting, machine=replace(setting.machine, fp32=rate), efficiency=1.0)
        plans.append(plan_run(run, costs, own, project.replicates(name)))
    seconds = stage_seconds(project, times, len(data) if data else 0)
    trained = {f"train@{plan.name}": STAGE + plan.seconds for plan in plans}
    return Here(plans, seconds | trained, found, threads, jobs)
