"""One training run, from a checked configuration to weights, history and summary in a folder of its own."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore.assemble.models import RAW, ModelShape, build_denoiser, load_model, provide_text, save_model, start_from
from cmcore.assemble.run import NONE, RANDOM, Run, resolved
from cmcore.assemble.summary import file_digest, write_summary
from cmcore.closure import source_digest
from cmcore.config import ConfigError, digest
from cmcore.data.augment import augment, flip
from cmcore.data.feed import feed
from cmcore.data.images import Prepared, open_data
from cmcore.data.order import indices
from cmcore.diffusion.precond import Condition, Denoiser
from cmcore.layers.adapter import adapter_of, detach
from cmcore.methods.base import STUDENT, Batch
from cmcore.rng import Draws
from cmcore.tracking.base import Tracker
from cmcore.train.background import Writer, held
from cmcore.train.precision import choose_matrix_units
from cmcore.train.session import HISTORY, run_session
from cmcore.train.shard import whole
from cmcore.train.state import State, new_state
from cmcore.train.workers import ALONE, Worker

FINAL = "final"  # appears, whole, when the run has ended
WEIGHTS, SNAPSHOTS = "weights.safetensors", "snapshots"
Weights = dict[str, dict[str, Tensor]]  # by profile and name
Preview = Callable[[Denoiser, Path], None]


@dataclass(frozen=True)
class Inputs:
    """The files a run reads."""

    data: Path  # folder of the prepared data
    init: Path  # weight file of the run named by `init`
    teacher: Path  # weight file of the run named by `teacher`


def fingerprint(run: Run, inputs: Inputs) -> str:
    """Digest of the configuration, of the source code it runs and of its inputs. Equal fingerprints, equal results."""
    # How the weights are sampled later is no part of them.
    config = {key: value for key, value in resolved(run).items() if key != "sample"}
    roots = ["cmcore.assemble.training", f"cmcore.methods.{run.method}", f"cmcore.nets.{run.net.kind}"]
    files = [inputs.init, inputs.teacher]
    if "lpips" in run.services:
        files.append(Path(config["train"].pop("lpips_weights")))
    if run.weights is not None:
        roots.append("cmcore.assemble.imports")
        if file := config["weights"].pop("file"):
            files.append(Path(file))
    read = [file_digest(file) for file in files]
    return digest([config, source_digest(roots), open_data(inputs.data).digest, *read])


def work_folder(root: Path, workload: str, run: str, mark: str) -> Path:
    """Where a run of that name and fingerprint keeps its checkpoints.

    It is outside DVC's outputs, since DVC deletes those before a stage.
    """
    return root / workload / f"{run}-{mark}"


def train_run(
    run: Run,
    inputs: Inputs,
    folder: Path,
    *,
    tracker: Tracker,
    on_progress: Callable[[int, int], None],
    preview: Preview | None = None,
    watch: Callable[[State], None] | None = None,
    device: str = "cpu",
    worker: Worker = ALONE,
) -> Path:
    """Train, or continue, the run and return the folder of its results; a finished run returns at once.

    The results are weights.safetensors (raw weights and every EMA profile), history.jsonl, summary.json and
    snapshots/<images>.safetensors. They hold no times, so equal runs give equal bytes.

    Args:
        run: the resolved run.
        inputs: its data and initial weights.
        folder: the work folder, named by the fingerprint.
        tracker: receives parameters, metrics and artifacts.
        on_progress: called with (images seen, total).
        preview: draws samples of a denoiser into a PNG file, at every snapshot.
        watch: sees the state at every snapshot.
        device: torch device.
        worker: one of the workers that train the run together. Only the lead writes, so only when it has returned are
            the results there.

    Returns:
        The folder of the results, inside the work folder.
    """
    if (folder / FINAL).exists():
        on_progress(run.train.total, run.train.total)
        return folder / FINAL
    mark = fingerprint(run, inputs)
    data, method = open_data(inputs.data), run.objective
    shape = ModelShape.of(data, run.conditional)
    provide_text(inputs.data)
    choose_matrix_units(run.train.precision, run.train.jvp_precision)
    student, init, teacher = _networks(run, inputs, shape, device)
    state = new_state(method, student, run.train, init=init, teacher=teacher, worker=worker)
    folder.mkdir(parents=True, exist_ok=True)

    def on_snapshot(state: State) -> None:
        profile = run.train.eval_ema
        path = folder / SNAPSHOTS / f"{state.images:09d}.safetensors"
        # Beside the evaluated weights, what post-hoc EMA is made of.
        stds = {name: ema.power_std for name, ema in run.train.ema.items() if ema.power_std}
        kept = {name: whole(state.weights(name), worker.lead) for name in sorted({profile, *stds})}
        if not worker.lead:
            return
        meta = {"images": state.images, "fingerprint": mark, "power_stds": stds}
        _write_model(writer, path, kept, run, shape, meta)
        if preview is not None:
            grid = path.with_suffix(".png")
            preview(_model(kept[profile], run, shape, device) if worker.shard else averaged(state, profile), grid)
            tracker.artifact(grid, "samples")
        if watch is not None:
            watch(state)

    if worker.lead:
        tracker.params(resolved(run))
    with Writer() as writer:
        run_session(
            state,
            method,
            image_batches(data, run, device),
            run.train,
            folder=folder,
            fingerprint=mark,
            tracker=tracker,
            on_progress=on_progress,
            on_snapshot=on_snapshot,
            writer=writer,
            worker=worker,
        )
    profiles = {name: whole(state.weights(name), worker.lead) for name in (RAW, *run.train.ema)}
    return _finish(state, profiles, run, shape, folder, mark, worker.world) if worker.lead else folder / FINAL


def _write_model(
    writer: Writer, path: Path, profiles: Weights, run: Run, shape: ModelShape, meta: dict[str, Any]
) -> None:
    """Write the present weights of some profiles, beside the training."""
    writer.wait()  # before the copy: memory holds one
    copy = held({f"{p}/{name}": tensor for p, named in profiles.items() for name, tensor in named.items()})

    def write() -> None:
        copy.ready()
        kept = {
            profile: {name: copy.tensors[f"{profile}/{name}"] for name in profiles[profile]} for profile in profiles
        }
        save_model(path, kept, run, shape, meta)

    writer.start(write)


def _networks(
    run: Run, inputs: Inputs, shape: ModelShape, device: str
) -> tuple[Denoiser, Denoiser | None, Denoiser | None]:
    """The student, with the averaged weights of `init` where there is one; the models of `init` and of `teacher`."""
    boundary = run.objective.traits.boundary
    student = build_denoiser(run.net, shape, run.diffusion, boundary=boundary, seed=run.train.seed).to(device)
    init = None if run.init == RANDOM else model_of(run, "init", inputs.init, shape, device)
    if init is not None:
        start_from(student.net, init.net.state_dict())
    if run.teacher == NONE:
        return student, init, None
    return student, init, model_of(run, "teacher", inputs.teacher, shape, device)


def model_of(run: Run, key: str, weights: Path, shape: ModelShape, device: str) -> Denoiser:
    """The model of another run; a ConfigError where it is of other images."""
    source = load_model(weights, device=device)
    if (source.shape, source.diffusion.sigma_data) != (shape, run.diffusion.sigma_data):
        raise ConfigError(
            f"runs.{run.name}.{key}",
            f"expected weights for {shape} and sigma_data {run.diffusion.sigma_data}, "
            f"got {source.shape} and {source.diffusion.sigma_data} from {weights}",
        )
    return source.denoiser


def image_batches(data: Prepared, run: Run, device: str) -> Callable[[Draws], Batch]:
    """Training images by address: the same images for the same number of images seen, whoever asks."""

    stored = feed(data.seen(run.conditional), device)

    def batches(draws: Draws) -> Batch:
        images, labels = stored(indices(len(data), draws.images, draws.batch, run.train.seed)[draws.rows])
        x = data.normalised(images, draws)
        seen = labels if run.conditional else None
        if run.train.augment:
            x, distortion = augment(x, draws, run.train.augment)
            return Batch(x, Condition(seen, distortion))
        return Batch(flip(x, draws) if run.train.flip else x, seen)

    return batches


def averaged(state: State, profile: str) -> Denoiser:
    """A copy of the student with the weights of an EMA profile, in eval mode."""
    denoiser = copy.deepcopy(state.nets.student)
    detach(denoiser.net)
    denoiser.net.load_state_dict(state.weights(profile))
    return denoiser.eval()


def _model(weights: dict[str, Tensor], run: Run, shape: ModelShape, device: str) -> Denoiser:
    """The student with these weights, in eval mode."""
    denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
    denoiser.net.load_state_dict(weights)
    return denoiser.eval().to(device)


def _finish(
    state: State, profiles: dict[str, dict[str, Tensor]], run: Run, shape: ModelShape, folder: Path, mark: str,
    workers: int,
) -> Path:  # fmt: skip
    """Collect the results beside the checkpoint and let them appear at once."""
    partial = folder / f".{FINAL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    adapter = adapter_of(state.weights(run.train.eval_ema, apart=True))
    meta = {"images": state.images, "fingerprint": mark}
    save_model(partial / WEIGHTS, profiles, run, shape, meta, adapter)
    (partial / SNAPSHOTS).mkdir()
    for path in sorted((folder / SNAPSHOTS).glob("*.safetensors")):
        shutil.copy(path, partial / SNAPSHOTS / path.name)
    shutil.copy(folder / HISTORY, partial / HISTORY)
    summary = {
        "run": run.name,
        "method": run.method,
        "init": run.init,
        "teacher": run.teacher,
        "images": state.images,
        "parameters": sum(parameter.numel() for parameter in state.parameters),
        "seed": run.train.seed,
        "eval_ema": run.train.eval_ema,
        "conditional": run.conditional,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "fingerprint": mark,
    }
    if adapter:
        summary["adapter_parameters"] = sum(tensor.numel() for tensor in adapter.values())
    if (scale := state.players[STUDENT].scale) is not None:
        summary["skipped_steps"] = int(scale.skipped)
    write_summary(partial, summary)
    partial.rename(folder / FINAL)
    return folder / FINAL
