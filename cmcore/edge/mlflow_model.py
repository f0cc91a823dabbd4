"""Models in MLflow's registry: data alone, which this module, of the installed project, reads.

A model is a project folder with one run's weights: the parameter file, the weights as safetensors and the manifest of
the data. It holds no code and no pickle; what is loaded names this module as its loader, as MLflow's own flavours do.
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmcore.assemble.passes import weights_at
from cmcore.assemble.project import Project
from cmcore.assemble.results import TrainedRun, open_run
from cmcore.assemble.training import WEIGHTS
from cmcore.config import PARAMS
from cmcore.data.codec import CODEC
from cmcore.data.images import MANIFEST, WORDS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RUN = "run"  # the file with the run's name
MOST = 10_000  # images of a request


class Sampler:
    """A model as MLflow calls it."""

    def __init__(self, run: TrainedRun) -> None:
        self._run = run

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "np.ndarray":
        """Draw images, those of `cmlab sample` with the same number, steps and seed.

        Args:
            model_input: rows whose `count`s add up to the number of images.
            params: `seed` of the noise; `steps` of the sampler, 0 for the first row of the run in the table.

        Returns:
            uint8 (N, C, H, W); of a run on latents, the latents in float64.

        Raises:
            ValueError: the number of images is out of range, or there is no such sampler.
        """
        told = {"seed": 0, "steps": 0, **(params or {})}
        count = int(model_input["count"].to_numpy().sum())
        if not 1 <= count <= MOST:
            raise ValueError(f"count: expected from 1 to {MOST} images, got {count}")
        sampler = self._run.sampler(int(told["steps"]))
        return self._run.sample(count, sampler=sampler, seed=int(told["seed"])).numpy()


def _load_pyfunc(path: str) -> Sampler:
    """What `mlflow.pyfunc.load_model` calls."""
    folder = Path(path)
    return Sampler(open_run((folder / RUN).read_text(encoding="utf-8"), folder, device="auto"))


def collect(project: Project, name: str, root: Path, out: Path) -> None:
    """Copy what a run needs to be sampled into a folder."""
    run, place = project.run(name), Path("outputs", project.workload)
    folder = place / "runs" / name
    method, sampling = run.objective, run.sampling(project.sections.eval.teacher_steps)
    files = [weights_at(run, root / folder, row).relative_to(root) for row in method.samplers(sampling)]
    data = [place / "data" / name for name in (MANIFEST, WORDS, CODEC)]
    for file in {Path(PARAMS), folder / WEIGHTS, *files, *(file for file in data if (root / file).is_file())}:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, out / file)
    (out / RUN).write_text(name, encoding="utf-8")


def pyfunc() -> Any:
    """MLflow's module, whose import warns of type hints of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    return mlflow.pyfunc


def save(project: Project, name: str, root: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a run of the project as a model of MLflow into a new folder.

    Args:
        project: the parameter file of `root`.
        name: the run.
        root: the project folder.
        folder: where `MLmodel` and the data go.
        facts: kept as the model's metadata.
    """
    import importlib.metadata

    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    data = folder.with_name(f"{folder.name}.data")
    collect(project, name, root, data)
    run = open_run(name, root)
    seen = project.sections.data
    decoded = seen.codec is not None and seen.codec.kind == "kl"  # a public codec is not copied with the model
    kind = np.dtype("float64") if seen.latent and not decoded else np.dtype("uint8")
    shape = (seen.channels, seen.resolution, seen.resolution) if decoded else run.shape
    signature = ModelSignature(
        Schema([ColSpec("long", "count")]),
        Schema([TensorSpec(kind, (-1, *shape))]),
        ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("steps", "long", 0)]),
    )
    needed = [f"{package}=={importlib.metadata.version(package)}" for package in ("torch", "numpy", "safetensors")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an example of the input would draw images to check itself
        pyfunc().save_model(
            folder, loader_module=__name__, data_path=str(data), signature=signature, pip_requirements=needed,
            metadata=dict(facts),
        )  # fmt: skip
    shutil.rmtree(data)
