"""A model for use without this project: a program of torch.export, and a pipeline of diffusers with a card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmcore.assemble.results import TrainedRun
from cmcore.atomic import write_atomic

PROGRAM, WEIGHTS, PIPELINE = "program.pt2", "weights.safetensors", "pipeline.py"


class Function(nn.Module):
    """(x (B, C, H, W), sigma (B,), labels (B,)) -> images, float64: D or f, whichever the method has."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.denoiser = run.model.denoiser
        self._function = run.method.model(self.denoiser)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._function(x, sigma, labels)


def export_program(run: TrainedRun, path: Path) -> None:
    """Write the function of a model as a program of torch.export, for any batch size; inputs are float64."""
    x = torch.randn(2, *run.shape, dtype=torch.float64, device=run.device)
    inputs: list[Tensor] = [x, torch.full((2,), 1.0, dtype=torch.float64, device=run.device)]
    if run.model.shape.classes:
        inputs.append(torch.zeros(2, dtype=torch.int64, device=run.device))
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with torch.no_grad():
        program = torch.export.export(Function(run), tuple(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)


def export_pipeline(
    run: TrainedRun, folder: Path, pipeline: Path, *, nfe: int = 0, records: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write a folder that diffusers opens: program, weights, pipeline and model card.

    Args:
        run: a few-step model whose sampler has noise levels.
        folder: of the result.
        pipeline: the source file of the pipeline.
        nfe: the row whose levels the pipeline has by default; 0 for the first.
        records: of the evaluation, for the card.

    Raises:
        ValueError: there are no such levels.
    """
    sampler = run.row(nfe)
    if not sampler.noise_levels:
        raise ValueError(f"{run.name}: expected a few-step model whose steps begin at noise levels")
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
    write_atomic(folder / "model_index.json", (json.dumps(index, indent=2) + "\n").encode())
    write_atomic(folder / "README.md", card(run, records).encode())


def card(run: TrainedRun, records: Sequence[Mapping[str, Any]]) -> str:
    """The model card: how it is used, what it is, and what was measured of it."""
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
    lines = [
        "---", "library_name: diffusers", "pipeline_tag: unconditional-image-generation", "---", "",
        f"# {run.name}", "",
        "```python",
        "from diffusers import DiffusionPipeline", "",
        "pipeline = DiffusionPipeline.from_pretrained(",
        '    folder, custom_pipeline=f"{folder}/pipeline.py", trust_remote_code=True',
        ")",
        "images = pipeline(batch_size=16).images",
        "```", "",
        f"Method `{meta.get('method', '')}`, average of the weights `{run.model.profile}`, {meta.get('images', 0)} "
        f"images seen, fingerprint `{meta.get('fingerprint', '')}`. `program.pt2` is the function as a program of "
        "torch.export, `weights.safetensors` has the network's tensors.", "",
        *measured,
    ]  # fmt: skip
    return "\n".join(lines)
