"""All records of a workload -> its tables, figures and page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmcore.assemble.project import Project
from cmcore.budget.plan import Costs, data_shape, operations
from cmcore.config import plain
from cmcore.data.mel import seconds
from cmcore.data.settings import DataConfig
from cmcore.edge.ray_run import execute
from cmcore.pipeline.common import load
from cmcore.pipeline.process import told
from cmcore.pipeline.progress import listener
from cmcore.report.foreign import SCORED
from cmcore.report.readers import Inputs, Operations, read_reference
from cmcore.report.search_sections import sections as search_sections
from cmcore.report.searches import read_searches
from cmcore.report.tabulate import tabulate


def job(inputs: Inputs, entries: Mapping[str, Any], out: Path) -> None:
    """Write tables/, figures/ and index.html. Searches are shown where there are any: no stage waits for one."""
    tabulate(inputs, out, search_sections(read_searches(out / "tune"), entries))


def operations_of(project: Project, data: Path, reference: Path) -> dict[str, Operations]:
    """Operations of the runs; a line names each whose loss cannot be counted."""
    facts, found = read_reference(reference), dict[str, Operations]()
    costs = Costs(data_shape(project, data, classes=facts.data.classes if facts else 0))
    for name, run in project.runs.items():
        try:
            found[name] = operations(run, costs)
        except Exception as error:  # a method of one's own may ask more of its networks than stand-ins answer
            print(f"tabulate: the operations of {name} are not known: {told(error, Path.cwd())}")
    return found


def _data(config: DataConfig) -> str:
    """Source and size of the images, and the size of their latents where networks see those."""
    text = f"{config.source}, {config.resolution}x{config.resolution}"
    return text if config.codec is None else f"{text}, as latents of {'x'.join(map(str, config.seen_shape))}"


def main() -> None:
    """Write the report of the workload."""
    setup = load()
    folders, sections = setup.folders, setup.project.sections
    metrics = folders.reports / "metrics"
    others = sorted(file.name for file in metrics.glob("*.json") if file.stem not in setup.project.runs)
    if others:
        where = metrics.relative_to(folders.root)
        print(f"tabulate: left out, as params.yaml has no such run: {', '.join(others)} in {where}")
    ablations: dict[str, tuple[str, ...]] = {}
    for name, entry in sections.runs.items():
        for group in entry.ablations:
            ablations[group] = (*ablations.get(group, ()), name)
    reference = folders.reference / "reference.json"
    inputs = Inputs(
        workload=folders.workload,
        metrics=metrics,
        reference=reference,
        runs=folders.runs,
        samples=folders.samples,
        times=folders.times,
        sampling=folders.sampling_times,
        scored=folders.reports / SCORED,
        edits=folders.edits,
        order=tuple(setup.project.runs),
        data=_data(sections.data),
        seconds=seconds(sections.data.resolution) if sections.data.source == "speech" else 0.0,
        operations=operations_of(setup.project, folders.data, reference),
        ablations=ablations,
    )
    with listener("tabulate", "file"):
        execute(setup.compute, job, inputs, plain(sections.runs), folders.reports)
