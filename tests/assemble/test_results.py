"""A trained run opened from Python."""

import json
from dataclasses import replace

import pytest
import torch
from public_weights import EDM, nvlabs_pickle
from safetensors.torch import save_file
from stored import PARAMS, store

from cmcore.assemble.models import ModelShape, load_model
from cmcore.assemble.results import open_run
from cmcore.assemble.training import WEIGHTS
from cmcore.config import ConfigError
from cmcore.errors import DataError
from cmcore.sample.stream import generate
from cmcore.train import checkpoint


def test_the_samplers_are_those_of_the_tables(tmp_path):
    store(tmp_path, "edm")
    assert open_run("edm", tmp_path).nfes == (5,)
    store(tmp_path, "ect")
    assert open_run("ect", str(tmp_path)).nfes == (1, 2)


def test_an_image_depends_on_seed_and_number_alone(tmp_path):
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    images = run.sample(5, nfe=2, seed=3)
    assert (images.dtype, images.shape) == (torch.uint8, (5, 1, 8, 8))
    assert images.float().std() > 0
    torch.testing.assert_close(run.sample(3, nfe=2, seed=3, batch=2), images[:3], rtol=0, atol=1)
    assert not torch.equal(run.sample(5, nfe=2, seed=4), images)
    assert not torch.equal(run.sample(5, nfe=1, seed=3), images)
    assert torch.equal(run.sample(5, seed=3), run.sample(5, nfe=1, seed=3))


def test_the_images_are_those_of_the_evaluation(tmp_path):
    project = store(tmp_path, "ect")
    model = load_model(tmp_path / "outputs/tiny/runs/ect" / WEIGHTS)
    two_steps = project.run("ect").objective.samplers(project.run("ect").sampling(3))[1]
    measured = next(generate(two_steps, model.denoiser, (1, 8, 8), range(4), seed=1, batch=4))
    assert torch.equal(open_run("ect", tmp_path).sample(4, nfe=2, seed=1), measured)


def test_other_averages_can_be_opened(tmp_path):
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path, profile="raw")
    assert run.model.profile == "raw"
    assert not torch.equal(run.sample(4), open_run("ect", tmp_path).sample(4))


def test_labels_are_told_to_a_conditional_network(tmp_path):
    store(tmp_path, "ect", classes=10, conditional=True)
    run = open_run("ect", tmp_path)
    threes = run.sample(4, labels=[3] * 4)
    assert torch.equal(run.sample(4, labels=[3, 3, 3, 3], batch=2), threes)
    assert not torch.equal(run.sample(4, labels=[5] * 4), threes)
    with pytest.raises(ValueError, match=r"labels: expected 4 classes from 0 to 9, got \[10, 0, 0, 0\]"):
        run.sample(4, labels=[10, 0, 0, 0])


def test_latents_stay_as_they_are(tmp_path):
    store(tmp_path, "ect")
    opened = open_run("ect", tmp_path)
    latents = replace(opened, to_images=torch.clone).sample(2)
    assert latents.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "nfe", "error", "message"),
    [
        ("ect", 3, ValueError, "nfe: expected one of 1, 2, got 3"),
        ("edm", 0, DataError, "first run `dvc repro train@edm`"),
        ("sct", 0, ConfigError, r"runs.sct: expected one of edm, ect"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(tmp_path, name, nfe, error, message):
    store(tmp_path, "ect")
    with pytest.raises(error, match=message):
        open_run(name, tmp_path).sample(1, nfe=nfe)


def test_no_images_are_refused(tmp_path):
    store(tmp_path, "ect")
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        open_run("ect", tmp_path).sample(0)


def test_a_network_without_labels_takes_none(tmp_path):
    store(tmp_path, "ect")
    with pytest.raises(ValueError, match="labels: expected none, as the network is unconditional"):
        open_run("ect", tmp_path).sample(1, labels=[0])


def test_a_sampler_of_ones_own(tmp_path):
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    assert torch.equal(run.sample(4, sampler=run.sampler(2)), run.sample(4, nfe=2))
    assert not torch.equal(run.sample(4, sampler=run.sampler(levels=[5.0])), run.sample(4, nfe=2))
    assert run.sampler(levels=[5.0, 1.0]).nfe == 3


def test_a_run_of_another_workload_is_opened(tmp_path):
    store(tmp_path, "ect")
    (tmp_path / "workloads").mkdir()
    (tmp_path / "params.yaml").rename(tmp_path / "workloads/tiny.yaml")
    there = open_run("tiny/ect", tmp_path).sample(2, nfe=2)  # without any active workload
    store(tmp_path, "ect", workload="active")
    assert torch.equal(open_run("tiny/ect", tmp_path).sample(2, nfe=2), there)
    with pytest.raises(ConfigError, match=r"runs.sct: expected one of edm, ect"):
        open_run("tiny/sct", tmp_path)


def test_folders_and_files_are_opened(tmp_path):
    """Of results, and of a run that is still training: its latest snapshot."""
    store(tmp_path, "ect")
    folder = tmp_path / "outputs/tiny/runs/ect"
    expected = open_run("ect", tmp_path).sample(2)
    assert torch.equal(open_run(folder, tmp_path).sample(2), expected)
    assert torch.equal(open_run(folder / WEIGHTS).sample(2), expected)  # no parameter file is needed
    (folder / "snapshots").mkdir()
    (folder / WEIGHTS).rename(folder / "snapshots/000000064.safetensors")
    (folder / "snapshots/000000032.safetensors").touch()
    assert torch.equal(open_run(folder).sample(2), expected)
    with pytest.raises(
        DataError, match=r"expected weights.safetensors, final/weights.safetensors, unet/.* or snapshots/\*.safetensors"
    ):
        open_run(tmp_path)


def test_a_file_has_the_options_of_the_run_that_it_names(tmp_path):
    entry = {"method": "shortcut", "init": "random", "teacher": "none", "options": {"steps": 4}}
    store(tmp_path, "few", runs={"few": entry})
    file = tmp_path / "outputs/tiny/runs/few" / WEIGHTS
    assert open_run(file, tmp_path).nfes == (1, 2, 4)
    assert open_run(file, tmp_path / "outputs").nfes == (1, 2, 4, 8, 128)  # the method's own, without parameters


def test_rows_of_earlier_weights_are_sampled_with_these(tmp_path):
    entry = {
        "method": "pd", "init": "edm", "teacher": "edm", "options": {"steps": 2, "long": 0}, "train": {"snapshots": 2}
    }  # fmt: skip
    runs = {**PARAMS["runs"], "pd": entry}
    store(tmp_path, "pd", runs=runs)
    assert open_run("pd", tmp_path).nfes == (1,)
    folder = tmp_path / "outputs/tiny/runs/pd"
    (folder / "snapshots").mkdir()
    store(tmp_path / "other", "edm", seed=1)
    (tmp_path / "other/outputs/tiny/runs/edm" / WEIGHTS).rename(folder / "snapshots/000000064.safetensors")
    run = open_run("pd", tmp_path)
    assert run.nfes == (1, 2)
    images = run.sample(2, nfe=2)
    (folder / WEIGHTS).write_bytes((folder / "snapshots/000000064.safetensors").read_bytes())
    assert torch.equal(open_run("pd", tmp_path).sample(2, nfe=2), images)
    assert not torch.equal(open_run("pd", tmp_path).sample(2, nfe=1), run.sample(2, nfe=1))


def test_public_weights_are_opened(tmp_path):
    case = EDM[0]
    file = nvlabs_pickle(tmp_path / "public.pkl", case)
    run = open_run(file)
    assert run.sample(1, sampler=run.sampler(2)).shape == (1, 3, 16, 16)
    assert open_run(file, method="ect").nfes == (1, 2)


def test_half_precision_weights_of_before_there_were_checksums_are_opened(tmp_path):
    store(tmp_path, "ect")
    tensors, meta = checkpoint.load(tmp_path / "outputs/tiny/runs/ect" / WEIGHTS)
    early = {key: value for key, value in meta.items() if key != "inputs"}
    save_file({key: value.half() for key, value in tensors.items()}, tmp_path / "early.safetensors",
              {"meta": json.dumps(early)})  # fmt: skip
    run = open_run(tmp_path / "early.safetensors", profile="raw")
    assert (run.name, run.nfes, run.model.profile, run.model.diffusion.sigma_max) == ("ect", (1, 2), "raw", 20.0)
    now = open_run("ect", tmp_path, profile="raw").sample(4)
    torch.testing.assert_close(run.sample(4).float(), now.float(), rtol=0, atol=4)


@pytest.mark.parametrize(("shape", "batch"), [((1, 8), 500), ((3, 32), 85), ((3, 256), 1)])
def test_large_images_are_drawn_a_few_at_a_time(tmp_path, shape, batch):
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    assert replace(run, model=replace(run.model, shape=ModelShape(*shape, classes=0))).batch == batch


def test_the_batches_are_told(tmp_path):
    store(tmp_path, "ect")
    seen: list[int] = []
    open_run("ect", tmp_path).sample(5, batch=2, on_images=seen.append)
    assert seen == [2, 2, 1]


def test_images_are_saved(tmp_path):
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    run.save(run.sample(4), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
