"""Public weight files as runs: what they become, what they serve for, and what is refused before any compute."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from public_weights import CASES, inputs, nvlabs_pickle, weights
from safetensors.torch import save_file
from tiny_runs import SILENT

from cmcore.assemble.checks import require_files
from cmcore.assemble.imports import WeightsError, import_run, read_public, section
from cmcore.assemble.models import ModelShape, build_denoiser, load_model, save_empty, save_model
from cmcore.assemble.project import Project, parse_project
from cmcore.assemble.summary import SUMMARY, file_digest
from cmcore.assemble.training import HISTORY, WEIGHTS, Inputs, fingerprint, train_run
from cmcore.budget.machines import MACHINES
from cmcore.budget.plan import Setting, plan
from cmcore.commands.import_weights import describe
from cmcore.config import ConfigError
from cmcore.data.sources.prepare import prepare
from cmcore.diffusion.precond import Condition
from cmcore.errors import DataError
from cmcore.train import checkpoint

UNET = {
    "kind": "unet", "model_channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [8],
    "augment_dim": 9, "dropout": 0.0,
}  # fmt: skip
ADM = {
    "kind": "adm", "c_noise": "log1000", "model_channels": 32, "channel_mult": [1, 1, 2], "blocks": 1,
    "attention_resolutions": [8, 4], "head_channels": 16, "norm": "group", "group_channels": 1, "dropout": 0.0,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"edm": {}, "ect": {}, "cd": {"options": {"distance": "l2"}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared images of 3 x 16 x 16, the empty weight file, and a public file of each kind."""
    root = tmp_path_factory.mktemp("imports")
    np.save(root / "images.npy", np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8))
    prepare(edm(root).sections.data, root / "data")
    save_empty(root / "random.safetensors", "random")
    nvlabs_pickle(root / "edm.pkl", "ddpmpp")
    torch.save(weights("openai_shift"), root / "cm.pt")
    return root


def project(root: Path, net: dict[str, Any], weights: dict[str, Any], method: str = "edm", **runs: Any) -> Project:
    """A parameter file whose run `public` is the import."""
    return parse_project(
        {
            "workload": "tiny",
            "data": {"source": "array", "path": str(root / "images.npy"), "resolution": 16, "channels": 3},
            "diffusion": {},
            "net": net,
            "train": {"images": 32, "batch": 16, "lr": 1e-3, "ema": {"ema": {"half_life": 64.0}}, "snapshots": 1},
            "runs": {
                "public": {
                    "method": method,
                    "init": "random",
                    "teacher": "none",
                    "weights": weights,
                    **OPTIONS[method],
                },
                **runs,
            },
        }
    )


def edm(root: Path, net: dict[str, Any] | None = None, **runs: Any) -> Project:
    return project(root, UNET | (net or {}), {"file": str(root / "edm.pkl")}, **runs)


def cm(root: Path, method: str = "cd") -> Project:
    return project(root, ADM, {"file": str(root / "cm.pt")}, method)


def start(root: Path) -> Inputs:
    empty = root / "random.safetensors"
    return Inputs(root / "data", empty, empty)


def imported(root: Path, made: Project, folder: Path) -> Path:
    return import_run(made.run("public"), start(root), folder, **SILENT)


def test_a_teacher_from_an_nvlabs_pickle(root: Path, tmp_path: Path):
    final = imported(root, edm(root), tmp_path)
    model = load_model(final / WEIGHTS)
    x, c_noise, _, augment = inputs("ddpmpp")
    with torch.no_grad():
        F = model.denoiser.net.double()(x, c_noise, Condition(None, augment))
    assert F.std().item() == pytest.approx(CASES["ddpmpp"]["output"]["std"], rel=1e-6)
    assert model.denoiser.epsilon == 0
    assert model.meta["source"] == {
        "file": "edm.pkl", "sha256": file_digest(root / "edm.pkl"), "part": "ema",
        "family": "EDM's DDPM++ (EDMPrecond)",
    }  # fmt: skip
    summary = json.loads((final / SUMMARY).read_text())
    assert (summary["images"], summary["parameters"]) == (0, 48_347)
    assert summary["source"] == model.meta["source"]
    assert (final / HISTORY).read_bytes() == b""
    assert (final / WEIGHTS).read_bytes() == (imported(root, edm(root), tmp_path / "again") / WEIGHTS).read_bytes()


def test_a_consistency_model_from_an_openai_state_dict(root: Path, tmp_path: Path):
    model = load_model(imported(root, cm(root), tmp_path) / WEIGHTS)
    x = inputs("openai_shift")[0]
    sigma = torch.full((2,), model.diffusion.sigma_min, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.denoiser(x, sigma), x)  # the boundary form
    assert model.denoiser.coordinate == "log1000"
    diffusion = load_model(imported(root, cm(root, "edm"), tmp_path / "edm") / WEIGHTS)
    assert diffusion.denoiser.epsilon == 0


@pytest.mark.parametrize("method", ["cd", "ect"])
def test_it_serves_as_teacher_and_as_initial_weights(root: Path, tmp_path: Path, method: str):
    teaching = "public" if method == "cd" else "none"
    run = {"method": method, "init": "public", "teacher": teaching, "net": {"dropout": 0.1}, **OPTIONS[method]}
    made = edm(root, student=run)
    teacher = imported(root, made, tmp_path / "teacher") / WEIGHTS
    use = Inputs(root / "data", teacher, teacher)
    first, last = (
        load_model(teacher),
        load_model(train_run(made.run("student"), use, tmp_path / "s", **SILENT) / WEIGHTS),
    )
    for (name, a), b in zip(first.denoiser.net.named_parameters(), last.denoiser.net.parameters(), strict=True):
        if "augment" not in name:
            assert 0 < (a - b).abs().max() < 0.02, name


def test_the_fingerprint_follows_the_file_and_not_its_place(root: Path, tmp_path: Path):
    run = edm(root).run("public")
    (tmp_path / "moved.pkl").write_bytes((root / "edm.pkl").read_bytes())
    nvlabs_pickle(tmp_path / "other.pkl", "ddpmpp", dropout=0.2)
    prints = [
        fingerprint(project(root, UNET, {"file": str(file)}).run("public"), start(root))
        for file in (root / "edm.pkl", tmp_path / "moved.pkl", tmp_path / "other.pkl")
    ]
    assert prints[0] == prints[1] == fingerprint(run, start(root))
    assert prints[2] != prints[0]


def own_file(root: Path, path: Path, dtype: torch.dtype = torch.float16, **meta: Any) -> dict[str, torch.Tensor]:
    """A weight file of this project in another floating-point type, with two profiles; the result is the averages."""
    run = edm(root).run("public")
    shape, random = ModelShape(3, 16, 0), torch.Generator().manual_seed(1)
    net = build_denoiser(run.net, shape, run.diffusion, boundary=False).net
    named = {name: torch.randn(t.shape, generator=random).to(dtype) for name, t in net.state_dict().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    save_model(path, {"ema": named, "raw": zeros}, run, shape, {"images": 64, "fingerprint": "0", **meta})
    return named


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_teacher_from_a_file_of_this_project(root: Path, tmp_path: Path, dtype: torch.dtype):
    file = tmp_path / "own.safetensors"
    named = own_file(root, file, dtype)
    model = load_model(imported(root, project(root, UNET, {"file": str(file)}), tmp_path / "run") / WEIGHTS)
    loaded = model.denoiser.net.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in named.items())
    assert model.meta["source"]["family"] == "this project's unet of the method edm"
    raw = project(root, UNET, {"file": str(file), "part": "raw"})
    zeros = load_model(imported(root, raw, tmp_path / "raw") / WEIGHTS).denoiser.net.state_dict()
    assert not any(tensor.any() for tensor in zeros.values())
    text = describe(file, "")
    assert "every name and shape matches" in text
    pasted = yaml.safe_load(text.partition("runs:")[2].partition("#")[0])["own"]
    assert pasted["weights"] == {"file": str(file), "sha256": file_digest(file)}


def test_a_file_of_before_there_were_checksums(root: Path, tmp_path: Path):
    named, file = own_file(root, tmp_path / "new.safetensors"), tmp_path / "early.safetensors"
    meta = checkpoint.header(tmp_path / "new.safetensors")
    del meta["inputs"]
    meta["net"]["guidance"] = False
    save_file({f"ema/{name}": tensor for name, tensor in named.items()}, file, {"meta": json.dumps(meta)})
    with pytest.raises(checkpoint.CheckpointError, match="without a checksum"):
        checkpoint.load(file)
    public = read_public(file)
    assert all(torch.equal(public.tensors[name], tensor.float()) for name, tensor in named.items())
    imported(root, project(root, UNET, {"file": str(file), "sha256": file_digest(file)}), tmp_path / "run")


def test_a_file_of_this_project_that_does_not_serve_is_refused(root: Path, tmp_path: Path):
    file = tmp_path / "own.safetensors"
    own_file(root, file)
    with pytest.raises(WeightsError, match="part: expected one of ema, raw, got 'long'"):
        read_public(file, "long")
    own_file(root, file, inputs=[{"name": "r", "kind": "time", "neutral": 1.0}])
    with pytest.raises(WeightsError, match="expected a network of the image and its noise level alone"):
        read_public(file)
    own_file(root, file, net={"kind": "unet", "guidance": True})
    with pytest.raises(WeightsError, match="expected a network of the image and its noise level alone"):
        read_public(file)
    own_file(root, file, net={"kind": "unet", "guidance": False})  # as headers were before networks had inputs
    assert "guidance" not in read_public(file).options
    checkpoint.save(file, {}, {"kind": "random"})
    with pytest.raises(WeightsError, match="part: expected one of no profile"):
        read_public(file)
    file.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"own\.safetensors: expected a weight file"):
        read_public(file)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "adm", "model_channels": 64}, "net: expected the network of the file, net: {kind: unet"),
    "option": (
        UNET | {"blocks": 2, "augment_dim": 0},
        r"runs\.public\.net: expected augment_dim: 9, blocks: 1 from the file, got 0, 2; to paste: net: \{kind: unet",
    ),
    "meaning": (UNET | {"skip_scale": 1.0}, r"expected skip_scale: 0\.70\d+ from the file, got 1\.0"),
    "noise": (UNET | {"c_noise": "trig"}, "expected c_noise: log from the file"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_parameters_of_another_network_say_what_to_paste(root: Path, tmp_path: Path, what: str):
    net, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        imported(root, project(root, net, {"file": str(root / "edm.pkl")}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_data_and_another_file_are_refused(root: Path, tmp_path: Path):
    nvlabs_pickle(tmp_path / "large.pkl", "ddpmpp", img_resolution=32)
    with pytest.raises(ConfigError, match=r"runs\.public: expected data like .*resolution=32.* got .*resolution=16"):
        imported(root, project(root, UNET, {"file": str(tmp_path / "large.pkl")}), tmp_path / "a")
    other = {"file": str(root / "edm.pkl"), "sha256": "0" * 64}
    with pytest.raises(WeightsError, match=r"edm\.pkl: expected sha256 0{64}, got [0-9a-f]{64}"):
        imported(root, project(root, UNET, other), tmp_path / "b")
    nvlabs_pickle(tmp_path / "ect.pkl", "ddpmpp", class_name="ECMPrecond")
    ect = {"file": str(tmp_path / "ect.pkl")}
    with pytest.raises(ConfigError, match=r"runs\.public\.method: expected a method without the eps-shifted scalings"):
        imported(root, project(root, UNET, ect, "cd"), tmp_path / "c")
    assert imported(root, project(root, UNET, ect, "ect"), tmp_path / "d").exists()


def test_every_tensor_that_does_not_fit_has_a_line(root: Path, tmp_path: Path):
    named = weights("openai_shift")
    named.pop("time_embed.2.bias")
    named["out.0.weight"] = torch.ones(7)
    named["extra"] = torch.ones(1)
    named["out.0.bias"] = torch.full((32,), torch.nan)
    torch.save(named, tmp_path / "cm.pt")
    with pytest.raises(WeightsError) as caught:
        imported(root, project(root, ADM, {"file": str(tmp_path / "cm.pt")}), tmp_path / "run")
    assert str(caught.value).splitlines()[1:] == [
        "missing: embedding.layer1.bias (128,)",
        "unexpected: extra",
        "shape of norm.weight: expected (32,), got (7,)",
        "not finite: norm.bias",
    ]
    assert not (tmp_path / "run").exists()


def test_files_of_nothing_known_are_refused(tmp_path: Path):
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: no network of a known family; its tensors are called w"):
        read_public(tmp_path / "other.pt")
    torch.save({"net": {"w": torch.ones(1)}, "step": 1}, tmp_path / "parts.pt")
    with pytest.raises(WeightsError, match="part: expected one of net, step, got 'ema'"):
        read_public(tmp_path / "parts.pt")
    (tmp_path / "text.pkl").write_text("no weights")
    with pytest.raises(DataError, match=r"text\.pkl"):
        read_public(tmp_path / "text.pkl")


def test_a_missing_file_and_an_init_are_wrong_parameters(root: Path):
    made = project(root, UNET, {"file": "nowhere.pkl"})
    with pytest.raises(ConfigError, match=r"runs\.public\.weights\.file: expected a file .* got 'nowhere\.pkl'"):
        require_files(made.runs.values())
    second = {"method": "edm", "init": "public", "teacher": "none", "weights": {"file": "x"}}
    with pytest.raises(ConfigError, match=r"runs\.second\.init: expected random, as the weights come from a file"):
        edm(root, second=second)
    with pytest.raises(ConfigError, match=r"weights\.sha256"):
        project(root, UNET, {"file": "x", "sha256": "12"})


def test_a_consistency_model_teaches_nobody(root: Path):
    student = {"method": "cd", "init": "public", "teacher": "public", "options": {"distance": "l2"}}
    with pytest.raises(ConfigError, match="cd learns from a diffusion model; 'public' is none"):
        project(root, ADM, {"file": "x"}, "cd", student=student)


def test_a_plan_says_that_it_takes_no_training(root: Path):
    plans = plan(
        edm(root, ect={"method": "ect", "init": "public", "teacher": "none"}), Setting(MACHINES["h100"]), root / "data"
    )
    public, ect = plans
    assert public.parameters == ect.parameters == 48_347
    assert (public.images, public.seconds, public.operations, len(public.passes)) == (0, 0, 0, 0)
    assert ect.seconds > 0


def test_what_is_printed_can_be_pasted(root: Path):
    text = describe(root / "edm.pkl", "ema")
    assert "EDM's DDPM++ (EDMPrecond), 48,347 parameters" in text
    assert "every name and shape matches" in text
    net = section(read_public(root / "edm.pkl"))
    assert f"net: {net}\nconditional: false\n" in text
    assert edm(root, yaml.safe_load(net)).run("public").net.config.channel_mult == (1, 2)
    assert file_digest(root / "edm.pkl") in text
