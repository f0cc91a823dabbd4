"""Exports loaded back, as one who does not have this project would."""

import contextlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from stored import PARAMS, store

from cmcore.assemble.export import PROGRAM, Function, card, export_pipeline, export_program
from cmcore.assemble.results import open_run
from cmcore.closure import ROOT
from cmcore.edge.torchvision_ops import import_torchvision
from cmcore.rng import NoiseSource

PIPELINE = ROOT / "cmcore/edge/diffusers_pipeline.py"
RUNS = {**PARAMS["runs"], "imm": {"method": "imm", "init": "edm", "teacher": "none"}}
SIGMA = torch.tensor([0.1, 1.0, 20.0, 7.0, 2.0], dtype=torch.float64)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "classes"), [("ect", 0), ("edm", 0), ("imm", 0), ("ect", 10)])
def test_the_program_computes_the_same_for_any_batch_size(tmp_path, name, classes):
    store(tmp_path, name, classes=classes, runs=RUNS, conditional=bool(classes))
    run = open_run(name, tmp_path)
    export_program(run, tmp_path / "one.pt2")
    program = torch.export.load(tmp_path / "one.pt2").module()
    told = (torch.tensor([0, 3, 9, 1, 5]),) if classes else ()
    for count in (1, 5):
        inputs = (noise(5, 1, 8, 8)[:count], SIGMA[:count], *(labels[:count] for labels in told))
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), Function(run)(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_pipeline_of_diffusers_draws_the_samples_of_the_run(tmp_path):
    pytest.importorskip("diffusers")
    store(tmp_path, "ect")
    run = open_run("ect", tmp_path)
    export_pipeline(run, tmp_path / "pipe", PIPELINE, nfe=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers about itself
        with contextlib.suppress(ImportError):  # diffusers imports it where it is installed
            import_torchvision()
        from diffusers import DiffusionPipeline

        folder = str(tmp_path / "pipe")
        pipeline = DiffusionPipeline.from_pretrained(
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
