"""A codec through every stage: latents are trained on, and all that is measured and shown is images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from every_stage import every_stage

from cmcore.assemble.results import open_run
from cmcore.commands.edit import edit as edit_command
from cmcore.commands.place import CommandError
from cmcore.data.codec import CODEC, Codec, decoding_of
from cmcore.data.images import open_images
from cmcore.edge import mlflow_model
from cmcore.evaluate.reference import facts_of
from cmcore.pipeline import common
from cmcore.pipeline.sizes import count_parameters


def parameters() -> dict[str, Any]:
    """The tiny workload of the pipeline's tests, in latents."""
    params = yaml.safe_load((Path(__file__).parents[1] / "e2e/tiny.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"test": 0.1, "codec": {"channels": 2, "factor": 2, "width": 8, "images": 2048, "batch": 32}}
    params["eval"] |= {"nearest": 16}
    return params | {"compute": {"backend": "inline", "threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after all stages."""
    root = tmp_path_factory.mktemp("codec") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Path("params.yaml").write_text(yaml.safe_dump(parameters(), sort_keys=False), encoding="utf-8")
        every_stage(("edm", "ect"))
    return root


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the working directory."""
    monkeypatch.chdir(made)
    return made


def test_records_name_the_codec_and_samples_are_images(project: Path):
    codec = Codec.load(Path("outputs/tiny/data") / CODEC)
    for name in ("edm", "ect"):
        metrics = json.loads(Path(f"reports/tiny/metrics/{name}.json").read_text(encoding="utf-8"))
        assert metrics["decoder"] == codec.digest
        assert {"fd", "fd_test", "kid", "score", "memorised"} <= {record["metric"] for record in metrics["records"]}
        with np.load(f"outputs/tiny/samples/{name}.npz") as arrays:
            assert {(arrays[key].dtype.name, arrays[key].shape[1:]) for key in arrays} == {("uint8", (1, 8, 8))}
        assert Path(f"reports/tiny/grids/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert list(Path(".work").rglob("*.png")), "a run is shown while it trains"


def test_the_reference_is_of_the_images_themselves_and_says_what_the_codec_loses(project: Path):
    facts, images = facts_of(Path("outputs/tiny/reference")), open_images(Path("outputs/tiny/data"))
    test = open_images(Path("outputs/tiny/data/test"))
    assert images is not None
    assert test is not None
    assert facts.data.digest == images.digest
    found = {r.metric: r for r in facts.anchors if r.provenance.run == "reconstruction"}
    assert {"fd", "fd_test", "reconstruction"} <= set(found)
    codec = Codec.load(Path("outputs/tiny/data") / CODEC)
    x = torch.from_numpy(np.array(test.images))
    again = codec(codec.encode(x)[:, :2])
    rmse = ((again.double() - x.double()) / 127.5).square().mean((1, 2, 3)).sqrt()
    chosen = found["reconstruction"].provenance.samples
    assert chosen == 64
    assert found["reconstruction"].value == pytest.approx(float(rmse.mean()), rel=0.2)  # of some of them
    assert found["fd_test"].provenance.reference_digest == test.digest
    table = Path("reports/tiny/tables/comparison.md").read_text(encoding="utf-8")
    assert (
        f"Latents are decoded (decoder {codec.digest[:8]}). 64 images, encoded and decoded: root mean square" in table
    )
    assert "| images that the codec decodes |" in Path("reports/tiny/tables/measures.md").read_text(encoding="utf-8")


def test_a_run_is_sampled_as_images_from_python_and_is_not_colourised(project: Path):
    run = open_run("ect")
    assert run.shape == (2, 4, 4)
    images = run.sample(5, seed=1).numpy()
    with np.load("outputs/tiny/samples/ect.npz") as arrays:
        np.testing.assert_array_equal(arrays["nfe_1"][:5], images)
    with pytest.raises(CommandError, match="makes latents"):
        edit_command(
            "ect", project, project, task="colourise", image=None, mask=None, factor=None, sigma=0.0,
            out=Path("x.png"), count=1, steps=0, label=None, prompts=(), guidance=None, negative=None, seed=0, ema="",
            device="cpu", method="",
        )  # fmt: skip
    assert json.loads(Path("outputs/tiny/edits/edits.json").read_text(encoding="utf-8"))["errors"] == {}


def test_a_model_for_mlflow_has_the_codec_with_it(project: Path, tmp_path: Path):
    mlflow_model.collect(common.load().project, "ect", project, tmp_path / "model")
    assert (tmp_path / "model/outputs/tiny/data" / CODEC).is_file()
    there = open_run("ect", tmp_path / "model").sample(3, seed=1).numpy()
    np.testing.assert_array_equal(there, open_run("ect").sample(3, seed=1).numpy())


def test_plans_know_the_size_of_latents(project: Path):
    setup = common.load()
    assert setup.project.sections.data.seen_shape == (2, 4, 4)
    built = open_run("ect").model.denoiser.net
    assert count_parameters(setup.project)["ect"] == sum(p.numel() for p in built.parameters())
    assert decoding_of(setup.folders.data) is not None
