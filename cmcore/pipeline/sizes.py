"""Checks of the whole parameter file that no section can make alone: sizes without sense, names, and what lies on disk.

Without them a wrong setting fails late, when a memory is full or a name too long for a file, or never ends.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmcore.assemble.project import Project
from cmcore.assemble.run import Run
from cmcore.config import ConfigError, join, plain
from cmcore.edge.ray_session import ComputeError
from cmcore.edge.settings import ComputeConfig
from cmcore.numbers import size

NAME = 100  # characters of a name that is part of a file's
COUNT = 10**12  # of anything that is counted; also the images of a run
# Largest values of a key, wherever it stands.
MOST: dict[str, float] = {
    "batch": 10**7, "micro_batch": 10**7, "shard": 10**8, "samples": 10**9, "scan_samples": 10**9,
    "snapshot_samples": 10**9, "kept": 10**9, "endpoints": 10**9, "nearest": 10**9, "seed_ranges": 1000,
    "teacher_steps": 10**5, "bootstrap": 10**5, "kid_subsets": 10**6, "snapshots": 10**5, "lr": 1e3, "eps": 1.0,
    "sigma_min": 1e6, "sigma_max": 1e6, "sigma_data": 1e6, "rho": 1e3, "clip_norm": 1e12, "resolution": 2**14,
    "width": 2**14, "features": 2**16, "threads": 4096, "workers": 10**5, "epochs": 10**6,
    "checkpoint_seconds": 1e9, "half_life": 1e15,
}  # fmt: skip
NET = 2**20  # of every number of a network, and of its depth:
DEPTH = {"blocks": 1024, "layers": 1024}
RESERVE = 2**28  # bytes that DVC, Ray and MLflow need on the disk beside the results


def check_sizes(project: Project) -> None:
    """A ConfigError for a number without sense, a name that is too long for a file, or text that cannot be printed."""
    sections = project.sections
    for path, names in (("runs", project.runs), ("tune", sections.tune), ("workload", [sections.workload])):
        for name in names:
            where = path if path == "workload" else join(path, name[:NAME])
            if len(name) > NAME or not name.isascii():
                raise ConfigError(where, f"expected a name of at most {NAME} letters from a to z, digits, '_' and '-'")
    # Seeds and schedules in numbers of images have a sense of their own; runs are checked with what they inherit.
    for path, value in leaves(plain(sections)):
        _check_leaf(path, value)
    for name, run in project.runs.items():
        for path, value in leaves(plain(run.net.config)):
            _check_leaf(join(join("runs", name), join("net", path)), value)


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of all values, and the values."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, join(path, str(key)))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, data


def _check_leaf(path: str, value: Any) -> None:
    key = path.rpartition(".")[2].partition("[")[0]
    if isinstance(value, str) and not value.isprintable():
        raise ConfigError(path, f"expected text that can be printed on one line, got {value!a}")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or key == "seed":
        return
    most = MOST.get(key, COUNT)
    if ".net." in f".{path}":
        most = DEPTH.get(key, min(most, NET))
    if abs(value) > most and (isinstance(value, int) or key in MOST):
        raise ConfigError(path, f"expected at most {most}, got {value!r:.60}")


def check_workers(project: Project, compute: ComputeConfig) -> None:
    """A ConfigError where a batch does not divide among the workers of a run, or a network cannot be sharded."""
    for name, run in project.runs.items():
        group = run.objective.traits.group
        if compute.shard and run.train.cuda_graphs:
            where = join(join("runs", name), "train.cuda_graphs")
            raise ConfigError(where, "expected false where compute.shard is true, got true")
        if compute.shard and run.objective.traits.second_order:
            why = f"the loss of runs.{name} has second derivatives, of parameters that a sharded network has dropped"
            raise ConfigError("compute.shard", f"expected false, as {why}")
        if run.weights is None and run.train.batch % (compute.workers * group):
            of = f" times the method's groups of {group}" if group > 1 else ""
            where = join(join("runs", name), "train.batch")
            raise ConfigError(
                where, f"expected a multiple of compute.workers = {compute.workers}{of}, got {run.train.batch}"
            )


def count_parameters(project: Project) -> dict[str, int]:
    """The numbers of the runs' networks, by run. They are built without memory, one of every kind.

    Raises:
        ConfigError: a network cannot be built for the images.
    """
    import torch

    from cmcore.assemble.models import build_denoiser, declared_shape

    known, counts = dict[str, int](), dict[str, int]()
    shape = declared_shape(project.sections.data, project.sections.conditional, classes=10)
    for name, run in project.runs.items():
        key = repr((run.net, run.diffusion, run.objective.traits.boundary))
        if key not in known:
            try:
                with torch.device("meta"):
                    built = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                got = " ".join(str(error).split())[:300]
                raise ConfigError(join(join("runs", name), "net"), f"does not suit the images: {got}") from error
            known[key] = sum(parameter.numel() for parameter in built.net.parameters())
        counts[name] = known[key]
    return counts


def disk_bytes(run: Run, parameters: int) -> int:
    """Bytes on the disk that a run takes while it is trained, and its results afterwards, about.

    Weights under every average, twice more for the optimiser in the checkpoint; results in the work folder, among the
    outputs and in DVC's cache.
    """
    profiles = 1 + len(run.train.ema)
    kept = len({run.train.eval_ema, *(name for name, ema in run.train.ema.items() if ema.power_std)})
    results = profiles + kept * run.train.snapshots
    return 4 * parameters * (2 * (profiles + 2) + 3 * results + kept * run.train.snapshots)


def disk_of(project: Project, parameters: Mapping[str, int]) -> int:
    """The same of several runs with all their seeds, by the numbers of parameters of their networks."""
    return sum(disk_bytes(project.runs[name], count) * project.replicates(name) for name, count in parameters.items())


def check_disk(project: Project, root: Path, stages: Iterable[str], parameters: Mapping[str, int]) -> None:
    """A ComputeError where the disk has no room for the stages.

    Args:
        project: the parameters.
        root: a folder on the disk.
        stages: those that are about to run.
        parameters: of `count_parameters`.
    """
    names = [stage.partition("@")[2] for stage in stages if stage.startswith("train@")]
    wanted = RESERVE + disk_of(project, {name: parameters[name] for name in names})
    free = shutil.disk_usage(root).free
    if free < wanted:
        raise ComputeError(
            f"{root}: expected {size(wanted, 'B', ' ')} of free disk space for {len(names)} runs to train, "
            f"got {size(free, 'B', ' ')}; free some, or keep fewer train.snapshots"
        )


def check_data(project: Project, manifest: Mapping[str, Any]) -> None:
    """A ConfigError where the parameters do not suit the prepared images.

    Args:
        project: the parameters.
        manifest: of the prepared data.
    """
    sections, count, classes = project.sections, manifest["count"], manifest["classes"]
    images = f"the {count} images of data"
    if sections.conditional == "words" and "words" not in manifest:
        raise ConfigError("conditional", "expected images with captions, got none; set it to false")
    if sections.conditional is True and classes < 2:
        raise ConfigError("conditional", f"expected images with at least 2 classes, got {classes}; set it to false")
    if count < 2:
        raise ConfigError("data", f"expected at least 2 images, got {count}: nothing could be compared")
    if sections.eval.kid_size > min(count, sections.eval.kept):
        got = f"got {sections.eval.kid_size}; set eval.kid_size to {min(count, sections.eval.kept)} or less"
        raise ConfigError("eval.kid_size", f"expected at most {images}, {got}")
    if sections.eval.neighbours >= count:
        raise ConfigError("eval.neighbours", f"expected less than {images}, got {sections.eval.neighbours}")
    held = math.ceil(count * sections.eval.reference.holdout)
    if classes >= 2 and not sections.eval.extractor and count - held < 2:
        raise ConfigError(
            "data", f"expected more than {count} labelled images: {held} are held out (eval.reference.holdout), and 2 "
            "at least train the classifier"
        )  # fmt: skip
