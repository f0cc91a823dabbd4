"""The parameter file, the files it names, and whether its runs fit into memory."""

import os
import time
from pathlib import Path

from cmcore.assemble.checks import require_files
from cmcore.assemble.project import require_decoder
from cmcore.commands.doctor.finding import FAIL, OK, WARN, Finding
from cmcore.commands.doctor.machine import cores, in_bytes, memory
from cmcore.commands.overrides import left_over, running
from cmcore.commands.place import workload_files
from cmcore.config import ConfigError
from cmcore.edge.autoencoder import check_decoders
from cmcore.edge.text import check_text
from cmcore.pipeline.common import PARAMS, Setup

SECONDS = 4.0  # for the memory of runs: those of large networks take a while to count


def check_parameters(setup: Setup, root: Path) -> Finding:
    """The active workload, and how its file differs from the one of that name in workloads/."""
    project, shipped = setup.project, workload_files(root).get(setup.project.workload)
    text = f"{PARAMS}: {project.workload}, {len(project.runs)} runs, {len(project.sections.tune)} searches"
    if left_over(root):
        return Finding("parameters", WARN, "a `cmlab repro --set` was killed", f"any other command puts {PARAMS} back")
    if running(root):
        return Finding("parameters", OK, f"{text}, with the values of a running `cmlab repro --set`")
    if shipped is None:
        return Finding("parameters", OK, text)
    same = shipped.read_bytes() == (root / PARAMS).read_bytes()
    return Finding("parameters", OK, f"{text}, {'the same as' if same else 'edited since'} workloads/{shipped.name}")


def check_files(setup: Setup, root: Path) -> Finding:
    """The files that the parameters name: data, weights, the decoder of latents."""
    sections = setup.project.sections
    place = root / sections.data.place if sections.data.place else None
    if place and not place.exists() and not sections.data.download and not setup.folders.manifest.exists():
        remedy = "put the data there, or change data.path"
        return Finding("files", FAIL, f"data.path: there is no {sections.data.place}", remedy)
    try:
        require_files(setup.project.runs.values())
        require_decoder(setup.project)
        check_decoders(sections.data, sections.eval.decoder)
        check_text(sections.data)
    except ConfigError as error:
        return Finding("files", FAIL, str(error), f"put the file there, or change {PARAMS}")
    prepared = "data are prepared" if setup.folders.manifest.exists() else "data are not prepared yet"
    return Finding("files", OK, f"all that {PARAMS} names are here; {prepared}")


def check_memory(setup: Setup) -> Finding:
    """The memory of the planned runs, as many at a time as the cores carry, against the memory of the device.

    An estimate, as `cmlab plan` makes it. It stops after some seconds, at the latest after one run.
    """
    import torch

    from cmcore.budget.machines import Machine
    from cmcore.budget.plan import Costs, Setting, data_shape, plan_run

    gpu = setup.compute.device != "cpu" and torch.cuda.is_available()
    room = float(torch.cuda.get_device_properties(0).total_memory) if gpu else memory()
    machine = Machine("gpu" if gpu else "cpu", "", room, 1.0)
    runs, end = list(setup.project.runs.values()), time.monotonic() + SECONDS
    costs, plans = Costs(data_shape(setup.project, setup.folders.data)), []
    for run in runs:
        if plans and time.monotonic() > end:
            break
        plans.append(plan_run(run, costs, Setting(machine)))
    jobs = 1 if gpu or setup.compute.backend == "inline" else max(1, cores() // setup.compute.threads)
    needed = sum(sorted((plan.bytes for plan in plans), reverse=True)[:jobs])
    seen = "" if len(plans) == len(runs) else f" ({len(plans)} of {len(runs)} runs were counted; `cmlab plan` does all)"
    if large := [plan.name for plan in plans if not plan.fits]:
        remedy = "set train.micro_batch, or use a larger machine: `cmlab plan` says how much"
        remote = os.environ.get("RAY_ADDRESS") or setup.compute.address
        state = WARN if remote else FAIL  # a cluster has other machines
        return Finding("memory", state, f"{', '.join(large)} do not fit into {in_bytes(room)}{seen}", remedy)
    text = f"{jobs} at a time take {in_bytes(needed)} of {in_bytes(room)}{seen}"
    if needed > room:
        return Finding("memory", WARN, text, "`cmlab repro -j 1` takes less")
    return Finding("memory", OK, text)
