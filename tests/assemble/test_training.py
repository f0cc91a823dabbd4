"""Fingerprints, weight files and where a run starts from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_run import every_run, make_inputs
from tiny_runs import PARAMS, tiny_project

from cmcore.assemble import training
from cmcore.assemble.models import LoadedModel, ModelShape, build_denoiser, load_model, save_empty
from cmcore.assemble.preview import previewer
from cmcore.assemble.project import parse_project
from cmcore.assemble.run import Run
from cmcore.assemble.training import SNAPSHOTS, WEIGHTS, Inputs, fingerprint, train_run, work_folder
from cmcore.config import merge
from cmcore.data.images import ImageData
from cmcore.rng import Draws
from cmcore.tensors import to_float
from cmcore.tracking.base import Null
from cmcore.train.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def train(run: Run, inputs: Inputs, folder: Path, **options: Any) -> Path:
    return train_run(run, inputs, folder, tracker=Null(), on_progress=lambda *_: None, **options)


def changed(changes: dict[str, Any], name: str = "ict") -> Run:
    return parse_project(merge(PARAMS, changes)).run(name)


def test_the_fingerprint_changes_with_all_that_decides_the_result(
    inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use = inputs["ict"]
    prints = {"base": fingerprint(changed({}), use)}
    for name, changes in {
        "option": {"runs": {"ict": {"options": {"P_mean": -1.0}}}},
        "train": {"train": {"lr": 2e-3}},
        "net": {"net": {"hidden": 8}},
        "range": {"diffusion": {"sigma_max": 10.0}},
        "ema": {"train": {"ema": {"ema": {"half_life": 100.0}}}},
    }.items():
        prints[name] = fingerprint(changed(changes), use)
    prints["method"] = fingerprint(changed({}, "ect"), use)
    other = tmp_path / "other.safetensors"
    other.write_bytes(use.init.read_bytes() + b" ")
    prints["init"] = fingerprint(changed({}), Inputs(use.data, other, use.teacher))
    prints["teacher"] = fingerprint(changed({}), Inputs(use.data, use.init, other))
    (tmp_path / "data").mkdir()
    for file in use.data.iterdir():
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((use.data / "manifest.json").read_text())
    (tmp_path / "data/manifest.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    prints["data"] = fingerprint(changed({}), Inputs(tmp_path / "data", use.init, use.teacher))
    monkeypatch.setattr(training, "source_digest", lambda roots: f"another digest of {sorted(roots)}")
    prints["code"] = fingerprint(changed({}), use)
    assert len(set(prints.values())) == len(prints)


def test_the_fingerprint_stays_where_the_result_does(inputs: dict[str, Inputs], tmp_path: Path):
    base = fingerprint(changed({}), inputs["ict"])
    for changes in (
        {"train": {"checkpoint_seconds": 5.0}},
        {"runs": {"ict": {"sample": {"two_step": 2.0}}}},
        {"runs": {"ect": {"options": {"q": 8.0}}}},
        {"eval": {"samples": 600}, "compute": {"threads": 2}},
    ):
        assert fingerprint(changed(changes), inputs["ict"]) == base
    folder = work_folder(tmp_path, "tiny", changed({}).name, base)
    assert folder == tmp_path / "tiny" / f"ict-{base}"


def test_a_fingerprint_covers_the_code_of_its_method_and_network(inputs: dict[str, Inputs]):
    seen: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "source_digest", lambda roots: seen.append(list(roots)) or "")
        fingerprint(changed({}), inputs["ict"])
    assert {"cmcore.assemble.training", "cmcore.methods.ict", "cmcore.nets.mlp"} <= set(seen[0])


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    run = every_run().run("ect")
    return run, train(run, inputs["ect"], tmp_path_factory.mktemp("ect") / "work")


def test_weights_come_back_to_the_bit_for_every_profile(trained: tuple[Run, Path], inputs: dict[str, Inputs]):
    run, final = trained
    raw, default = load_model(final / WEIGHTS, "raw"), load_model(final / WEIGHTS)
    assert (default.profile, default.meta["eval_ema"]) == (run.train.eval_ema, run.train.eval_ema)
    assert default.meta["fingerprint"] == fingerprint(run, inputs["ect"])
    assert default.meta["profiles"] == ["ema", "power", "raw"]
    outputs = []
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 5.0], dtype=torch.float64)
    for model in (raw, default, load_model(final / WEIGHTS, "power")):
        assert not model.denoiser.training
        outputs.append(model.denoiser(x, sigma))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    last = sorted((final / SNAPSHOTS).iterdir())[-1]  # of the end, so the same average
    assert torch.equal(load_model(last).denoiser(x, sigma), outputs[1])
    assert default.meta["images"] == load_model(last).meta["images"] == run.train.total


def test_the_file_describes_the_network(trained: tuple[Run, Path]):
    run, final = trained
    model = load_model(final / WEIGHTS)
    assert model.shape == ModelShape(channels=1, resolution=8, classes=0)
    assert model.diffusion == run.diffusion
    assert model.meta["net"]["dropout"] == 0.2
    assert model.denoiser.epsilon == 0.0
    assert json.loads((final / "summary.json").read_text())["parameters"] == sum(
        parameter.numel() for parameter in model.denoiser.net.parameters()
    )


def test_wrong_weight_files_are_refused(trained: tuple[Run, Path], tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"profiles ema, power, raw, got 'x'"):
        load_model(trained[1] / WEIGHTS, "x")
    save_empty(tmp_path / "random.safetensors", "random")
    with pytest.raises(CheckpointError, match=r"expected a model, got a file of kind 'random'"):
        load_model(tmp_path / "random.safetensors")


def test_a_network_is_the_same_for_the_same_seed_only():
    run, shape = tiny_project().run("edm"), ModelShape(1, 8, 0)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    nets = [build_denoiser(run.net, shape, run.diffusion, boundary=False, seed=seed).net for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), before)
    one, two, three = (net.input.weight for net in nets)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_run_starts_from_the_averaged_weights_of_init(
    inputs: dict[str, Inputs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    started: list[Any] = []
    real = training.new_state

    def new_state(method: Any, student: Any, config: Any, *, init: Any, teacher: Any, **more: Any) -> Any:
        started.append(({k: v.clone() for k, v in student.net.state_dict().items()}, teacher))
        return real(method, student, config, init=init, teacher=teacher, **more)

    monkeypatch.setattr(training, "new_state", new_state)
    train(every_run(images=128).run("scd"), inputs["scd"], tmp_path)
    student, teacher = started[0]
    source = load_model(inputs["scd"].init, "ema").denoiser.net.state_dict()
    raw = load_model(inputs["scd"].init, "raw").denoiser.net.state_dict()
    assert all(torch.equal(student[name], source[name]) for name in source)
    assert not all(torch.equal(student[name], raw[name]) for name in source)
    assert all(torch.equal(teacher.net.state_dict()[name], source[name]) for name in source)  # and it has not moved
    assert not teacher.training


def test_weights_of_another_shape_are_refused(inputs: dict[str, Inputs], tmp_path: Path):
    run = every_run(images=128).run("ect")
    other = replace(run, conditional=True)
    with pytest.raises(ValueError, match=r"runs.ect.init: expected weights for ModelShape.*classes=10"):
        train(other, inputs["ect"], tmp_path)


def test_batches_are_images_of_the_data_set_by_address(inputs: dict[str, Inputs]):
    run, data = every_run().run("edm"), ImageData.open(inputs["edm"].data)
    batches = training.image_batches(data, replace(run, train=replace(run.train, flip=False)), "cpu")
    flipped = training.image_batches(data, run, "cpu")
    epoch = torch.cat([batches(Draws(1, start, 64)).x for start in range(0, 1797 + 64, 64)])[:1797]
    expected = to_float(torch.from_numpy(np.array(data.images)))
    assert torch.equal(epoch.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    part = torch.cat([batches(Draws(1, 64, 64, slice(a, b))).x for a, b in [(0, 10), (10, 64)]])
    assert torch.equal(part, batches(Draws(1, 64, 64)).x)
    x, f = batches(Draws(1, 64, 64)).x, flipped(Draws(1, 64, 64)).x
    mirrored = [torch.equal(b, a.flip(-1)) and not torch.equal(b, a) for a, b in zip(x, f, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(x, f, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 15 < sum(mirrored) < 49  # 32 +- 4 standard deviations
    assert batches(Draws(1, 0, 4)).labels is None


def test_labels_belong_to_their_images(inputs: dict[str, Inputs]):
    run, data = every_run().run("edm"), ImageData.open(inputs["edm"].data)
    run = replace(run, conditional=True, train=replace(run.train, flip=False))
    batch = training.image_batches(data, run, "cpu")(Draws(1, 0, 32))
    images = to_float(torch.from_numpy(np.array(data.images)))
    assert batch.labels is not None
    for x, label in zip(batch.x, batch.labels, strict=True):
        rows = (images == x).flatten(1).all(1).nonzero().flatten().tolist()
        assert int(label) in {int(data.labels[row]) for row in rows}


def test_a_preview_draws_the_same_picture_for_the_same_weights(trained: tuple[Run, Path], tmp_path: Path):
    run, final = trained
    model: LoadedModel = load_model(final / WEIGHTS)
    draw = previewer(run, ModelShape(1, 8, 0), columns=2)
    state = torch.random.get_rng_state()
    draw(model.denoiser, tmp_path / "a.png")
    draw(model.denoiser, tmp_path / "b.png")
    draw(load_model(final / WEIGHTS, "power").denoiser, tmp_path / "c.png")
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]
    assert pictures[0].startswith(b"\x89PNG")
    assert torch.equal(torch.random.get_rng_state(), state)
