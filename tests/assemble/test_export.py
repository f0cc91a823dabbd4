"""Exports loaded back, as one who does not have this project would."""

import importlib.util
import json
import warnings
from typing import Any

import pytest
import torch
from exports import ADM, EDM2, PIPELINE, RUNS, diffusers_library, noise
from public_weights import CASES, inputs, weights
from safetensors.torch import load_file
from stored import PARAMS, store

from cmcore.assemble.export import (
    GRID,
    PROGRAM,
    UNET,
    Function,
    Map,
    card,
    export_onnx,
    export_pipeline,
    export_program,
    timesteps,
)
from cmcore.assemble.results import open_run
from cmcore.closure import ROOT
from cmcore.config import read
from cmcore.diffusion.grids import karras_grid
from cmcore.nets import adm
from cmcore.nets.public import diffusers as layout
from cmcore.nets.public import openai
from cmcore.nets.public.base import MappingError
from cmcore.rng import NoiseSource
from cmcore.sample.fewstep import Multistep

SIGMA = torch.tensor([0.1, 1.0, 20.0, 7.0, 2.0], dtype=torch.float64)


def library(name: str, extra: str) -> Any:
    """A package of an extra, or a skip that names it."""
    return pytest.importorskip(name, reason=f"{name} is not installed (the extra '{extra}')")


@pytest.mark.parametrize(
    ("name", "classes", "net"),
    [("ect", 0, "mlp"), ("edm", 0, "mlp"), ("imm", 0, "mlp"), ("ect", 10, "mlp"), ("ect", 0, "edm2")],
)
def test_the_program_computes_the_same_for_any_batch_size(tmp_path, name, classes, net):
    known = {"mlp": PARAMS["net"], "edm2": EDM2}[net]
    store(tmp_path, name, classes=classes, runs=RUNS, conditional=bool(classes), net=known)
    run = open_run(name, tmp_path)
    export_program(run, tmp_path / "one.pt2")
    program = torch.export.load(tmp_path / "one.pt2").module()
    told = (torch.tensor([0, 3, 9, 1, 5]),) if classes else ()
    for count in (1, 5):
        inputs = (noise(5, 1, 8, 8)[:count], SIGMA[:count], *(labels[:count] for labels in told))
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), Function(run)(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "nfe", "classes"), [("ect", 0, 0), ("ect", 2, 10), ("meanflow", 2, 0)])
def test_onnxruntime_computes_the_same_for_any_batch_size(tmp_path, name, nfe, classes):
    """Within 1e-5 of the largest number: both are float32, and sum in another order."""
    for package in ("onnx", "onnxscript"):
        library(package, "onnx")
    runtime = library("onnxruntime", "onnx")
    store(tmp_path, name, classes=classes, runs=RUNS, conditional=bool(classes))
    run = open_run(name, tmp_path)
    export_onnx(run, tmp_path / "one.onnx", nfe=nfe)
    session = runtime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    module = Map(run, run.row(nfe)) if nfe else Function(run)
    for count in (1, 5):
        x, sigma = noise(5, 1, 8, 8)[:count].float(), SIGMA[:count].float()
        drawn = noise(5, 2 if name == "ect" else 1, 1, 8, 8)[:count].float()
        given = {"noise": drawn} if nfe else {"x": x, "sigma": sigma}
        given |= {"labels": torch.tensor([0, 3, 9, 1, 5])[:count]} if classes else {}
        (found,) = session.run(None, {key: value.numpy() for key, value in given.items()})
        with torch.no_grad():
            expected = module(*given.values())
        assert found.dtype == "float32"
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    said = session.get_modelmeta().custom_metadata_map
    assert (said["run"], said["sigma_min"], said["sigma_max"]) == (name, "0.002", "20.0")
    assert nfe or (said["levels_1"], said["levels_2"]) == ("20.0", "20.0,1.5")
    assert str(ROOT).encode() not in (tmp_path / "one.onnx").read_bytes()


@pytest.mark.parametrize("name", ["ect", "meanflow", "imm"])
def test_a_map_is_its_sampler(tmp_path, name):
    """In float32, where the sampler is in float64."""
    store(tmp_path, name, runs=RUNS)
    run = open_run(name, tmp_path)
    sampler = run.row(2)
    module = Map(run, sampler)
    assert module.n == (2 if name == "ect" else 1)
    source = NoiseSource(0, range(3))
    drawn = torch.stack([source.normal((1, 8, 8)) for _ in range(module.n)], dim=1)
    with torch.no_grad():
        expected = sampler(run.function(sampler), (1, 8, 8), NoiseSource(0, range(3)))
        torch.testing.assert_close(module(drawn.float()).double(), expected, rtol=1e-5, atol=1e-5)


def test_an_export_without_onnx_says_what_is_missing(tmp_path, monkeypatch):
    store(tmp_path, "ect")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = open_run("ect", tmp_path)
    with pytest.raises(ValueError, match=r"expected the packages of the extra onnx, got no onnx: pip install"):
        export_onnx(run, tmp_path / "one.onnx")


@pytest.mark.parametrize("case", ["openai_shift", "openai_adaptive"])
def test_unet2d_of_diffusers_computes_what_the_public_network_does(case):
    """OpenAI's tensors, as ours, as those of diffusers; its embedding of the noise level is float32."""
    found = openai.read(weights(case), CASES[case]["attributes"])
    shape = layout.Shape(found.channels, found.resolution, found.classes)
    config, tensors = layout.unet2d(read(adm.Config, found.options, "net"), shape, found.tensors)
    net = diffusers_library().UNet2DModel.from_config(config).eval()
    net.load_state_dict(tensors)
    x, c_noise, labels, _ = inputs(case)
    with torch.no_grad():
        F = net.double()(x, c_noise, class_labels=labels if found.classes else None).sample
    expected = torch.tensor(CASES[case]["output"]["values"], dtype=torch.float64)
    torch.testing.assert_close(F.flatten()[::97], expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c_noise": "log"}, "c_noise: expected log1000, the noise level of UNet2DModel, got log"),
        ({"norm": "double"}, "norm: expected one of group, adaptive, got double"),
        ({"channel_mult": (2, 2)}, "channel_mult: expected 1 at first, got 2"),
        ({"group_channels": 1}, r"group_channels: expected one number of groups for all norms, got \[8, 16"),
    ],
)
def test_a_network_that_unet2d_cannot_hold_says_why(change, message):
    config = read(adm.Config, {key: value for key, value in {**ADM, **change}.items() if key != "kind"}, "net")
    with pytest.raises(MappingError, match=message):
        layout.unet2d(config, layout.Shape(1, 8, 0), {})


class Drawn:
    """The noise that a pipeline of diffusers draws from a generator."""

    def __init__(self, seed: int, count: int) -> None:
        self.generator, self.count = torch.Generator().manual_seed(seed), count

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(self.count, *shape, generator=self.generator).double()


@pytest.mark.parametrize(("name", "least"), [("ct", 0.002), ("ect", 0.0)])
def test_the_pipeline_of_consistency_models_draws_the_samples_of_the_run(tmp_path, name, least):
    """ECT has no boundary scalings, which are those of sigma_min = 0."""
    library = diffusers_library()
    store(tmp_path, name, runs=RUNS, net=ADM)
    run, folder = open_run(name, tmp_path), tmp_path / "pipe"
    assert export_pipeline(run, folder, PIPELINE, nfe=2) == ""
    assert {path.name for path in folder.iterdir()} == {"README.md", "model_index.json", "scheduler", "unet"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about itself
        pipeline = library.ConsistencyModelPipeline.from_pretrained(str(folder))
        pipeline.set_progress_bar_config(disable=True)
        places = timesteps(run, run.row(2))
        generator = torch.Generator().manual_seed(5)
        found = pipeline(
            batch_size=3, num_inference_steps=None, timesteps=places, generator=generator, output_type="pt"
        ).images
    assert f"timesteps={places}" in (folder / "README.md").read_text()
    levels = (20.0, ((1 - places[0] / (GRID - 1)) * (20 ** (1 / 7) - least ** (1 / 7)) + least ** (1 / 7)) ** 7)
    assert levels[1] == pytest.approx(1.5, rel=1e-4)
    with torch.no_grad():
        source: Any = Drawn(5, 3)
        x = Multistep(levels, least)(run.function(run.row(2)), (1, 8, 8), source)
    expected = (x / 2 + 0.5).clamp(0, 1)
    assert ((expected > 0) & (expected < 1)).double().mean() > 0.3
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_timesteps_are_places_on_the_scheduler_s_grid(tmp_path):
    store(tmp_path, "ct", runs=RUNS, net=ADM)
    run = open_run("ct", tmp_path)
    grid = karras_grid(GRID, 0.002, 20.0)
    assert timesteps(run, run.row(1)) == [0]
    last, first = timesteps(run, run.row(2))
    assert first == 0
    assert abs(float(grid[last]) - 1.5) <= min(abs(float(grid[last + step]) - 1.5) for step in (-1, 1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ect", "net.kind: expected adm, the layout of UNet2DModel, got mlp"),
        ("imm", "expected multistep sampling of a consistency function, got gamma"),
    ],
)
def test_a_pipeline_of_its_own_says_why(tmp_path, name, reason):
    store(tmp_path, name, runs=RUNS)
    folder = tmp_path / "pipe"
    assert export_pipeline(open_run(name, tmp_path), folder, PIPELINE) == reason
    assert f"It is no ConsistencyModelPipeline: {reason}." in (folder / "README.md").read_text()
    assert not (folder / UNET).exists()


@pytest.mark.slow
def test_the_pipeline_of_diffusers_draws_the_samples_of_the_run(tmp_path):
    library = diffusers_library()
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    export_pipeline(run, tmp_path / "pipe", PIPELINE, nfe=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about itself
        folder = str(tmp_path / "pipe")
        pipeline = library.DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=f"{folder}/pipeline.py", trust_remote_code=True
        )
    z = NoiseSource(0, range(3)).normal((1, 8, 8))
    one = pipeline(batch_size=3, levels=[20.0], latents=z, output_type="pt").images
    source = NoiseSource(0, range(3))
    torch.testing.assert_close(one, run.row(1)(run.function(run.row(1)), (1, 8, 8), source), rtol=1e-6, atol=1e-6)
    drawn = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    two = pipeline(batch_size=3, latents=z, generator=torch.Generator().manual_seed(5), output_type="pt").images
    with torch.no_grad():
        expected = Function(run)(one + (1.5**2 - 0.002**2) ** 0.5 * drawn, torch.full((3,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(two, expected, rtol=1e-6, atol=1e-6)
    assert [image.size for image in pipeline(batch_size=2).images] == [(8, 8)] * 2
    weights = load_file(tmp_path / "pipe/weights.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.denoiser.net.state_dict().items())


def test_the_card_has_the_measured_numbers(tmp_path):
    store(tmp_path, "ect")
    provenance = {"nfe": 2, "samples": 5000, "fingerprint": "abc"}
    text = card(
        open_run("ect", tmp_path), [{"name": "fd_x", "value": 0.84321, "spread": 0.06, "provenance": provenance}]
    )
    assert "| fd_x | 2 | 0.8432 | 0.06 | 5000 | abc |" in text
    assert "Measured" not in card(open_run("ect", tmp_path), [])


def test_a_model_without_levels_has_no_pipeline(tmp_path):
    store(tmp_path, "edm")
    with pytest.raises(ValueError, match="edm: expected a few-step model whose steps begin at noise levels"):
        export_pipeline(open_run("edm", tmp_path), tmp_path / "pipe", PIPELINE)
    assert not (tmp_path / "pipe" / PROGRAM).exists()


def test_the_pipeline_needs_nothing_of_this_project():
    assert "cmcore" not in PIPELINE.read_text(encoding="utf-8").split('"""')[2]


def test_the_index_says_how_it_is_sampled(tmp_path):
    store(tmp_path, "ect")
    export_pipeline(open_run("ect", tmp_path), tmp_path / "pipe", PIPELINE, nfe=2)
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    assert (index["levels"], index["sigma_min"], index["shape"], index["classes"]) == ("20.0,1.5", 0.002, "1,8,8", 0)
