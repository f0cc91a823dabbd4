"""All records of a workload -> its tables, figures and page."""

from pathlib import Path

from cmcore.edge.ray_run import execute
from cmcore.report.readers import Inputs
from cmcore.report.tabulate import tabulate
from stages.common import load
from stages.progress import listener


def job(inputs: Inputs, out: Path) -> None:
    """Write tables/, figures/ and index.html."""
    tabulate(inputs, out)


def main() -> None:
    """Write the report of the workload."""
    setup = load()
    folders, sections = setup.folders, setup.project.sections
    metrics = folders.reports / "metrics"
    for file in sorted(metrics.glob("*.json")):
        if file.stem not in setup.project.runs:
            print(f"tabulate: {file.relative_to(folders.root)} is of no run in params.yaml; delete it to be rid of it")
    inputs = Inputs(
        workload=folders.workload,
        metrics=metrics,
        reference=folders.reference / "reference.json",
        runs=folders.runs,
        samples=folders.samples,
        order=tuple(setup.project.runs),
        data=f"{sections.data.source}, {sections.data.resolution}x{sections.data.resolution}",
    )
    with listener("tabulate", "file"):
        execute(setup.compute, job, inputs, folders.reports)
