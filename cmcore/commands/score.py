"""`cmlab score`: samples of any generator, measured like the rows of the runs, as a row of the tables."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cmcore.assemble.foreign import ARRAYS, Shape, read_samples, score
from cmcore.assemble.summary import file_digest
from cmcore.commands.place import CommandError
from cmcore.config import ConfigError, require
from cmcore.data.images import open_images
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.features import NetworkExtractor
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.records import MetricRecord, RunFacts, RunMetrics, Source
from cmcore.evaluate.settings import EvalConfig
from cmcore.pipeline.code import MEMORY
from cmcore.pipeline.common import Folders, Setup, load
from cmcore.pipeline.contents import Contents
from cmcore.pipeline.files import write_json
from cmcore.pipeline.progress import Emit, listener, reporter
from cmcore.report.captions import FOREIGN
from cmcore.report.foreign import NOT_STATED, SCORED, SampleSet, check_name, file_of, read_foreign, to_json
from cmcore.train.precision import choose_matrix_units
from stages.reference import load_references

Classes = Literal["", "reference", "uniform"]


def job(
    compute: ComputeConfig, config: EvalConfig, source: Source, folders: Folders, images: Path, emit: Emit
) -> tuple[list[MetricRecord], str, str]:
    """The records of the images, why there is no FID, and which other metrics are missing."""
    device = pick_device(compute)
    choose_matrix_units("fp32")  # features are measurements
    references, why_not = load_references(folders.reference, config, device)
    data = open_images(folders.data)
    training = Training(data.images, data.digest) if data else None
    samples, done, report = np.load(images, mmap_mode="r", allow_pickle=False), 0, reporter(emit)

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        report(done, len(samples))

    records = score(samples, references, source, config, training, device, on_images)
    return records, why_not, "; ".join(sorted({reference.absent for reference in references} - {""}))


def add(root: Path, samples: Path, name: str, *, nfe: int, classes: Classes) -> Iterator[str]:
    """Measure a sample set of the active workload and write its file, which replaces one of that name.

    Args:
        root: the project folder.
        samples: a folder or archive of pictures, or an array.
        name: of the row.
        nfe: function evaluations of an image; 0: it was not said.
        classes: how often each class was drawn, of conditional samples.

    Returns:
        Lines: what was measured.

    Raises:
        ConfigError: the name is wrong.
        DataError: there is no reference, or the samples do not suit it.
    """
    setup = load(root)
    folders, config = setup.folders, setup.project.sections.eval
    _check_name(name, setup)
    folders.require([folders.manifest, folders.reference])
    made = NetworkExtractor.load(folders.reference / "extractor.safetensors").net.shape
    scratch = folders.work / folders.workload / SCORED
    try:
        images = scratch / "images.npy"
        count, measured = read_samples(samples, Shape(made.channels, made.resolution), config, images)
        kind = "array" if samples.suffix.lower() in ARRAYS else "folder" if samples.is_dir() else "archive"
        digest = Contents(folders.root / MEMORY).digest(samples) if samples.is_dir() else file_digest(samples)
        given = SampleSet(name=name, kind=kind, digest=digest, count=count, measured=measured, nfe=nfe, classes=classes)
        source = Source(
            workload=folders.workload, run=name, method=FOREIGN, fingerprint=digest, sampler=NOT_STATED, nfe=nfe,
            ema=NOT_STATED, images=0, seed=config.seed,
        )  # fmt: skip
        with listener(f"score {name}", "img") as listen:
            records, why_not, left_out = execute(
                setup.compute, job, setup.compute, config, source, folders, images, progress=listen
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts = RunFacts(
        workload=folders.workload, run=name, method=FOREIGN, init=NOT_STATED, parameters=0, images=0, ema=NOT_STATED,
        seed=0, conditional=bool(classes), fid_absent=why_not, left_out=left_out, labels=classes,
    )  # fmt: skip
    place = file_of(folders.reports / SCORED, name)
    write_json(place, to_json(given, RunMetrics(facts=facts, records=tuple(records))))
    of = "" if measured == count else f" of {count}, drawn at random"
    yield f"{name}: {measured} images{of}, measured against {folders.workload}"
    yield from (f"  {record.name} {record.value:.4g} ± {record.spread:.2g}" for record in records)
    yield f"{place.relative_to(folders.root)} keeps it; `cmlab score --remove --name '{name}'` takes it away"


def remove(root: Path, name: str) -> Iterator[str]:
    """Remove the row of a sample set from the active workload.

    Raises:
        CommandError: there is none of that name.
    """
    folders = load(root).folders
    there = read_foreign(folders.reports / SCORED, folders.workload)
    names = [one.samples.name for one in there]
    if name not in names:
        raise CommandError(f"--name: expected one of {', '.join(names) or 'none, as nothing was scored'}, got {name!r}")
    file_of(folders.reports / SCORED, name).unlink()
    yield f"{name}: removed"


def _check_name(name: str, setup: Setup) -> None:
    try:
        check_name(name)
    except ConfigError as error:
        raise ConfigError("--name", error.message) from error
    require(name not in setup.project.runs, "--name", "a name that no run of the workload has", name)
