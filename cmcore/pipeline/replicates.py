"""Replicates of a run: the same training from several seeds. One stage computes them all, each as a job of its own."""

from pathlib import Path

from cmcore import plugins
from cmcore.pipeline.common import Setup


def job_name(stage: str, replicate: int) -> str:
    """The job of a replicate: the name of its stage, followed by #1, #2, ... for all but the first."""
    return f"{stage}#{replicate}" if replicate else stage


def jobs_of(setup: Setup, stage: str) -> list[str]:
    """The jobs of a stage."""
    return [job_name(stage, replicate) for replicate in range(setup.project.replicates(stage.partition("@")[2]))]


def split(job: str) -> tuple[str, int]:
    """The stage of a job, and its replicate."""
    stage, _, replicate = job.partition("#")
    return stage, int(replicate or 0)


def produce(setup: Setup, kind: str, name: str) -> list[Path]:
    """Compute all replicates of a stage one by one and write its outputs; the result is as that of its `write`."""
    module = plugins.load("stages", kind)
    return module.write(
        setup, name, [module.compute(setup, name, index) for index in range(setup.project.replicates(name))]
    )
