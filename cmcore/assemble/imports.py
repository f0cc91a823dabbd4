"""A run with `weights`: a public weight file becomes the results of a run that has seen no image here."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmcore import plugins
from cmcore.assemble.adapters import load_adapter
from cmcore.assemble.models import ModelShape, build_denoiser, save_model, start_from
from cmcore.assemble.run import NetChoice, Run, WeightsConfig, resolved
from cmcore.assemble.summary import file_digest, write_summary
from cmcore.assemble.training import FINAL, SNAPSHOTS, WEIGHTS, Inputs, fingerprint, model_of
from cmcore.atomic import write_atomic
from cmcore.bounded import parse_json
from cmcore.config import ConfigError, join, plain, read
from cmcore.data.images import open_data
from cmcore.errors import DataError, reason
from cmcore.nets.diffusers import MODELS
from cmcore.nets.public import diffusers, edm, edm2, latent_diffusion, openai, own
from cmcore.nets.public.base import MappingError, PublicNet
from cmcore.nets.public.foreign import Record, load_foreign, named_tensors
from cmcore.tracking.base import Tracker
from cmcore.train import checkpoint
from cmcore.train.session import HISTORY
from cmcore.train.timing import TIME, TrainingTime

MAPPINGS = (own, diffusers, latent_diffusion, edm2, edm, openai)
PARTS = tuple(known.name for known in MODELS.values())  # folders of a network in a pipeline of diffusers
IN_FOLDERS = tuple(Path(part, "diffusion_pytorch_model.safetensors") for part in PARTS)
INITIAL = ("dropout", "dropout_resolution", "residual_gain", "attention_gain", "fourier_scale")  # no part of weights


class WeightsError(DataError):
    """The file is not the weights of a network that is built here."""


def read_public(path: Path, part: str = "", hints: Mapping[str, Any] | None = None) -> PublicNet:
    """The network in a public weight file; nothing that the file brings along is executed.

    Args:
        path: a pickle of NVlabs, a state dict of OpenAI, a .safetensors file of this project, or one of diffusers
            beside its config.json.
        part: the entry of a pickle that holds the network, by default "ema"; of a file of this project the profile of
            weights, by default the one that its run evaluates; of one of diffusers "unet" or "transformer".
        hints: what the file may not say (see cmcore/nets/public/base.py).

    Returns:
        The network, its tensors not yet compared with ours: see `fitting`.

    Raises:
        DataError: the file cannot be read, or holds no network of a known family.
    """
    part = part or default_part(path)
    if is_diffusers(path):
        named, attributes = _diffusers(path, part)
    else:
        named, attributes = _own(path, part) if _is_own(path) else _contents(load_foreign(path), part, path)
    for mapping in MAPPINGS:
        if mapping.recognise(named, attributes):
            try:
                return mapping.read(named, {**attributes, **(hints or {})})
            except MappingError as error:
                raise WeightsError(f"{path}: {error}") from error
    some = ", ".join(list(named)[:3]) or "none"
    raise WeightsError(f"{path}: no network of a known family; its tensors are called {some}, ...")


def _contents(data: Any, part: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and what the file says of the network."""
    if isinstance(data, Mapping) and not all(isinstance(value, Tensor) for value in data.values()):
        if part not in data:
            raise WeightsError(f"{path}: part: expected one of {', '.join(map(str, data))}, got {part!r}")
        data = data[part]
    attributes: dict[str, Any] = {}
    if isinstance(data, Record) and isinstance(data.state, Mapping):
        said = {key: value for key, value in data.state.items() if isinstance(value, (int, float, str))}
        attributes = {**said, **(data.state.get("_init_kwargs") or {}), "class_name": data.kind}
    return dict(named_tensors(data)), attributes


def is_diffusers(path: Path) -> bool:
    """Whether it is a weight file of diffusers, which has a config.json beside it."""
    return path.suffix == ".safetensors" and (path.parent / "config.json").is_file()


def _diffusers(path: Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and what the files beside say of the network and of its scheduler."""
    if part != default_part(path):
        raise WeightsError(f"{path}: part: expected {default_part(path)}, got {part!r}")
    known = {"": path.parent / "config.json", "scheduler": path.parent.parent / "scheduler" / "scheduler_config.json"}
    try:
        said = {key: parse_json(file.read_bytes(), str(file)) for key, file in known.items() if file.is_file()}
        named = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: expected weights of diffusers, got something else ({reason(error)})") from error
    for key, data in said.items():
        if not isinstance(data, dict):
            raise WeightsError(f"{known[key]}: expected a mapping, got {type(data).__name__}")
    return named, {**said.pop(""), **said}


def default_part(path: Path) -> str:
    """What is read where no part is named.

    NVlabs' averages, the network of diffusers, or the profile that the run of our own file evaluates.
    """
    if is_diffusers(path):
        return path.parent.name if path.parent.name in PARTS else PARTS[0]
    try:
        return str(checkpoint.header(path, early=True).get("eval_ema", "")) if _is_own(path) else "ema"
    except checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from error


def _is_own(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _own(path: Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a profile by name, and the header. Early files have no checksums: `sha256` is there for them."""
    try:
        profiles = checkpoint.header(path, early=True).get("profiles") or []
        if part not in profiles:
            raise WeightsError(f"{path}: part: expected one of {', '.join(profiles) or 'no profile'}, got {part!r}")
        return checkpoint.load(path, f"{part}/", early=True)
    except checkpoint.CheckpointError as error:
        raise WeightsError(str(error)) from error


def net_of(public: PublicNet) -> NetChoice:
    """The network's Config."""
    module = plugins.load("cmcore.nets", public.kind)
    return NetChoice(kind=public.kind, config=read(module.Config, public.options, "net"))


def shape_of(public: PublicNet) -> ModelShape:
    """The shape of its images and labels."""
    return ModelShape(public.channels, public.resolution, public.classes)


def mismatches(public: PublicNet, net: NetChoice) -> list[str]:
    """One line for every tensor that the network has and the file has not, the other way round, or of another shape."""
    with torch.device("meta"):
        module = plugins.load("cmcore.nets", net.kind).build(net.config, **shape_of(public).given)
    wanted, given = module.state_dict(), public.tensors
    return [
        *(f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted if name not in given),
        *(f"unexpected: {name}" for name in [*public.unknown, *(name for name in given if name not in wanted)]),
        *(
            f"shape of {name}: expected {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}"
            for name in wanted
            if name in given and wanted[name].shape != given[name].shape
        ),
        *(f"not finite: {name}" for name, tensor in given.items() if not tensor.isfinite().all()),
    ]


def section(public: PublicNet) -> str:
    """The `net` section of a parameter file for this network, in one line."""
    options = ", ".join(f"{key}: {_yaml(value)}" for key, value in {"kind": public.kind, **public.options}.items())
    return f"{{{options}}}"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def fitting(run: Run, public: PublicNet, data: ModelShape) -> dict[str, Tensor]:
    """The tensors, where the run's parameters describe the network of the file.

    Raises:
        ConfigError: they describe another one; the message says what to write.
        WeightsError: tensors are missing, unexpected or of another shape, with a line for each.
    """
    path = join("runs", run.name)
    theirs, ours = net_of(public), run.net
    if ours.kind != theirs.kind:
        raise ConfigError(join(path, "net"), f"expected the network of the file, net: {section(public)}")
    a, b = plain(theirs.config), plain(ours.config)
    differ = sorted(key for key in a if key not in INITIAL and a[key] != b[key])
    if differ:
        said = ", ".join(f"{key}: {_yaml(a[key])}" for key in differ)
        got = ", ".join(f"{_yaml(b[key])}" for key in differ)
        raise ConfigError(
            join(path, "net"), f"expected {said} from the file, got {got}; to paste: net: {section(public)}"
        )
    # Vectors of a text encoder reach the library's network as they are.
    shape = replace(shape_of(public), text=data.text) if ours.kind == "diffusers" else shape_of(public)
    if shape != data:
        raise ConfigError(path, f"expected data like those of the file, {shape}, got {data}")
    for key, value in {"sigma_data": public.sigma_data, **public.noise}.items():
        if value != (got := getattr(run.diffusion, key)):
            raise ConfigError(f"diffusion.{key}", f"expected {value}, got {got}")
    traits = run.objective.traits
    if traits.few_step and public.boundary is not None and traits.boundary != public.boundary:
        kind = "with" if public.boundary else "without"
        raise ConfigError(join(path, "method"), f"expected a method {kind} the eps-shifted scalings of {public.family}")
    if lines := mismatches(public, ours):
        raise WeightsError(f"{join(path, 'weights.file')}: does not fit {public.family}:", *lines)
    return public.tensors


def import_run(
    run: Run, inputs: Inputs, folder: Path, *, tracker: Tracker, on_progress: Callable[[int, int], None]
) -> Path:
    """Write what `train_run` would, from the run's file, and return the folder of it.

    Args:
        run: a run with `weights`.
        inputs: the prepared data, which say what the network is for.
        folder: the work folder, named by the fingerprint.
        tracker: receives the parameters.
        on_progress: called once, at the end.

    Returns:
        The folder of the results. Their meta data name the file and its checksum.

    Raises:
        ConfigError: the parameters describe another network than the file's.
        DataError: the file is another one than `sha256` says, or holds no such network.
    """
    if run.weights is None:
        raise ValueError(f"runs.{run.name}: expected a run with `weights`, got one that is trained")
    if not (folder / FINAL).exists():
        shape = ModelShape.of(open_data(inputs.data), run.conditional)
        made = _of_file if run.weights.adapter is None else _of_adapter
        tensors, source = made(run, run.weights, inputs, shape)
        mark = fingerprint(run, inputs)
        tracker.params(resolved(run))
        TrainingTime().write(folder / TIME)
        _write(folder, run, shape, tensors, {"images": 0, "fingerprint": mark, "source": source})
    on_progress(run.train.total, run.train.total)
    return folder / FINAL


def _checked(config: WeightsConfig, file: Path) -> str:
    """The checksum of a file, which is the one that is expected."""
    digest = file_digest(file)
    if config.sha256 and digest != config.sha256:
        raise WeightsError(f"{file}: expected sha256 {config.sha256}, got {digest}")
    return digest


Source = tuple[dict[str, Tensor], dict[str, Any]]
"""Weights by name, and where they are from."""


def _of_file(run: Run, config: WeightsConfig, inputs: Inputs, shape: ModelShape) -> Source:
    """The network of a public weight file."""
    del inputs
    file = Path(config.file)
    digest = _checked(config, file)
    head = getattr(run.net.config, "head_channels", None)
    public = read_public(file, config.part, {"resolution": shape.resolution, "head_channels": head})
    part = config.part or default_part(file)
    return fitting(run, public, shape), {"file": file.name, "sha256": digest, "part": part, "family": public.family}


def _of_adapter(run: Run, config: WeightsConfig, inputs: Inputs, shape: ModelShape) -> Source:
    """The weights of `init` with the adapter of `teacher`, or of a file."""
    assert config.adapter is not None
    file = Path(config.file) if config.file else inputs.teacher
    digest = _checked(config, file)
    base = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary, seed=run.train.seed)
    start_from(base.net, model_of(run, "init", inputs.init, shape, "cpu").net.state_dict())
    adapter = load_adapter(file)
    try:
        tensors = adapter.merge_into(base.net.state_dict(), config.adapter)
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from error
    named = file.name if config.file else f"the adapter of {run.teacher}"
    return tensors, {"file": named, "sha256": digest, "part": run.init, "family": f"an adapter times {config.adapter}"}


def _write(folder: Path, run: Run, shape: ModelShape, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """The results of a run that has seen no image: one profile, no history, no snapshots; they appear at once."""
    partial = folder / f".{FINAL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / SNAPSHOTS).mkdir(parents=True)
    save_model(partial / WEIGHTS, {run.train.eval_ema: tensors}, run, shape, meta)
    write_atomic(partial / HISTORY, b"")
    denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
    denoiser.net.load_state_dict(tensors)  # the last word on whether it fits
    summary = {
        "run": run.name,
        "method": run.method,
        "init": run.init,
        "teacher": run.teacher,
        "parameters": sum(parameter.numel() for parameter in denoiser.net.parameters()),
        "seed": run.train.seed,
        "eval_ema": run.train.eval_ema,
        "conditional": run.conditional,
        "threads": torch.get_num_threads(),
        "workers": 1,
        **meta,
    }
    write_summary(partial, summary)
    partial.rename(folder / FINAL)
