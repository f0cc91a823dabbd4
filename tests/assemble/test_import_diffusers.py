"""Consistency models of diffusers as weights here: the same tensors, the same outputs, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import ADM, PIPELINE, RUNS, diffusers_library, noise
from safetensors.torch import load_file, save_file
from stored import PARAMS, store

from cmcore.assemble.export import UNET, export_pipeline
from cmcore.assemble.imports import WeightsError, fitting, mismatches, net_of, read_public
from cmcore.assemble.models import ModelShape
from cmcore.assemble.project import parse_project
from cmcore.assemble.results import TrainedRun, open_run
from cmcore.commands.import_weights import describe
from cmcore.commands.place import CommandError
from cmcore.config import ConfigError
from cmcore.errors import DataError

LABELS = torch.tensor([0, 3, 9, 1, 5])


def exported(tmp_path: Path, name: str, classes: int = 0) -> tuple[TrainedRun, Path]:
    """A run with weights, and the folder that diffusers opens."""
    store(tmp_path, name, runs=RUNS, net=ADM, classes=classes, conditional=bool(classes))
    run, folder = open_run(name, tmp_path), tmp_path / "pipe"
    assert export_pipeline(run, folder, PIPELINE) == ""
    return run, folder


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("name", "classes"), [("ct", 0), ("ct", 10), ("ect", 0)])
def test_what_was_exported_comes_back_to_the_bit(tmp_path, name, classes):
    run, folder = exported(tmp_path, name, classes)
    again = open_run(folder)
    own, found = (one.model.denoiser.net.state_dict() for one in (run, again))
    assert own.keys() == found.keys()
    assert all(torch.equal(own[key], found[key]) for key in own)
    assert again.model.denoiser.epsilon == run.model.denoiser.epsilon
    assert (again.model.diffusion, again.shape) == (run.model.diffusion, run.shape)
    assert torch.equal(again.sample(4, nfe=1, seed=3), run.sample(4, nfe=1, seed=3))


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_a_network_that_diffusers_saved_computes_the_same(tmp_path, shift):
    """In float64; the library's embedding of the noise level is float32."""
    library = diffusers_library()
    torch.manual_seed(0)
    net = library.UNet2DModel(
        sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=1, attention_head_dim=16, num_class_embeds=10,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"), norm_num_groups=32,
        attn_norm_num_groups=32, resnet_time_scale_shift=shift, downsample_type="resnet", upsample_type="resnet",
    ).eval()  # fmt: skip
    pipeline = library.ConsistencyModelPipeline(net, library.CMStochasticIterativeScheduler())
    pipeline.save_pretrained(tmp_path / "hub", safe_serialization=True)
    public = read_public(tmp_path / "hub" / UNET)
    assert mismatches(public, net_of(public)) == []
    assert public.classes == 10
    ours = open_run(tmp_path / "hub")
    assert (ours.method.traits.few_step, ours.model.denoiser.epsilon, ours.model.diffusion.sigma_max) == (
        True, 0.002, 80.0,
    )  # fmt: skip
    x, c_noise = noise(5, 3, 16, 16), torch.tensor([-1553.0, -200.0, 0.0, 700.0, 1095.5], dtype=torch.float64)
    with torch.no_grad():
        expected = net.double()(x, c_noise, class_labels=LABELS).sample
        found = ours.model.denoiser.net.double()(x, c_noise, LABELS)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_it_serves_as_weights_of_a_run(tmp_path):
    run, folder = exported(tmp_path, "ct")
    public = read_public(folder / UNET)

    def project(**changes: Any) -> Any:
        entry = {"method": "cd", "init": "random", "teacher": "none", "options": {"distance": "l2"}}
        known = {
            **PARAMS,
            "net": {"kind": public.kind, **public.options},
            "runs": {"public": {**entry, "weights": {"file": str(folder / UNET)}}},
        }
        return parse_project(known | changes).run("public")

    tensors = fitting(project(), public, ModelShape(1, 8, 0))
    assert all(torch.equal(tensors[key], value) for key, value in run.model.denoiser.net.state_dict().items())
    for key, value in (("sigma_max", 80.0), ("sigma_data", 0.4), ("rho", 6.0)):
        with pytest.raises(ConfigError, match=rf"diffusion\.{key}: expected .*, got {value}"):
            fitting(project(diffusion={"sigma_max": 20.0, key: value}), public, ModelShape(1, 8, 0))


def test_it_is_described_by_its_folder(tmp_path):
    _, folder = exported(tmp_path, "ct")
    said = describe(folder, "").splitlines()
    assert said[0].startswith("diffusion_pytorch_model.safetensors: diffusers' UNet2DModel of a consistency model, ")
    assert said[1:3] == ["images: 1 x 8 x 8, unconditional", "every name and shape matches"]
    assert "pipe: {method: cd, " in said[-1]
    assert f"weights: {{file: {folder / UNET}, sha256: " in said[-1]


UNET_CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WRONG = [
    (UNET_CONFIG, {"downsample_type": "conv"}, "downsample_type: expected resnet, got conv"),
    (UNET_CONFIG, {"freq_shift": 1}, "freq_shift: expected 0, got 1"),
    (UNET_CONFIG, {"norm_num_groups": 3}, "attn_norm_num_groups: expected 3, got 1"),
    (UNET_CONFIG, {"norm_num_groups": 3, "attn_norm_num_groups": 3}, "norm_num_groups: expected at most 32"),
    (UNET_CONFIG, {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types: expected "),
    (UNET_CONFIG, {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift: expected one of default, "),
    (UNET_CONFIG, {"sample_size": None}, "expected a complete config.json of a UNet2DModel"),
    (UNET_CONFIG, {"block_out_channels": "ab"}, "expected a complete config.json of a UNet2DModel"),
    (UNET_CONFIG, {"_class_name": "UNet3DConditionModel"}, "no network of a known family"),
    (SCHEDULER, {"_class_name": "DDPMScheduler"}, "scheduler: expected CMStochasticIterativeScheduler, got DDPM"),
]


def test_a_folder_without_a_network_is_said_to_have_none(tmp_path):
    with pytest.raises(CommandError, match=rf"^FILE: expected .* with {UNET} or transformer/.*, got {tmp_path}$"):
        describe(tmp_path, "")


@pytest.mark.parametrize(("file", "values", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_another_layout_is_refused(tmp_path, file, values, message):
    _, folder = exported(tmp_path, "ct")
    changed(folder, file, **values)
    with pytest.raises(WeightsError, match=message):
        read_public(folder / UNET)


def test_without_its_scheduler_nothing_says_that_it_is_a_consistency_model(tmp_path):
    _, folder = exported(tmp_path, "ct")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(WeightsError, match="scheduler: expected CMStochasticIterativeScheduler, got None"):
        read_public(folder / UNET)


def test_a_missing_or_foreign_tensor_is_named(tmp_path):
    _, folder = exported(tmp_path, "ct")
    tensors = load_file(folder / UNET)
    del tensors["mid_block.attentions.0.to_k.bias"]
    save_file({**tensors, "gate.weight": torch.ones(1)}, folder / UNET)
    public = read_public(folder / UNET)
    assert mismatches(public, net_of(public)) == [
        "missing: decoder.4x4_in0.attention.qkv.bias (48,)", "unexpected: gate.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content"), [(str(UNET), b"no tensors"), (UNET_CONFIG, b"{"), (UNET_CONFIG, b"[1]"), (SCHEDULER, b"[1]")]
)
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, file, content):
    _, folder = exported(tmp_path, "ct")
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=r"expected (weights|JSON|a mapping)") as error:
        read_public(folder / UNET)
    assert "\n" not in str(error.value)


def test_the_part_is_the_network(tmp_path):
    _, folder = exported(tmp_path, "ct")
    with pytest.raises(WeightsError, match="part: expected unet, got 'ema'"):
        open_run(folder, profile="ema")
