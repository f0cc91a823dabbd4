"""A model for use without this project: a program of torch.export, a graph of ONNX, a pipeline of diffusers."""

import importlib.util
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmcore import plugins
from cmcore.assemble.models import some_labels
from cmcore.assemble.results import TrainedRun
from cmcore.atomic import write_atomic
from cmcore.config import read
from cmcore.nets import adm
from cmcore.nets.public import diffusers
from cmcore.nets.public.base import MappingError
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep

PROGRAM, WEIGHTS, PIPELINE = "program.pt2", "weights.safetensors", "pipeline.py"
UNET = Path("unet", "diffusion_pytorch_model.safetensors")
GRID = 100_001  # points of the Karras grid of an exported scheduler: levels are met to 1e-4 of themselves
LARGEST = 2**16  # batch


class Function(nn.Module):
    """(x (B, C, H, W), sigma (B,), labels (B,)) -> images, in the dtype of x: D or f, whichever the method has."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.denoiser = run.model.denoiser
        self._function = run.method.model(self.denoiser)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._function(x, sigma, labels)


class Map(nn.Module):
    """(noise (B, n, C, H, W), labels (B,)) -> images (B, C, H, W): all steps of a sampler. In and out are float32.

    Args:
        run: the model.
        sampler: of it.

    Attributes:
        n: how often the sampler draws noise.
    """

    def __init__(self, run: TrainedRun, sampler: Sampler) -> None:
        super().__init__()
        self.sampler, self.shape = sampler, run.shape
        self.function = run.function(sampler)
        self.denoiser = run.model_of(sampler).denoiser  # registered, so that its tensors are parameters
        counted = Noises(torch.zeros(1, 1, *run.shape, device=run.device))
        with torch.no_grad():
            sampler(self.function, run.shape, counted, some_labels(run.model.shape, 1))  # pyright: ignore[reportArgumentType]
        self.n = counted.drawn

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        def function(x: Tensor, sigma: Tensor, labels: Any = None) -> Tensor:
            return self.function(x.float(), sigma.float(), labels)

        source: Any = Noises(noise)
        return self.sampler(function, self.shape, source, labels).float()


class Noises:
    """Noise (B, n, C, H, W) that a sampler draws in turn, from the start again when there is no more."""

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.drawn = noise, 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next of it, (B, *shape)."""
        found = self.noise[:, self.drawn % self.noise.shape[1]]
        self.drawn += 1
        return found.reshape(-1, *shape)


def export_program(run: TrainedRun, path: Path, *, nfe: int = 0) -> None:
    """Write a model as a program of torch.export, for any batch size up to 65,536.

    Args:
        run: the model.
        path: of the program.
        nfe: 0 for D or f, `Function`, with float64 inputs; else the row whose sampler becomes one `Map`.

    Raises:
        ValueError: there is no such row.
    """
    program, _ = _program(run, nfe, torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def export_onnx(run: TrainedRun, path: Path, *, nfe: int = 0) -> None:
    """Write a model as a graph of ONNX in float32, for any batch size up to 65,536.

    Its inputs are `x`, `sigma` and where there are classes `labels`, or for a row `noise` and `labels`; its output is
    `images`. The levels of a function's rows and the noise range are in its metadata.

    Args:
        run: the model.
        path: of the graph.
        nfe: 0 for D or f, `Function`; else the row whose sampler becomes one `Map`.

    Raises:
        ValueError: there is no such row, or the packages of the extra "onnx" are not installed.
    """
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"expected the packages of the extra onnx, got no {absent[0]}: pip install -e '.[onnx]'")
    program, names = _program(run, nfe, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        graph: Any = torch.onnx.export(
            program, (), input_names=names, output_names=["images"], dynamo=True, verbose=False
        )
    d = run.model.diffusion
    rows = {f"levels_{one.nfe}": ",".join(map(repr, one.noise_levels)) for one in run.samplers if one.noise_levels}
    said = {"sigma_min": d.sigma_min, "sigma_max": d.sigma_max, "sigma_data": d.sigma_data, **({} if nfe else rows)}
    meta = {"run": run.name, "fingerprint": run.model.meta.get("fingerprint", ""), **said}
    for node in graph.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of source with paths of this machine
    graph.model.metadata_props.update({key: str(value) for key, value in meta.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.save(path)


def _program(run: TrainedRun, nfe: int, dtype: torch.dtype) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The function or a row's map, and the names of its inputs."""
    count, device = 2, run.device
    if nfe:
        module: nn.Module = (made := Map(run, run.row(nfe)))
        inputs = {"noise": torch.randn(count, made.n, *run.shape, device=device)}
    else:
        module = Function(run)
        x = torch.randn(count, *run.shape, dtype=dtype, device=device)
        inputs = {"x": x, "sigma": torch.full((count,), 1.0, dtype=dtype, device=device)}
    labels = some_labels(run.model.shape, count, device)
    if labels is not None:
        inputs["labels"] = labels
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs),
            strict=True,  # len(x) stays the size of the batch; the other tracer makes a constant of it
        )  # fmt: skip
    return program, list(inputs)


def export_pipeline(
    run: TrainedRun, folder: Path, pipeline: Path, *, nfe: int = 0, records: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Write a folder that diffusers opens.

    It holds a ConsistencyModelPipeline of diffusers where UNet2DModel can hold the network, else a program, weights and
    a pipeline of its own; and a model card.

    Args:
        run: a few-step model whose sampler has noise levels.
        folder: of the result.
        pipeline: the source file of the pipeline.
        nfe: the row whose levels the pipeline has by default; 0 for the first.
        records: of the evaluation, for the card.

    Returns:
        Why it is no ConsistencyModelPipeline; nothing where it is one.

    Raises:
        ValueError: there are no such levels.
    """
    sampler = run.row(nfe)
    if not sampler.noise_levels:
        raise ValueError(f"{run.name}: expected a few-step model whose steps begin at noise levels")
    try:
        config, tensors = _unet(run, sampler)
    except MappingError as error:
        _own_pipeline(run, folder, pipeline, sampler)
        write_atomic(folder / "README.md", card(run, records, why=str(error)).encode())
        return str(error)
    scheduler = _scheduler(run, sampler)
    (folder / UNET).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / UNET, metadata={"format": "pt"})
    index = {
        "_class_name": "ConsistencyModelPipeline",
        "scheduler": ["diffusers", diffusers.SCHEDULER],
        "unet": ["diffusers", diffusers.CLASS],
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "unet" / "config.json", config)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_atomic(folder / "README.md", card(run, records, timesteps=timesteps(run, sampler)).encode())
    return ""


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def _unet(run: TrainedRun, sampler: Sampler) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The network as UNet2DModel; a MappingError where diffusers would compute something else."""
    if not isinstance(sampler, Multistep) or run.function(sampler) is not run.model.denoiser:
        raise MappingError(f"expected multistep sampling of a consistency function, got {sampler.name}")
    if run.model.denoiser.inputs:
        raise MappingError(f"expected no further inputs, got {', '.join(i.name for i in run.model.denoiser.inputs)}")
    net = dict(run.model.meta["net"])
    kind = net.pop("kind")
    if kind != "adm":
        raise MappingError(f"net.kind: expected adm, the layout of UNet2DModel, got {kind}")
    config: adm.Config = read(plugins.load("cmcore.nets", kind).Config, net, "net")
    shape = run.model.shape
    images = diffusers.Shape(shape.channels, shape.resolution, shape.classes)
    return diffusers.unet2d(config, images, run.model.denoiser.net.state_dict())


def _scheduler(run: TrainedRun, sampler: Sampler) -> dict[str, Any]:
    """The scheduler's config.

    Its sigma_min is the eps of the scalings: 0 without. It then adds all of tau between steps, as ECT's authors do.
    """
    d = run.model.diffusion
    return {
        "_class_name": diffusers.SCHEDULER,
        "num_train_timesteps": GRID,
        "sigma_min": run.model.denoiser.epsilon,
        "sigma_max": d.sigma_max,
        "sigma_data": d.sigma_data,
        "rho": d.rho,
        "s_noise": 1.0,
        "clip_denoised": isinstance(sampler, Multistep) and sampler.clamp,
    }


def timesteps(run: TrainedRun, sampler: Sampler) -> list[int]:
    """The levels as timesteps of the exported scheduler: places on its Karras grid from sigma_max down, last first."""
    d, least = run.model.diffusion, run.model.denoiser.epsilon
    first, last = d.sigma_max ** (1 / d.rho), least ** (1 / d.rho)
    places = [round((first - level ** (1 / d.rho)) / (first - last) * (GRID - 1)) for level in sampler.noise_levels]
    return places[::-1]


def _own_pipeline(run: TrainedRun, folder: Path, pipeline: Path, sampler: Sampler) -> None:
    """The function as a program, the network's tensors and a pipeline file that calls the program."""
    export_program(run, folder / PROGRAM)
    tensors = {
        name: tensor.detach().contiguous().clone() for name, tensor in run.model.denoiser.net.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    shutil.copyfile(pipeline, folder / PIPELINE)
    index = {
        "_class_name": ["pipeline", "FewStepPipeline"],
        "levels": ",".join(map(repr, sampler.noise_levels)),
        "sigma_min": run.model.diffusion.sigma_min,
        "shape": ",".join(map(str, run.shape)),
        "classes": run.model.shape.classes,
    }
    _write_json(folder / "model_index.json", index)


def card(run: TrainedRun, records: Sequence[Mapping[str, Any]], *, timesteps: Sequence[int] = (), why: str = "") -> str:
    """The model card: how it is used, what it is, and what was measured of it.

    Args:
        run: the model.
        records: of the evaluation.
        timesteps: of a ConsistencyModelPipeline.
        why: it is none.
    """
    meta = run.model.meta
    rows = [
        f"| {one['name']} | {one['provenance']['nfe']} | {one['value']:.4g} | {one['spread']:.2g} | "
        f"{one['provenance']['samples']} | {one['provenance']['fingerprint']} |"
        for one in records
    ]
    measured = [
        "## Measured", "", "| Metric | NFE | Value | Spread | Samples | Fingerprint of the run |",
        "|---|---:|---:|---:|---:|---|", *rows, "",
    ] if rows else []  # fmt: skip
    if timesteps:
        use = [
            "from diffusers import ConsistencyModelPipeline", "",
            "pipeline = ConsistencyModelPipeline.from_pretrained(folder)",
            f"images = pipeline(batch_size=16, num_inference_steps=None, timesteps={list(timesteps)}).images",
        ]  # fmt: skip
        holds = f"`{UNET}` has the network's tensors."
    else:
        use = [
            "from diffusers import DiffusionPipeline", "",
            "pipeline = DiffusionPipeline.from_pretrained(",
            '    folder, custom_pipeline=f"{folder}/pipeline.py", trust_remote_code=True',
            ")",
            "images = pipeline(batch_size=16).images",
        ]  # fmt: skip
        holds = (
            "`program.pt2` is the function as a program of torch.export, `weights.safetensors` has the network's "
            f"tensors. It is no ConsistencyModelPipeline: {why}."
        )
    lines = [
        "---", "library_name: diffusers", "pipeline_tag: unconditional-image-generation", "---", "",
        f"# {run.name}", "", "```python", *use, "```", "",
        f"Method `{meta.get('method', '')}`, average of the weights `{run.model.profile}`, {meta.get('images', 0)} "
        f"images seen, fingerprint `{meta.get('fingerprint', '')}`. {holds}", "",
        *measured,
    ]  # fmt: skip
    return "\n".join(lines)
