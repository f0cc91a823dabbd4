"""Runs that train low-rank adapters: what moves, what is stored, and a base to which one is added without training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import PARAMS, SILENT, Made
from torch import Tensor

from cmcore.assemble.adapters import CONFIG, TENSORS, load_adapter, save_peft
from cmcore.assemble.imports import WeightsError, import_run
from cmcore.assemble.models import load_model
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.training import WEIGHTS, fingerprint
from cmcore.config import ConfigError, merge
from cmcore.errors import DataError
from cmcore.train import checkpoint

LORA = {"adapter": {"rank": 4, "alpha": 8.0}, "lr": 1e-2}
RUNS: dict[str, Any] = {
    "edm": {"method": "edm", "init": "random", "teacher": "none"},
    "other": {"method": "edm", "init": "edm", "teacher": "none", "train": {"seed": 7, "lr": 1e-2}},  # tuned apart
    "lcm": {
        "method": "lcm", "init": "edm", "teacher": "edm", "options": {"N": 20, "k": 4, "mu": 0.9}, "train": LORA,
    },
    "pd": {
        "method": "pd", "init": "edm", "teacher": "edm", "options": {"steps": 4, "long": 0},
        "train": LORA | {"snapshots": 3},
    },
    "moved": {"method": "lcm", "init": "other", "teacher": "lcm", "weights": {"adapter": 1.0}},
}  # fmt: skip


def project(changes: dict[str, Any] | None = None, *, conditional: bool = False) -> Project:
    train = PARAMS["train"] | {"images": 1024, "log_images": 256, "snapshots": 2, "micro_batch": 40}
    params = PARAMS | {"train": train, "runs": RUNS, "conditional": conditional}
    return parse_project(merge(params, {"runs": changes or {}}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("adapters"), project())


@pytest.mark.parametrize("profile", ["raw", "ema"])
def test_weights_are_those_of_the_base_and_a_product_of_low_rank(made: Made, profile: str):
    base, found = made.weights("edm"), made.weights("lcm", profile)
    assert found.keys() == base.keys()
    layers = [name for name in base if name.endswith("weight") and base[name].ndim == 2]
    assert len(layers) > 5
    for name, tensor in base.items():
        change = found[name] - tensor
        if name not in layers:
            assert torch.equal(found[name], tensor), name
        elif name != "embedding.label.weight":
            values = torch.linalg.svdvals(change.double())
            assert float(values[0]) > 1e-4, name
            assert bool((values[4:] < 1e-3 * values[0]).all()), name


def test_the_weight_file_holds_the_adapter_of_the_evaluated_profile(made: Made):
    file, base = made.final("lcm") / WEIGHTS, made.weights("edm")
    adapter = load_adapter(file)
    for name, tensor in adapter.merge_into(base, 1.0).items():
        torch.testing.assert_close(tensor, made.weights("lcm")[name], rtol=1e-5, atol=1e-6)
    assert checkpoint.header(file)["adapter"] == {"rank": 4, "alpha": 8.0, "targets": ".*", "base": "edm"}
    summary = json.loads((made.final("lcm") / "summary.json").read_text())
    assert summary["adapter_parameters"] == sum(tensor.numel() for tensor in adapter.tensors.values())
    assert 0 < summary["adapter_parameters"] < summary["parameters"]
    with pytest.raises(DataError, match=r"expected the weights of a run with train.adapter"):
        load_adapter(made.final("edm") / WEIGHTS)


def test_a_stage_begins_with_the_adapter_of_the_one_before(made: Made):
    """Progressive distillation copies the average of the student to itself and to its teacher, which has no adapter."""
    base, found = made.weights("edm"), made.weights("pd")
    change = found["input.weight"] - base["input.weight"]
    assert 0 < int(torch.linalg.matrix_rank(change.double(), rtol=1e-3)) <= 4


def test_an_adapter_moves_a_base_that_was_tuned_apart(made: Made):
    edm, other, lcm, moved = (made.weights(name) for name in ("edm", "other", "lcm", "moved"))
    assert not torch.equal(edm["input.weight"], other["input.weight"])
    for name in edm:
        torch.testing.assert_close(moved[name] - other[name], lcm[name] - edm[name], rtol=1e-3, atol=1e-6)
    summary = json.loads((made.final("moved") / "summary.json").read_text())
    assert (summary["images"], summary["init"], summary["teacher"]) == (0, "other", "lcm")
    assert summary["source"]["file"] == "the adapter of lcm"


@pytest.mark.parametrize("scales", [[2.0, 2.0], [1.0, 3.0]])
def test_an_adapter_of_a_guided_student_moves_another_base(tmp_path: Path, scales: list[float]):
    """Also one that is told the scale, which the base has no input for."""
    dropped, guided = {"options": {"label_dropout": 0.2}}, {"options": {"guidance": scales}}
    changes = {"edm": dropped, "other": dropped, "lcm": guided, "moved": guided}
    made = Made(tmp_path, project(changes, conditional=True))
    edm, other, lcm, moved = (made.weights(name) for name in ("edm", "other", "lcm", "moved"))
    assert (moved.keys() == other.keys()) == (scales[0] == scales[1])
    for name, tensor in moved.items():
        before, base = (known[name] if name in known else torch.zeros_like(tensor) for known in (edm, other))
        torch.testing.assert_close(tensor - base, lcm[name] - before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_it_is_scaled(made: Made, tmp_path: Path, scale: float):
    scaled = project({"moved": {"weights": {"adapter": scale}}})
    run, inputs = scaled.run("moved"), made.inputs("moved", scaled)
    assert fingerprint(run, inputs) != fingerprint(made.project.run("moved"), inputs)
    found = load_model(import_run(run, inputs, tmp_path, **SILENT) / WEIGHTS).denoiser.net.state_dict()
    other, moved = made.weights("other"), made.weights("moved")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor - other[name], scale * (moved[name] - other[name]), rtol=1e-3, atol=1e-6)
    assert scale or all(torch.equal(found[name], other[name]) for name in other)


def test_a_folder_of_peft_names_layers_as_peft_does(made: Made, tmp_path: Path):
    adapter = load_adapter(made.final("lcm") / WEIGHTS)
    save_peft(adapter, tmp_path)
    named, config = load_file(tmp_path / TENSORS), json.loads((tmp_path / CONFIG).read_text())
    assert tuple(named["base_model.model.blocks.0.layer0.lora_A.weight"].shape) == (4, 16)
    assert tuple(named["base_model.model.blocks.0.layer0.lora_B.weight"].shape) == (16, 4)
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 8.0, "none")
    assert {f"base_model.model.{layer}.lora_{part}.weight" for layer in config["target_modules"] for part in "AB"} == {
        *named
    }
    back, base = load_adapter(tmp_path / TENSORS), made.weights("edm")
    for name, tensor in back.merge_into(base, 1.0).items():
        assert torch.equal(tensor, adapter.merge_into(base, 1.0)[name]), name


def test_a_run_takes_its_adapter_from_a_folder(made: Made, tmp_path: Path):
    save_peft(load_adapter(made.final("lcm") / WEIGHTS), tmp_path)
    entry = {"teacher": "none", "weights": {"adapter": 1.0, "file": str(tmp_path / TENSORS)}}
    changed = project({"moved": entry})
    final = import_run(changed.run("moved"), made.inputs("moved", changed), tmp_path / "work", **SILENT)
    for name, tensor in load_model(final / WEIGHTS).denoiser.net.state_dict().items():
        assert torch.equal(tensor, made.weights("moved")[name]), name


def peft(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder / TENSORS


PAIR = {
    f"base_model.model.input.lora_{part}.weight": torch.ones(shape) for part, shape in (("A", (2, 64)), ("B", (16, 2)))
}


@pytest.mark.parametrize(
    ("config", "factor"), [({}, 4.0), ({"use_rslora": True}, 4 * 2**0.5), ({"alpha_pattern": {"input": 1}}, 1.0)]
)
def test_the_scale_is_that_of_peft(made: Made, tmp_path: Path, config: dict[str, Any], factor: float):
    """B A is a matrix of twos: times alpha/r, or alpha/sqrt(r)."""
    base = made.weights("edm")
    found = load_adapter(peft(tmp_path, PAIR, **config)).merge_into(base, 1.0)
    torch.testing.assert_close(found["input.weight"], base["input.weight"] + factor)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (PAIR, {"use_dora": True}, "use_dora: expected False, got True"),
        (PAIR, {"bias": "all"}, "bias: expected none, got 'all'"),
        (PAIR, {"r": None}, "expected numbers r and lora_alpha, got None and 4"),
        ({"unet.down.weight": torch.ones(2)}, {}, r"expected tensors base_model.model.<layer>.lora_A.weight"),
        (dict([*PAIR.items()][:1]), {}, r"expected tensors base_model.model.<layer>.lora_A.weight"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], message: str
):
    with pytest.raises(DataError, match=message):
        load_adapter(peft(tmp_path, tensors, **config))


def test_an_adapter_of_another_network_is_refused(made: Made, tmp_path: Path):
    tensors = {name: torch.ones(2, 9) if "lora_A" in name else tensor for name, tensor in PAIR.items()}
    file = peft(tmp_path, tensors)
    changed = project({"moved": {"teacher": "none", "weights": {"adapter": 1.0, "file": str(file)}}})
    with pytest.raises(WeightsError, match=r"a layer input with a weight \(16, 9\); the network has one of \(16, 64\)"):
        import_run(changed.run("moved"), made.inputs("moved", changed), tmp_path / "work", **SILENT)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"moved": {"init": "random"}}, "runs.moved.init"),
        ({"moved": {"teacher": "other"}}, "runs.moved.teacher"),
        ({"moved": {"teacher": "none"}}, "runs.moved.teacher"),
        ({"moved": {"weights": {"file": "a.safetensors"}}}, "runs.moved.teacher"),
        ({"moved": {"weights": {"part": "ema"}}}, "runs.moved.weights.part"),
        ({"moved": {"weights": {"adapter": None}}}, "runs.moved.weights.file"),
        ({"lcm": {"train": {"adapter": {"rank": 0}}}}, "runs.lcm.train.adapter.rank"),
        ({"lcm": {"train": {"adapter": {"alpha": 0.0}}}}, "runs.lcm.train.adapter.alpha"),
        ({"lcm": {"train": {"adapter": {"targets": "("}}}}, "runs.lcm.train.adapter.targets"),
        ({"edm": {"train": {"adapter": {"rank": 4}}}}, "runs.edm.train.adapter"),
    ],
)
def test_wrong_parameters_name_their_key(changes: dict[str, Any], path: str):
    with pytest.raises(ConfigError) as error:
        project(changes)
    assert error.value.path == path
