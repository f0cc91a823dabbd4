"""A trained run opened from Python."""

from pathlib import Path

import pytest
import torch
import yaml

from cmcore.assemble.models import ModelShape, build_denoiser, load_model, save_model
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.results import TrainedRun, open_run
from cmcore.assemble.training import WEIGHTS
from cmcore.config import ConfigError
from cmcore.errors import DataError
from cmcore.sample.stream import generate

PARAMS = {
    "workload": "tiny",
    "data": {"source": "digits"},
    "diffusion": {"sigma_max": 20.0},
    "net": {"kind": "mlp", "hidden": 16, "blocks": 1, "residual_gain": 1.0},
    "train": {"images": 64, "batch": 64},
    "runs": {
        "edm": {"method": "edm", "init": "random", "teacher": "none"},
        "ect": {"method": "ect", "init": "edm", "teacher": "none", "sample": {"two_step": 1.5}},
    },
    "eval": {"teacher_steps": 3},
}


def store(folder: Path, name: str, classes: int = 0, **changes: object) -> Project:
    """The parameter file, and weights of a run that nobody trained, where a trained run has them."""
    params = PARAMS | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project = parse_project(params)
    run, shape = project.run(name), ModelShape(1, 8, classes)
    denoiser = build_denoiser(run.net, shape, run.diffusion, boundary=run.objective.traits.boundary)
    path = folder / "outputs/tiny/runs" / name / WEIGHTS
    path.parent.mkdir(parents=True)
    # A new network's last layer is zero: with these weights every image depends on all that the network sees.
    noise = torch.Generator().manual_seed(0)
    weights = {key: v + 0.3 * torch.randn(v.shape, generator=noise) for key, v in denoiser.net.state_dict().items()}
    save_model(path, {"ema": weights, "raw": {key: v / 2 for key, v in weights.items()}}, run, shape, {})
    return project


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
    latents = TrainedRun(opened.run, opened.model, opened.samplers, latent=True).sample(2)
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
