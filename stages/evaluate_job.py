"""The jobs of an evaluation: each worker samples a share of the images, then one measures them all."""

import json
from dataclasses import dataclass
from pathlib import Path

from cmcore.assemble.evaluation import (
    Evaluation,
    Outcome,
    Share,
    captions_drawn,
    classes_drawn,
    draw,
    evaluate_run,
)
from cmcore.assemble.models import provide_text
from cmcore.assemble.project import Run
from cmcore.config import digest
from cmcore.data.images import open_data, open_images
from cmcore.edge.autoencoder import load_decoding, own_decoding
from cmcore.edge.compile_cache import keep_compiled
from cmcore.edge.ray_each import execute_each
from cmcore.edge.ray_run import execute, pick_device
from cmcore.edge.settings import ComputeConfig
from cmcore.evaluate.nearest import Training
from cmcore.evaluate.records import RunMetrics
from cmcore.evaluate.settings import EvalConfig
from cmcore.pipeline.files import write_json
from cmcore.pipeline.progress import Emit, added, reporter, spoken
from stages.reference import load_references


@dataclass(frozen=True)
class EvaluationFiles:
    """Files and folders of an evaluation."""

    reference: Path  # folder
    results: Path  # folder of the run
    teacher: Path | None  # weight file of the run that it starts from
    work: Path  # for the shards
    final_only: bool = False  # without scans, snapshots, images and times, as of all replicates but the first
    data: Path | None = None  # folder of the training images; None: no sample is compared with them


def job(
    compute: ComputeConfig,
    run: Run,
    workload: str,
    config: EvalConfig,
    files: EvaluationFiles,
    share: Share | None,
    emit: Emit,
) -> Outcome | None:
    """Sample a share of the images; without one, all that are left, and measure them."""
    device = pick_device(compute)
    keep_compiled(compute)
    references, why_not = load_references(files.reference, config, device)
    data, images = (open_data(files.data), open_images(files.data)) if files.data else (None, None)
    own = own_decoding(files.data, device) if files.data else None
    decoding = own or load_decoding(files.reference, config.decoder, device)
    training = Training(images.images, images.digest) if images else None
    whole = Evaluation(
        run, workload, config, references, files.results, files.teacher, files.work, device, decoding, files.final_only,
        training, classes_drawn(run, config, data.manifest) if data else (),
        captions_drawn(run, provide_text(files.data), alike=config.labels == "uniform") if files.data else None,
        data.spelled if data else None,
    )  # fmt: skip
    kept = kept_records(whole, why_not)
    if files.final_only and kept.exists():
        return Outcome(RunMetrics.from_json(json.loads(kept.read_text(encoding="utf-8"))), {}, whole.store)
    with spoken(emit):
        if share is not None:
            return draw(whole, share, reporter(emit))
        outcome = evaluate_run(whole, fid_absent=why_not, on_progress=reporter(emit))
    if files.final_only:
        write_json(kept, outcome.metrics.to_json())
    return outcome


def kept_records(whole: Evaluation, why_not: str) -> Path:
    """Where the records of another replicate stay when its shards go: more seeds later do not measure it again."""
    run, seen = whole.run, [(reference.digest, reference.absent) for reference in whole.references]
    mark = digest([whole.workload, run.method, run.init, run.conditional, seen, why_not])
    return whole.store / f"records-{mark}.json"


def evaluate(
    compute: ComputeConfig, run: Run, workload: str, config: EvalConfig, files: EvaluationFiles, listen: Emit
) -> Outcome:
    """Evaluate the run with all workers. Shards that were finished before a kill are not done again."""
    known = (compute, run, workload, config, files)
    if compute.workers > 1:
        shares = [(*known, Share(worker, compute.workers)) for worker in range(compute.workers)]
        execute_each(compute, job, shares, added(listen, len(shares)))
    return execute(compute, job, *known, None, progress=listen)
