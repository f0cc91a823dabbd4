"""Latents through every stage, from stored means and deviations to tables, with a decoder that takes no time."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from every_stage import every_stage
from pictures_on_disk import write_zip

from cmcore.assemble.models import load_model
from cmcore.commands import repro
from cmcore.config import ConfigError
from cmcore.data.decoded import Decoding
from cmcore.data.latent_space import RAW_MEAN, RAW_STD, normalisation
from cmcore.edge import ray_run
from cmcore.edge.autoencoder import load_decoder
from cmcore.errors import DataError
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.reference import load_reference
from cmcore.evaluate.settings import DecoderConfig
from cmcore.pipeline import common
from cmcore.sample.stream import generate
from stages import evaluate, reference, train, train_job

COUNT, SIZE = 96, 8
RUNS = ("edm", "ect")


def stored() -> dict[str, bytes]:
    """Latents of two classes, as EDM2's dataset tool writes them."""
    rng, files = np.random.default_rng(0), {}
    names = [f"00000/img-mean-std-{k:08d}.npy" for k in range(COUNT)]
    for k, name in enumerate(names):
        place = np.where(k % 2, 0.8, -0.8) + 0.3 * rng.standard_normal((4, 1, 1)) + 0.1 * rng.standard_normal((4, 8, 8))
        width = np.array(RAW_STD)[:, None, None]
        latent = np.concatenate([np.array(RAW_MEAN)[:, None, None] + width * place, 0.05 * width * np.ones((4, 8, 8))])
        with (path := Path(name.replace("/", "_"))).open("wb") as file:
            np.save(file, latent.astype(np.float32))
        files[name] = path.read_bytes()
        path.unlink()
    labels = json.dumps({"labels": [[name, k % 2] for k, name in enumerate(names)]}).encode()
    return files | {"dataset.json": labels}


def parameters() -> dict[str, Any]:
    """The tiny workload of the pipeline's tests, on latents."""
    params = yaml.safe_load((Path(__file__).parents[1] / "e2e/tiny.yaml").read_text(encoding="utf-8"))
    params["data"] = {"source": "latents", "path": "latents.zip", "resolution": SIZE, "channels": 4}
    params["eval"] |= {"decoder": {"path": "vae"}, "shard": 40}
    params["conditional"] = True
    return params | {"compute": {"backend": "inline", "threads": 1, "device": "cpu"}, "tracking": {"mlflow": False}}


def write(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def stand_in() -> Any:
    """The module that stands for diffusers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "diffusers", raising=False)
        patch.syspath_prepend(Path(__file__).parents[1] / "support/without_diffusers")
        yield importlib.import_module("diffusers")
        sys.modules.pop("diffusers", None)


@pytest.fixture(scope="module")
def made(stand_in: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after all stages."""
    root = tmp_path_factory.mktemp("latents") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write(parameters())
        write_zip(Path("latents.zip"), stored())
        stand_in.write(Path("vae"))
        every_stage(RUNS)
    return root


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder as the working directory; edits of its parameters are taken back."""
    monkeypatch.chdir(made)
    yield made
    write(parameters())


def test_every_number_and_picture_of_latents_is_of_decoded_images(project: Path):
    decoder = load_decoder(DecoderConfig(path="vae"))
    table = Path("reports/tiny/tables/comparison.md").read_text(encoding="utf-8")
    for name in RUNS:
        metrics = json.loads(Path(f"reports/tiny/metrics/{name}.json").read_text(encoding="utf-8"))
        assert metrics["decoder"] == decoder.digest
        assert {"fd", "kid", "precision", "recall", "score"} <= {record["metric"] for record in metrics["records"]}
        with np.load(f"outputs/tiny/samples/{name}.npz") as arrays:
            assert {(arrays[key].dtype.name, arrays[key].shape[1:]) for key in arrays} == {("uint8", (3, 16, 16))}
        assert Path(f"reports/tiny/grids/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"| {name} |" in table
    assert f"Latents are decoded (decoder {decoder.digest[:8]})." in table


def test_latents_are_not_edited(project: Path):
    assert json.loads(Path("outputs/tiny/edits/edits.json").read_text(encoding="utf-8"))["errors"] == {}
    assert "Zero-shot editing" not in Path("reports/tiny/index.html").read_text(encoding="utf-8")


def test_samples_are_decoded_and_measured_against_decoded_data(project: Path):
    setup = common.load()
    known = load_reference(setup.folders.reference)
    decoder = load_decoder(DecoderConfig(path="vae"))
    data = np.load(setup.folders.data / "latents.npy")
    real = known.extractor(decoder(torch.from_numpy(data[:, :4])))
    assert known.features is not None
    torch.testing.assert_close(known.features, real)
    run = setup.project.run("ect")
    model = load_model(setup.folders.weights("ect"))
    batches = generate(
        run.objective.samplers(run.sampling(3))[0], model.denoiser, (4, SIZE, SIZE), range(64), seed=1, batch=40,
        classes=2, to_images=Decoding(decoder, normalisation()),
    )  # fmt: skip
    images = torch.cat(list(batches))
    with np.load("outputs/tiny/samples/ect.npz") as arrays:
        assert np.array_equal(arrays["nfe_1"], images[:40].numpy())
    records = json.loads(Path("reports/tiny/metrics/ect.json").read_text(encoding="utf-8"))["records"]
    fd = next(r["value"] for r in records if r["metric"] == "fd" and r["provenance"]["nfe"] == 1)
    halves = known.extractor(images).split(40)  # as the shards cut them
    ours = Moments.total(Moments.of(part) for part in halves)
    assert fd == pytest.approx(frechet_distance(ours, Moments.of(real)), rel=1e-6)


def test_the_decoder_of_samples_is_that_of_the_reference(project: Path, stand_in: ModuleType):
    stand_in.write(Path("other"), seed=1)
    params = parameters()
    params["eval"]["decoder"]["path"] = "other"
    write(params)
    with pytest.raises(DataError, match="expected the decoder of the reference"):
        evaluate.main("ect")


def test_a_run_on_latents_is_shown_while_it_trains(project: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Any] = []
    real = train_job.previewer

    def previewer(run: Any, shape: Any, **options: Any) -> Any:
        shown.append(options.get("to_images"))
        return real(run, shape, **options)

    monkeypatch.setattr(train_job, "previewer", previewer)
    setup = common.load()
    inputs = train.Inputs(setup.folders.data, *map(setup.folders.weights, ("random", "none")))
    for path, count in (("vae", 1), ("", 1)):
        folder = project / f"again{count}{path}"
        config = DecoderConfig(path=path)
        ray_run.execute(
            setup.compute, train_job.job, setup.compute, setup.project.run("edm"), inputs, folder, config,
            progress=lambda _: None,
        )  # fmt: skip
        assert len(shown) == count
        assert bool(list(folder.rglob("*.png"))) == bool(path)
    assert isinstance(shown[0], Decoding)


@pytest.mark.parametrize(
    ("path", "message"),
    [("", r"latents can be trained on, with `dvc repro train@<run>`"), ("nowhere", "expected a folder with config")],
)
def test_a_missing_decoder_is_said_before_any_compute(project: Path, capsys: Any, path: str, message: str):
    params = parameters()
    params["eval"]["decoder"]["path"] = path
    write(params)
    assert repro.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("params.yaml: eval.decoder.path: ")
    assert message in said
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.path: expected a folder"):
        reference.main()
