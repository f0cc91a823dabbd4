"""EDM2's network pickles: a stream of their layout gives our network, which computes what theirs does."""

import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmcore.assemble.imports import WeightsError, import_run, mismatches, net_of, read_public
from cmcore.assemble.models import load_model, save_empty
from cmcore.assemble.project import parse_project
from cmcore.assemble.training import WEIGHTS, Inputs, train_run
from cmcore.data.sources.prepare import prepare
from cmcore.nets import edm2
from cmcore.nets.public import edm as public_edm
from cmcore.nets.public import edm2 as public
from cmcore.nets.public.base import MappingError
from cmcore.tracking.base import Null

# Blocks of a network with 8 and 16 channels at 16 x 16 and 8 x 8: inputs of the first convolution, outputs, inputs of
# the skip convolution where there is one, attention.
BLOCKS = {
    "enc.16x16_block0": (8, 8, 0, False), "enc.8x8_down": (8, 8, 0, False), "enc.8x8_block0": (16, 16, 8, True),
    "dec.8x8_in0": (16, 16, 0, True), "dec.8x8_in1": (16, 16, 0, False), "dec.8x8_block0": (32, 16, 32, True),
    "dec.8x8_block1": (24, 16, 24, True), "dec.16x16_up": (16, 16, 0, False), "dec.16x16_block0": (24, 8, 24, False),
    "dec.16x16_block1": (16, 8, 16, False),
}  # fmt: skip
ARGUMENTS = {
    "img_resolution": 16, "img_channels": 3, "label_dim": 5, "use_fp16": True, "sigma_data": 0.5, "model_channels": 8,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 4, "dropout": 0.1,
}  # fmt: skip
# As in test_edm2.py, but filled in the order of the public names.
EXPECTED = [-0.0552442576163, 0.106067737735, -0.17542203948, -0.0295419558452, 0.0208709765069, -0.142200798806]


def wave(shape: tuple[int, ...], k: int) -> Tensor:
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(0.37 * n * (1 + 0.01 * k) + k).reshape(shape)


def public_tensors() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "unet.emb_fourier.freqs": (8,), "unet.emb_fourier.phases": (8,), "unet.emb_noise.weight": (16, 8),
        "unet.emb_label.weight": (16, 5), "unet.enc.16x16_conv.weight": (8, 4, 3, 3),
        "unet.out_conv.weight": (3, 8, 3, 3), "unet.out_gain": (), "logvar_fourier.freqs": (128,),
        "logvar_fourier.phases": (128,), "logvar_linear.weight": (1, 128),
    }  # fmt: skip
    for name, (inputs, outputs, skip, attention) in BLOCKS.items():
        parts: dict[str, tuple[int, ...]] = {
            "emb_gain": (), "emb_linear.weight": (outputs, 16), "conv_res0.weight": (outputs, inputs, 3, 3),
            "conv_res1.weight": (outputs, outputs, 3, 3),
        }  # fmt: skip
        if skip:
            parts["conv_skip.weight"] = (outputs, skip, 1, 1)
        if attention:
            parts |= {"attn_qkv.weight": (3 * outputs, outputs, 1, 1), "attn_proj.weight": (outputs, outputs, 1, 1)}
        shapes |= {f"unet.{name}.{part}": shape for part, shape in parts.items()}
    return {
        name: wave(shapes[name], k) if shapes[name] else 0.6 + 0.1 * wave((), k)
        for k, name in enumerate(sorted(shapes))
    }


class Persistent:
    """Pickles as an object whose class comes as source code."""

    function: Any = None

    def __init__(self, state: dict[str, Any], name: str, witness: Path) -> None:
        source = f"open({str(witness)!r}, 'w').close()"
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return Persistent.function, (self.meta,)


def module(named: dict[str, Tensor], name: str, witness: Path, arguments: dict[str, Any]) -> Any:
    """A module with the tensors of some dotted names; those of encoder and decoder are torch's own ModuleDicts."""
    state: dict[str, Any] = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}}
    children: dict[str, dict[str, Tensor]] = {}
    for path, tensor in named.items():
        head, _, rest = path.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = tensor
        elif head in ("freqs", "phases"):
            state["_buffers"][head] = tensor
        else:
            state["_parameters"][head] = nn.Parameter(tensor, requires_grad=False)
    state["_modules"] = {key: module(part, key, witness, {}) for key, part in children.items()}
    if name in ("enc", "dec"):
        container = nn.ModuleDict()
        container.__dict__.update(state)
        return container
    state |= {"_init_args": (), "_init_kwargs": arguments}
    return Persistent(state, name, witness)


def snapshot(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, dtype: torch.dtype = torch.float32, drop: str = "", **more: Any
) -> Path:
    """A file of the layout of EDM2's network snapshots."""
    persistence = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise AssertionError('run')", vars(persistence))
    persistence._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    named = {name: tensor.to(dtype) for name, tensor in public_tensors().items() if name != drop}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        patch.setitem(sys.modules, "torch_utils.persistence", persistence)
        patch.setattr(Persistent, "function", persistence._reconstruct_persistent_obj)
        net = module(named, "Precond", folder / "witness", {**ARGUMENTS, **more})
        data = {"encoder": Persistent({}, "StandardRGBEncoder", folder / "witness"), "ema": net, "loss_fn": None}
        (folder / "network-snapshot.pkl").write_bytes(pickle.dumps(data))
    return folder / "network-snapshot.pkl"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
def test_a_snapshot_gives_our_network_and_its_numbers(
    dtype: torch.dtype, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = read_public(snapshot(tmp_path, monkeypatch, dtype=dtype))
    choice = net_of(found)
    assert (found.kind, found.channels, found.resolution, found.classes) == ("edm2", 3, 16, 5)
    assert (found.sigma_data, found.boundary) == (0.5, False)
    assert mismatches(found, choice) == []
    assert choice.config == edm2.Config(
        model_channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(8,), head_channels=4, dropout=0.1
    )
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    net = edm2.build(choice.config, channels=3, resolution=16, classes=5)
    net.load_state_dict(found.tensors)
    c_noise = torch.tensor([-0.9, 0.1, 0.7], dtype=torch.float64)
    F = net.double().eval()(wave((3, 3, 16, 16), 50), c_noise, torch.tensor([1, 0, 4])).detach()
    torch.testing.assert_close(F.flatten()[:: F.numel() // 6][:6].tolist(), EXPECTED, rtol=tolerance, atol=tolerance)
    assert not (tmp_path / "witness").exists()


def test_a_snapshot_becomes_a_teacher_of_labelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = snapshot(tmp_path, monkeypatch)
    images = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 5)
    student = {"net": {"dropout": 0.4, "dropout_resolution": 8}, "options": {"weighting": "edm"}}
    project = parse_project(
        {
            "workload": "tiny",
            "data": {"source": "array", "path": str(tmp_path / "images.npz"), "resolution": 16, "channels": 3},
            "diffusion": {},
            "conditional": True,
            "net": {"kind": "edm2", **read_public(file).options},
            "train": {"images": 32, "batch": 16, "ema": {"ema": {"power_std": 0.1}}, "snapshots": 1, "lr": 1e-3},
            "runs": {
                "public": {"method": "edm", "init": "random", "teacher": "none", "weights": {"file": str(file)}},
                "ect": {"method": "ect", "init": "public", "teacher": "none", **student},
            },
        }
    )
    prepare(project.sections.data, tmp_path / "data")
    save_empty(tmp_path / "random", "random")
    quiet: dict[str, Any] = {"tracker": Null(), "on_progress": lambda *_: None}
    run = project.run("public")
    data, empty = tmp_path / "data", tmp_path / "random"
    teacher = import_run(run, Inputs(data, empty, empty), tmp_path / "a", **quiet) / WEIGHTS
    final = train_run(project.run("ect"), Inputs(data, teacher, empty), tmp_path / "b", **quiet)
    before, after = load_model(teacher).denoiser.net.state_dict(), load_model(final / WEIGHTS).denoiser.net.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.endswith(("freqs", "phases")), name


def test_the_shape_is_read_from_the_tensors_alone():
    named = public_tensors()
    found = public.read(named, {"head_channels": 4})
    assert found.options["channel_mult"] == [1, 2]
    assert found.options["attention_resolutions"] == [8]
    assert (found.options["model_channels"], found.options["blocks"], found.options["head_channels"]) == (8, 1, 4)
    wide = {**named, "unet.emb_noise.weight": torch.zeros(24, 8), "unet.emb_fourier.freqs": torch.zeros(8)}
    assert public.read(wide, {}).options["embedding_mult"] == 3


def test_it_is_told_from_the_other_families():
    named = public_tensors()
    assert public.recognise(named, {})
    assert not public.recognise({name: t for name, t in named.items() if name != "unet.out_gain"}, {})
    assert not public.recognise({"model.map_noise.freqs": torch.zeros(4)}, {"class_name": "EDMPrecond"})
    assert public_edm.recognise({}, {"class_name": "EDMPrecond", "model_type": "SongUNet"})


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = read_public(snapshot(tmp_path, monkeypatch, drop="unet.dec.8x8_in1.conv_res1.weight"))
    assert mismatches(found, net_of(found)) == ["missing: decoder.8x8_in1.conv1.weight (16, 16, 3, 3)"]
    stranger = {**public_tensors(), "unet.enc.8x8_block0.extra.weight": torch.zeros(1)}
    assert public.read(stranger, ARGUMENTS).unknown == ["unet.enc.8x8_block0.extra.weight"]
    with pytest.raises(MappingError, match=r"resample_filter: expected \[1, 1\], got \[1, 3, 3, 1\]"):
        public.read(public_tensors(), {**ARGUMENTS, "resample_filter": [1, 3, 3, 1]})
    with pytest.raises(WeightsError, match=r"expected tensors for output\.weight, got none"):
        read_public(snapshot(tmp_path, monkeypatch, drop="unet.out_conv.weight"))
