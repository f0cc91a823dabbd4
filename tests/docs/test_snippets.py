"""The Python and the workload that the pages show."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from pages import PAGES, README, blocks, commands

from cmcore import plugins
from cmcore.assemble.export import export_onnx
from cmcore.assemble.models import ModelShape, build_denoiser, save_model
from cmcore.assemble.project import RunEntry, Sections, load_project
from cmcore.assemble.results import open_run
from cmcore.assemble.training import WEIGHTS
from cmcore.closure import ROOT
from cmcore.config import load_yaml, read
from cmcore.edge.mlflow_model import save
from cmcore.pipeline.common import load

RUNNABLE = [page for page in PAGES if page.name != "CONTRIBUTING.md"]  # its blocks are files: see test_add_a_method
PYTHON = [(page, index) for page in RUNNABLE for index, _ in enumerate(blocks(page, "python"))]
WORKLOADS = [page for page in PAGES if any("workload: mine" in block for block in blocks(page, "yaml"))]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The default workload in a folder of its own, with weights that nobody trained, as the working directory."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "workloads/digits.yaml").read_bytes())
    run = load_project(tmp_path / "params.yaml").run("ect")
    shape, path = ModelShape(1, 8, 0), tmp_path / "outputs/digits/runs/ect" / WEIGHTS
    path.parent.mkdir(parents=True)
    denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
    save_model(path, {run.train.eval_ema: denoiser.net.state_dict()}, run, shape, {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "index"), PYTHON, ids=lambda value: getattr(value, "name", str(value)))
def test_the_code_runs(page, index, project):
    code = blocks(page, "python")[index]
    if "onnxruntime" in code:  # of a file that a command above it wrote
        for package in ("onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed (the extra 'onnx')")
        export_onnx(open_run("ect"), Path("ect.onnx"), nfe=2)
    if "models:/" in code:
        register(project)
    exec(compile(code, page.name, "exec"), {})


def register(project: Path) -> None:
    """Let MLflow know the model that a page loads."""
    mlflow = pytest.importorskip("mlflow")
    (project / ".tracking").mkdir()
    client = mlflow.MlflowClient("sqlite:///.tracking/mlflow.db")
    client.create_registered_model("digits")
    save(load_project(project / "params.yaml"), "ect", project, project / "model", {})
    version = client.create_model_version("digits", (project / "model").as_uri()).version
    client.set_registered_model_alias("digits", "best-1-step", version)


@pytest.mark.usefixtures("project")
def test_the_five_lines_of_readme_sample(capsys):
    (code,) = blocks(README, "python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 5
    names: dict[str, object] = {}
    exec(compile(code, README.name, "exec"), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert (images.dtype, images.shape) == (torch.uint8, (16, 1, 8, 8))
    assert capsys.readouterr().out


def test_parameters_have_the_names_that_are_known():
    """Of every block that shows a part of the parameter file: its sections, and the entries of its runs."""
    shown = [yaml.safe_load(block) for page in RUNNABLE for block in blocks(page, "yaml")]
    assert len(shown) > 2
    for part in shown:
        assert part.keys() <= {field.name for field in fields(Sections)}
        for name, entry in part.get("runs", {}).items():
            run = read(RunEntry, entry, f"runs.{name}")
            read(plugins.load("cmcore.methods", run.method).Config, run.options, f"runs.{name}.options")


def workload(page: Path) -> dict:
    (block,) = (block for block in blocks(page, "yaml") if "workload: mine" in block)
    return yaml.safe_load(block)


def test_the_page_on_data_shows_a_workload():
    assert [ROOT / "docs/own-data.md"] == WORKLOADS


@pytest.mark.parametrize("page", WORKLOADS, ids=lambda page: page.name)
def test_the_sections_make_a_workload_of_the_file_that_is_copied(page, tmp_path):
    (copied,) = (words[1] for words in commands(page) if words[0] == "cp")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(load_yaml(ROOT / copied) | workload(page)))
    project = load(tmp_path).project
    assert project.workload == "mine"
    assert project.sections.data.source == "folder"
    assert len(project.runs) > 1
