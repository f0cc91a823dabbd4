"""Runs that distil a network of diffusers: described, imported, taught from, adapted, and resumed to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_at
from latent_models import FILES, write_model
from tiny_runs import PARAMS, SILENT, Made

from cmcore.assemble.checks import require_files
from cmcore.assemble.imports import WeightsError, import_run, read_public
from cmcore.assemble.models import load_model
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.results import open_run
from cmcore.assemble.training import WEIGHTS, train_run
from cmcore.commands.import_weights import describe
from cmcore.config import ConfigError, parse_yaml
from cmcore.errors import DataError
from cmcore.nets.diffusers import MODELS
from cmcore.train.settings import AdapterConfig

NOISE = {"sigma_data": 0.5, "sigma_min": 0.0145836, "sigma_max": 7.30732}  # of Stable Diffusion's schedule


def project(folder: Path, **changes: Any) -> Project:
    """What `cmlab import-weights` prints for the folder, with a student of it and a model that was tuned apart."""
    lines = describe(folder, "").splitlines()
    pasted = parse_yaml("\n".join(lines[lines.index("") + 1 :]), "printed")
    ((name, known),) = pasted["runs"].items()
    assert (name, known["method"], pasted["diffusion"]) == ("sd", "edm", NOISE)
    runs = {
        "sd": known,
        "lcm": {"method": "lcm", "init": "sd", "teacher": "sd", "options": {"N": 20, "k": 4, "mu": 0.9}},
        "styled": {"method": "edm", "init": "sd", "teacher": "none"},
        "moved": {"method": "lcm", "init": "styled", "teacher": "lcm", "weights": {"adapter": 1.0}},
    }
    train = PARAMS["train"] | {"images": 96, "batch": 16, "log_images": 32, "snapshots": 1}
    adapted = {"lcm": runs["lcm"] | {"train": {"adapter": {"rank": 2}}}}
    known = PARAMS | {"diffusion": NOISE, "net": pasted["net"], "train": train, "runs": runs | adapted}
    return parse_project(known | changes)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(model: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("sd")
    write_model(root / "sd", model)
    return Made(root, project(root / "sd"))


def test_the_folder_is_described_and_read_as_a_diffusion_model(made: Made, model: str):
    said = describe(made.root / "sd", "").splitlines()
    assert f"{MODELS[model].library} of a diffusion model" in said[0]
    assert said[1:3] == ["images: 1 x 8 x 8, unconditional", "every name and shape matches"]
    run = open_run(made.root / "sd")
    assert (run.name, run.method.traits.few_step) == ("sd", False)
    assert (run.model.diffusion.sigma_min, run.model.diffusion.sigma_max) == (NOISE["sigma_min"], NOISE["sigma_max"])
    assert run.sample(2, nfe=run.nfes[0]).shape == (2, 1, 8, 8)


def test_the_imported_run_has_the_weights_of_the_folder(made: Made, model: str):
    expected, found = read_public(made.root / "sd" / FILES[model]).tensors, made.weights("sd")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("adapter", [AdapterConfig(rank=2), None], ids=["adapter", "whole"])
def test_an_interrupted_student_ends_in_the_same_bits(made: Made, tmp_path: Path, adapter: AdapterConfig | None):
    run = made.project.run("lcm")
    run, inputs = replace(run, train=replace(run.train, adapter=adapter, checkpoint_seconds=0.0)), made.inputs("lcm")
    expected = train_run(run, inputs, tmp_path / "whole", **SILENT)
    with killed_at(64):
        train_run(run, inputs, tmp_path / "broken", **SILENT)
    torch.rand(1)
    found = train_run(run, inputs, tmp_path / "broken", **SILENT)
    for name in (WEIGHTS, "history.jsonl", "summary.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    before, after = made.weights("sd"), load_model(found / WEIGHTS).denoiser.net.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_moves_a_base_that_was_tuned_apart(made: Made):
    sd, styled, lcm, moved = (made.weights(name) for name in ("sd", "styled", "lcm", "moved"))
    changed = [name for name in sd if not torch.equal(lcm[name], sd[name])]
    assert len(changed) > 20
    assert all(not torch.equal(styled[name], sd[name]) for name in changed)
    for name in sd:
        torch.testing.assert_close(moved[name] - styled[name], lcm[name] - sd[name], rtol=1e-3, atol=1e-6)


def test_another_network_or_noise_range_than_the_files_is_refused(made: Made, model: str, tmp_path: Path):
    for changes, path in (
        ({"net": {"kind": "mlp"}}, "runs.sd.net"),
        ({"net": made_net(made, prediction="v_prediction")}, "runs.sd.net"),
        (
            {
                "net": made_net(
                    made, model="unet" if model == "pixart" else "pixart", arguments={"caption_channels": 12}
                )
            },
            "runs.sd.net",
        ),
        ({"diffusion": NOISE | {"sigma_max": 80.0}}, "diffusion.sigma_max"),
    ):
        run = project(made.root / "sd", **changes).run("sd")
        with pytest.raises(ConfigError) as error:
            import_run(run, made.inputs("sd"), tmp_path / "work", **SILENT)
        assert error.value.path == path
    with pytest.raises(ConfigError, match=r"net\.sigma_data: expected diffusion\.sigma_data = 0\.5, got 1\.0"):
        project(made.root / "sd", net=made_net(made, sigma_data=1.0))


def made_net(made: Made, **changes: Any) -> dict[str, Any]:
    config = made.project.run("sd").net.config
    return {"kind": "diffusers", "model": config.model, "arguments": config.arguments, **changes}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "scheduler: rescale_betas_zero_snr: expected False, got True"),
        ({"trained_betas": [0.1] * 1000}, "scheduler: trained_betas: expected None"),
        ({"prediction_type": "sample"}, "net.prediction: expected "),
    ],
)
def test_other_schedules_are_refused(model: str, tmp_path: Path, scheduler: dict[str, Any], message: str):
    write_model(tmp_path, model, **scheduler)
    with pytest.raises(WeightsError, match=message) as error:
        read_public(tmp_path / FILES[model])
    assert "\n" not in str(error.value)


def test_a_folder_without_a_scheduler_is_refused(model: str, tmp_path: Path):
    write_model(tmp_path, model)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(DataError, match=r"scheduler: expected scheduler/scheduler_config\.json beside"):
        read_public(tmp_path / FILES[model])


def test_a_missing_package_is_said_before_any_compute(made: Made, monkeypatch: pytest.MonkeyPatch):
    require_files([made.project.run("lcm")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^runs\.lcm\.net\.kind: needs diffusers, which is not installed"):
        require_files([made.project.run("lcm")])
