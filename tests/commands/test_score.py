"""`cmlab score`: our own samples get the records of their evaluation; what cannot be compared is refused."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import stages.prepare
import stages.reference
from cmcore.assemble.inference import for_samples
from cmcore.assemble.models import load_model
from cmcore.assemble.passes import row_names
from cmcore.closure import ROOT
from cmcore.commands.place import CommandError
from cmcore.commands.score import add, remove
from cmcore.config import ConfigError, load_yaml
from cmcore.data.files import save_images
from cmcore.errors import DataError
from cmcore.evaluate.records import MetricRecord, RunMetrics
from cmcore.pipeline.common import Setup, load
from cmcore.report.foreign import Foreign, file_of, read_foreign
from cmcore.sample.stream import generate
from stages import evaluate, train

RANGES, SAMPLES = 2, 40  # a shard holds 32 images, and a batch 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A workload with held-out images and a teacher that was evaluated."""
    root = tmp_path_factory.mktemp("score")
    data = load_yaml(ROOT / "tests/e2e/tiny.yaml")
    data["runs"] = {"edm": data["runs"]["edm"]}
    data["data"]["test"] = 0.1
    data["train"]["images"] = 512
    data["eval"] |= {"samples": SAMPLES, "seed_ranges": RANGES, "shard": 32, "batch": 24, "kept": 36, "nearest": 30}
    data |= {"tracking": {"mlflow": False}, "compute": {"backend": "inline", "threads": 1, "device": "cpu"}}
    (root / "params.yaml").write_text(yaml.safe_dump(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for work in (
            stages.prepare.main,
            stages.reference.main,
            lambda: train.main("edm"),
            lambda: evaluate.main("edm"),
        ):
            work()
    return load(root)


@pytest.fixture
def setup(made: Setup) -> Setup:
    """The workload without foreign samples."""
    shutil.rmtree(made.folders.reports / "scored", ignore_errors=True)
    return made


@pytest.fixture(scope="module")
def images(made: Setup) -> np.ndarray:
    """What the row of the evaluation was measured on, (80, 1, 8, 8)."""
    run, config = made.project.run("edm"), made.project.sections.eval
    model = load_model(made.folders.weights("edm"))
    for_samples(model.denoiser, run.train, "cpu")
    (sampler,) = run.objective.samplers(run.sampling(config.teacher_steps))
    assert row_names([sampler]) == ["nfe_5"]
    spans = [range(at, min(at + 32, end)) for end in (40, 80) for at in (range(end - 40, end, 32))]
    batches = [
        batch
        for span in spans
        for batch in generate(sampler, model.denoiser, (1, 8, 8), span, seed=config.seed, batch=config.batch)
    ]
    return torch.cat(batches).numpy()


def scored(setup: Setup, place: Path, name: str = "my model", **options: object) -> Foreign:
    list(add(setup.folders.root, place, name, **{"nfe": 0, "classes": "", **options}))
    (found,) = [one for one in read_foreign(setup.folders.reports / "scored", "tiny") if one.samples.name == name]
    return found


def rows(setup: Setup) -> tuple[MetricRecord, ...]:
    path = setup.folders.reports / "metrics/edm.json"
    return RunMetrics.from_json(json.loads(path.read_text())).records


def written(images: np.ndarray, folder: Path, kind: str) -> Path:
    """The images as somebody else might keep them."""
    if kind == "folder":
        save_images(images, folder / "pictures")
        return folder / "pictures"
    if kind == "zip":
        with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
            for path in sorted(written(images, folder, "folder").iterdir()):
                archive.write(path, f"00000/{path.name}")
        return folder / "pictures.zip"
    if kind == "npy":
        np.save(folder / "images.npy", images)
        return folder / "images.npy"
    np.savez(folder / "images.npz", arr_0=images.transpose(0, 2, 3, 1), arr_1=np.zeros(len(images), np.int64))
    return folder / "images.npz"


@pytest.mark.parametrize("kind", ["folder", "zip", "npy", "npz"])
def test_our_own_samples_get_the_records_of_the_evaluation(setup, images, tmp_path, kind):
    found = scored(setup, written(images, tmp_path, kind), nfe=5)
    ours = rows(setup)
    assert {"fd", "kid", "fd_test", "fd_infinity", "memorised", "coverage"} <= {record.metric for record in ours}
    assert len(found.run.records) == len(ours)
    for theirs, own in zip(found.run.records, ours, strict=True):
        p = theirs.provenance
        assert (p.run, p.method, p.fingerprint) == ("my model", "foreign samples", found.samples.digest)
        same = {
            key: getattr(own.provenance, key) for key in ("run", "method", "fingerprint", "sampler", "ema", "images")
        }
        assert replace(theirs, provenance=replace(p, **same)) == own
    assert (found.samples.count, found.samples.measured, found.samples.nfe) == (80, 80, 5)
    assert found.samples.kind == {"folder": "folder", "zip": "archive"}.get(kind, "array")
    assert not (setup.folders.work / "tiny/scored").exists()


def test_other_images_get_other_values(setup, images, tmp_path):
    """The comparison above can fail."""
    found = scored(setup, written(255 - images, tmp_path, "npy"))
    assert {a.value for a in found.run.records}.isdisjoint({b.value for b in rows(setup) if b.metric in ("fd", "kid")})


def test_a_second_scoring_replaces_the_first_and_can_be_taken_away(setup, images, tmp_path):
    first = scored(setup, written(images, tmp_path, "npy"))
    save_images(images[:40], tmp_path / "few")
    second = scored(setup, tmp_path / "few", classes="uniform")
    assert (first.samples.count, second.samples.count) == (80, 40)
    assert first.samples.digest != second.samples.digest
    assert second.run.facts.labels == "uniform"
    other = scored(setup, tmp_path / "few", "My model")
    assert len(list((setup.folders.reports / "scored").iterdir())) == 2
    assert list(remove(setup.folders.root, "my model")) == ["my model: removed"]
    assert read_foreign(setup.folders.reports / "scored", "tiny") == [other]
    with pytest.raises(CommandError, match=r"--name: expected one of My model, got 'my model'"):
        list(remove(setup.folders.root, "my model"))


def test_of_more_images_as_many_as_a_run_has_are_measured_at_random(setup, images, tmp_path):
    """A folder that is sorted by class would otherwise be judged by its first class."""
    many = np.concatenate([images, np.zeros_like(images), np.zeros_like(images)])
    found = scored(setup, written(many, tmp_path, "npy"))
    assert (found.samples.count, found.samples.measured) == (240, 80)
    assert found.run.records[0].value != rows(setup)[0].value, "they are not the first ones"
    again = scored(setup, written(many, tmp_path, "folder"), "again")
    assert [one.value for one in again.run.records] == [one.value for one in found.run.records]


def test_the_digest_is_that_of_the_file(setup, images, tmp_path):
    import hashlib

    path = written(images, tmp_path, "npy")
    assert scored(setup, path).samples.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, at: at / "nothing", r"^--samples: expected a folder, an archive, .* got nothing at "),
        (lambda x, at: written(x[:15], at, "folder"), r"pictures: expected at least 16 images \(.*\), got 15$"),
        (lambda x, at: written(x[:15], at, "npz"), r"images.npz: expected at least 16 images"),
        (lambda x, at: written(x.repeat(2, 2).repeat(2, 3), at, "npy"), r"expected 8 x 8 pixels, .*, got 16 x 16$"),
        (lambda x, at: written(x[..., :6], at, "folder"), r"000000.png: expected 8 x 8 pixels, .*, got 6 x 8$"),
        (lambda x, at: written(x.repeat(3, 1), at, "folder"), r"000000.png: expected grey, .*, got colours$"),
        (lambda x, at: written(x.repeat(3, 1), at, "npz"), r"expected images of shape .*, got \(80, 8, 8, 3\)"),
        (lambda x, at: written(x.astype(np.float32), at, "npy"), r"expected images of type uint8 .*, got float32"),
        (lambda x, at: _with_file(written(x, at, "folder")), r"zz\.png: cannot be read as an image"),
    ],
)  # fmt: skip
def test_what_does_not_suit_the_workload_is_one_line_before_any_compute(
    setup, images, tmp_path, monkeypatch, make, message
):
    monkeypatch.setattr("cmcore.commands.score.execute", lambda *_, **__: pytest.fail("it is measured"))
    with pytest.raises(DataError, match=message) as caught:
        scored(setup, make(images, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (setup.folders.reports / "scored").exists()
    assert not (setup.folders.work / "tiny/scored").exists()


def _with_file(folder: Path) -> Path:
    (folder / "zz.png").write_bytes(b"no picture")
    return folder


def test_a_grey_picture_among_coloured_ones_is_refused(tmp_path):
    from cmcore.assemble.foreign import Shape, read_samples
    from cmcore.evaluate.settings import EvalConfig

    config = EvalConfig(samples=16, kid_size=4, score_splits=2)
    save_images(np.zeros((9, 3, 8, 8), np.uint8), tmp_path / "a")
    assert read_samples(tmp_path / "a", Shape(3, 8), config, tmp_path / "out.npy") == (9, 9)
    save_images(np.zeros((9, 1, 8, 8), np.uint8), tmp_path / "b")
    shutil.copy(tmp_path / "b/000000.png", tmp_path / "a/grey.png")
    with pytest.raises(DataError, match=r"grey\.png: expected colours, .*, got grey"):
        read_samples(tmp_path / "a", Shape(3, 8), config, tmp_path / "out.npy")


@pytest.mark.parametrize(
    "name",
    ["", " x", "x ", "=1+1", "-x", "@x", "+x", "a|b", "<b>", "[a](b)", "a\nb", "a`b", "https://x", "x" * 61, "_x"],
)
def test_a_name_that_a_table_could_take_for_more_is_refused(setup, images, tmp_path, name):
    with pytest.raises(ConfigError, match=r"^--name: expected 1 to 60 letters, digits"):
        scored(setup, written(images, tmp_path, "npy"), name)


def test_a_name_of_a_run_and_a_missing_reference_are_refused(setup, images, tmp_path):
    place = written(images, tmp_path, "npy")
    with pytest.raises(ConfigError, match=r"^--name: expected a name that no run of the workload has, got 'edm'"):
        scored(setup, place, "edm")
    root = tmp_path / "clone"
    (root / "outputs/tiny").mkdir(parents=True)
    shutil.copy(setup.folders.root / "params.yaml", root)
    shutil.copytree(setup.folders.data, root / "outputs/tiny/data")
    with pytest.raises(DataError, match=r"outputs/tiny/reference is not there; first run `dvc repro reference`"):
        list(add(root, place, "x", nfe=0, classes=""))


def test_names_that_look_alike_have_files_of_their_own(tmp_path):
    names = ("my model", "My model", "my-model", "my.model", "Ünï")
    assert len({file_of(tmp_path, name) for name in names}) == len(names)
    assert all(file_of(tmp_path, name).name.isascii() for name in names)
