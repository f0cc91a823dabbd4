"""Models from Python: a trained run or a weight file, and samples of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcore import plugins
from cmcore.assemble.choice import check_negative, choose
from cmcore.assemble.evaluation import captions_drawn, classes_drawn
from cmcore.assemble.imports import IN_FOLDERS, default_part, is_diffusers, net_of, read_public, shape_of
from cmcore.assemble.models import LoadedModel, ModelShape, build_denoiser, drawn, load_model, provide_text
from cmcore.assemble.passes import weights_at
from cmcore.assemble.posthoc import reconstruct
from cmcore.assemble.project import Project, load_project
from cmcore.assemble.run import Run, SampleConfig
from cmcore.assemble.training import FINAL, SNAPSHOTS, WEIGHTS
from cmcore.bounded import parse_json
from cmcore.config import PARAMS, ConfigError, plain
from cmcore.data.codec import decoding_of
from cmcore.data.files import save_images
from cmcore.data.images import MANIFEST
from cmcore.diffusion.ode import Denoise
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Text
from cmcore.errors import DataError
from cmcore.evaluate.settings import EvalConfig
from cmcore.layers.text import number
from cmcore.methods.base import Method
from cmcore.sample.base import Sampler
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.settings import Sampling
from cmcore.sample.stream import generate
from cmcore.tensors import to_uint8
from cmcore.train import checkpoint
from cmcore.train.checkpoint import CheckpointError

FOREIGN = (".pkl", ".pt", ".pth")  # endings of public weight files
NUMBERS_AT_ONCE = {"cpu": 2**18, "cuda": 2**21}  # in the images of a batch
MOST_AT_ONCE = 500
Labels = Sequence[int] | Sequence[str]  # classes, or captions


@dataclass(frozen=True)
class TrainedRun:
    """A model with its samplers. Equal seeds give equal images, and image i does not depend on how many are drawn."""

    name: str
    method: Method
    model: LoadedModel
    sampling: Sampling  # settings of its samplers
    samplers: tuple[Sampler, ...]  # of the rows of the tables whose weights are there
    earlier: Mapping[float, LoadedModel] = field(default_factory=dict)  # models of rows of other moments
    to_images: Callable[[Tensor], Tensor] = to_uint8  # of what a sampler gives
    device: str = "cpu"
    class_counts: tuple[int, ...] = ()  # in proportion to which classes are drawn; none: all alike
    captions: Tensor | None = None  # that are drawn from, int64 (N, L), where its network reads captions

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of function evaluations of the rows."""
        return tuple(dict.fromkeys(sampler.nfe for sampler in self.samplers))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what its network makes."""
        return self.model.shape.channels, self.model.shape.resolution, self.model.shape.resolution

    @property
    def batch(self) -> int:
        """Images at once that suit the device: small images by the hundred, large ones a few."""
        numbers = NUMBERS_AT_ONCE.get(torch.device(self.device).type, NUMBERS_AT_ONCE["cpu"])
        return max(1, min(MOST_AT_ONCE, numbers // torch.Size(self.shape).numel()))

    def model_of(self, sampler: Sampler) -> LoadedModel:
        """The model with the weights of a sampler's row."""
        moment = self.method.moment(sampler) if self.earlier else 1.0
        return self.earlier.get(moment, self.model)

    def function(self, sampler: Sampler) -> Denoise:
        """The function that a sampler calls, with the weights of its row."""
        return self.method.model(self.model_of(sampler).denoiser)

    def row(self, nfe: int = 0) -> Sampler:
        """The first row with so many function evaluations, a ValueError where there is none; 0 for the first of all."""
        found = next((one for one in self.samplers if nfe in (0, one.nfe)), None)
        if found is None:
            raise ValueError(f"nfe: expected one of {', '.join(map(str, self.nfes))}, got {nfe}")
        return found

    def sampler(
        self, steps: int = 0, *, levels: Sequence[float] = (), solver: str = "", guidance: float | None = None
    ) -> Sampler:
        """A sampler beside those of the rows; see `choose`."""
        found = choose(
            self.method, self.sampling, steps=steps, levels=levels, solver=solver, guidance=guidance,
            labelled=self.model.shape.labelled,
        )  # fmt: skip
        if self.earlier and found.nfe not in self.nfes:
            raise ValueError(f"steps: expected one of {', '.join(map(str, self.nfes))}, got {steps or found.nfe}")
        return found

    def check_negative(self, sampler: Sampler | None) -> GuidedSampler:
        """The sampler, where it takes a negative prompt; see `check_negative` of assemble/choice.py."""
        return check_negative(self.method, sampler, labelled=self.model.shape.labelled)

    def away_from(self, sampler: Sampler | None, negative: int | str) -> Sampler:
        """A guided sampler that leads away from a class or a caption, in the place of no label.

        Raises:
            ValueError: the sampler takes no negative prompt, or the network does not know it.
        """
        guided, chosen = self.check_negative(sampler), [negative]
        try:
            label = self.labels(1, chosen=chosen)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"negative: {str(error).partition(': ')[2]}") from error
        assert label is not None
        return replace(guided, negative=label[0].to(self.device))

    def labels(self, count: int, *, seed: int = 0, chosen: Labels | None = None) -> Tensor | None:
        """The labels of samples: the chosen ones, else drawn as the evaluation does.

        Classes (count,); rows of words (count, L) or numbers (count, 1) of chosen captions; None for an unconditional
        network.
        """
        classes, words = self.model.shape.classes, self.model.shape.reads
        if chosen is None:
            return self._drawn(range(count), seed)
        if words is not None:
            if len(chosen) != count or not all(isinstance(caption, str) for caption in chosen):
                raise ValueError(f"prompt: expected {count} captions, as the network reads them, got {list(chosen)}")
            if isinstance(words, Text):
                return torch.tensor([[number(words.encoder, str(caption))] for caption in chosen])
            return torch.tensor([words.encode(str(caption)) for caption in chosen])
        if any(isinstance(label, str) for label in chosen):
            what = "class labels" if classes else "none"
            raise ValueError(f"prompt: expected {what}, as the network reads no captions, got {chosen[0]!r}")
        if not classes:
            raise ValueError("labels: expected none, as the network is unconditional")
        if not (len(chosen) == count and all(0 <= int(label) < classes for label in chosen)):
            raise ValueError(f"labels: expected {count} classes from 0 to {classes - 1}, got {list(chosen)}")
        return torch.tensor([int(label) for label in chosen])

    def _drawn(self, rows: Sequence[int], seed: int) -> Tensor | None:
        return drawn(self.model.shape, rows, seed, counts=self.class_counts, captions=self.captions)

    def sample(
        self,
        count: int,
        *,
        nfe: int = 0,
        sampler: Sampler | None = None,
        seed: int = 0,
        labels: Labels | None = None,
        batch: int = 0,
        on_images: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw images, as the evaluation does.

        Args:
            count: how many.
            nfe: which row's sampler, by its number of function evaluations, the first with it; 0 for the first of all.
            sampler: another one instead, from `sampler()`.
            seed: of their noise; with `eval.seed` they are the first images that the evaluation measures.
            labels: a class or a caption for each image, for a conditional network; by default as `labels()` draws them.
            batch: images drawn at once, by default what suits the device.
            on_images: gets the size of every batch that is done.

        Returns:
            uint8 (count, C, H, W) on the CPU; of a run on latents without a codec, the latents in float64.

        Raises:
            ValueError: there is no such sampler, no image is asked for, or the labels do not suit.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        parts = self.batches(
            range(count), sampler=sampler or self.row(nfe), seed=seed, labels=labels, batch=batch, on_images=on_images
        )
        return torch.cat([images.cpu() for images in parts])

    def batches(
        self,
        indices: Sequence[int],
        *,
        sampler: Sampler,
        seed: int = 0,
        labels: Labels | None = None,
        batch: int = 0,
        on_images: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """The images of these numbers as they come, on the device; see `sample`."""
        told = None if labels is None else self.labels(len(indices), chosen=labels)
        for images in generate(
            sampler, self.function(sampler), self.shape, indices, seed=seed, batch=batch or self.batch,
            device=self.device, to_images=self.to_images,
            labels=lambda rows: self._drawn(rows, seed) if told is None else told[[row - indices[0] for row in rows]],
        ):  # fmt: skip
            yield images
            if on_images is not None:
                on_images(len(images))

    def save(self, images: Tensor, path: str | Path) -> None:
        """Write images to NAME.png (a grid), NAME.npz, or a folder; see `save_images`."""
        save_images(images.numpy(), Path(path))


def open_run(
    what: str | Path, root: str | Path = ".", *, profile: str = "", device: str = "cpu", method: str = ""
) -> TrainedRun:
    """Open a trained run or a weight file.

    Args:
        what: an entry of `runs` of the workload in params.yaml; WORKLOAD/RUN for a workload of workloads/; a folder of
            results, or of a run that is still training; or a weight file, also a public one.
        root: the project folder.
        profile: average of the weights, by default the one that is evaluated; a number is the relative width of a
            power-function EMA, which is reconstructed from the snapshots.
        device: torch device, or "auto" for CUDA where there is some.
        method: of a public weight file, which does not say it; by default edm, a diffusion model.

    Raises:
        ConfigError: the parameter file is wrong, or it has no such run.
        DataError: there are no weights.
        CheckpointError: the file holds none, or no such profile.
    """
    root = Path(root)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    project = load_project(root / PARAMS) if (root / PARAMS).is_file() else None
    if project is not None and str(what) in project.runs:
        return _of_run(project, str(what), root, profile, device)
    path = Path(what)
    if path.exists():
        return _of_path(path, project, profile, device, method)
    workload, _, name = str(what).partition("/")
    if name and (file := root / "workloads" / f"{workload}.yaml").is_file():
        there = project if project is not None and project.workload == workload else load_project(file)
        return _of_run(there, name, root, profile, device)
    known = ", ".join(project.runs) if project else "a folder or a file with weights, as this is no project"
    raise ConfigError(f"runs.{what}", f"expected one of {known}")


def _of_run(project: Project, name: str, root: Path, profile: str, device: str) -> TrainedRun:
    run = project.run(name)
    folder = root / "outputs" / project.workload / "runs" / name
    if not (folder / WEIGHTS).exists():
        raise DataError(f"{folder / WEIGHTS} is not there; first run `dvc repro train@{name}`")
    model = _load(folder / WEIGHTS, profile, device)
    method, sampling = run.objective, run.sampling(project.sections.eval.teacher_steps)
    rows, earlier = method.samplers(sampling), dict[float, LoadedModel]()
    for row in rows if not profile else ():
        at, share = weights_at(run, folder, row), method.moment(row)
        if share < 1 and at.exists():
            earlier[share] = load_model(at, device=device)
    there = tuple(row for row in rows if method.moment(row) in (1, *earlier))
    file = root / "outputs" / project.workload / "data" / MANIFEST
    made = torch.clone if project.sections.data.latent else to_uint8
    if project.sections.data.latent and file.exists():
        made = decoding_of(file.parent, device) or made
    counts = (
        classes_drawn(run, project.sections.eval, parse_json(file.read_bytes(), str(file))) if file.exists() else ()
    )
    alike = project.sections.eval.labels == "uniform"
    captions = captions_drawn(run, provide_text(file.parent), alike=alike)
    return TrainedRun(name, method, model, sampling, there, earlier, made, device, counts, captions)


def _of_path(path: Path, project: Project | None, profile: str, device: str, method: str) -> TrainedRun:
    file = _weights_in(path) if path.is_dir() else path
    if file.suffix in FOREIGN or is_diffusers(file) or _is_early(file):
        model, options = _public(file, profile, device, method), None
    else:
        model = _load(file, profile, device)
        run = _known(project, model)
        options = run.method_config if run and method in ("", run.method) else None
    kind = method or model.meta.get("method", "edm")
    module = plugins.load("cmcore.methods", kind)
    objective: Method = module.build(options or module.Config(), model.diffusion)
    steps = project.sections.eval.teacher_steps if project else EvalConfig().teacher_steps
    sampling = Sampling(diffusion=model.diffusion, steps=steps, **vars(SampleConfig()))
    rows = tuple(row for row in objective.samplers(sampling) if objective.moment(row) == 1)
    latent = model.shape.channels not in (1, 3)
    name = model.meta.get("run", file.stem)
    return TrainedRun(name, objective, model, sampling, rows, {}, torch.clone if latent else to_uint8, device)


def _weights_in(folder: Path) -> Path:
    """The final weights in a folder of results or of work, else the latest snapshot."""
    known = (WEIGHTS, f"{FINAL}/{WEIGHTS}", *IN_FOLDERS)
    for file in known:
        if (folder / file).is_file():
            return folder / file
    snapshots = sorted((folder / SNAPSHOTS).glob("*.safetensors"))
    if not snapshots:
        files = ", ".join(map(str, known))
        raise DataError(f"{folder}: expected {files} or {SNAPSHOTS}/*.safetensors, got none")
    return snapshots[-1]


def _load(file: Path, profile: str, device: str) -> LoadedModel:
    try:
        width = float(profile)
    except ValueError:
        return load_model(file, profile, device=device)
    return reconstruct(file.parent, width, device=device)


def _known(project: Project | None, model: LoadedModel) -> Run | None:
    """The run of the parameter file with the name, method and network that a weight file states."""
    run = project.runs.get(model.meta["run"]) if project else None
    same = run is not None and run.method == model.meta["method"]
    return run if run and same and {"kind": run.net.kind, **plain(run.net.config)} == model.meta["net"] else None


def _is_early(file: Path) -> bool:
    """Whether it is a file of this project of before there were checksums."""
    try:
        checkpoint.header(file)
    except CheckpointError:
        try:
            return bool(checkpoint.header(file, early=True))
        except CheckpointError:
            return False
    return False


def _public(file: Path, part: str, device: str, method: str) -> LoadedModel:
    """A public weight file, or an early one of this project, as a model.

    Where the file does not say whether it was trained with eps-shifted scalings, the method does.
    """
    public, part = read_public(file, part), part or default_part(file)
    net = net_of(public)
    meta: dict[str, Any] = {"net": {"kind": net.kind, **plain(net.config)}}
    if is_diffusers(file):  # its scheduler says what it is
        kind = "edm" if public.diffusion else "cd" if public.boundary else "ect"
        meta |= {"run": file.parent.parent.name, "method": kind}
    elif file.suffix not in FOREIGN:
        meta |= checkpoint.header(file, early=True)
    shape: ModelShape = shape_of(public)
    diffusion = DiffusionConfig(**(meta.get("diffusion") or {"sigma_data": public.sigma_data, **public.noise}))
    boundary = public.boundary
    if boundary is None and method:
        module = plugins.load("cmcore.methods", method)
        boundary = module.build(module.Config(), diffusion).traits.boundary
    denoiser = build_denoiser(net, shape, diffusion, boundary=bool(boundary))
    try:
        denoiser.net.load_state_dict(public.tensors)
    except RuntimeError as error:
        raise DataError(f"{file}: does not fit {public.family}; `cmlab import-weights {file}` says where") from error
    return LoadedModel(denoiser.eval().to(device), part, shape, diffusion, meta)
