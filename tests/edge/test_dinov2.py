"""DINOv2's features with generated weights: against torch's own transformer layers, and EDM2's preprocessing."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from cmcore.config import ConfigError, read
from cmcore.edge import dinov2
from cmcore.edge.dinov2 import load_dinov2
from cmcore.errors import DataError
from cmcore.evaluate.dinov2 import NAMES, Dinov2Extractor, VisionTransformer, preprocessed, transformer
from cmcore.evaluate.settings import Dinov2Config, EvalConfig

WIDTH, DEPTH, GRID = 128, 2, 5


def generated(width: int = WIDTH, depth: int = DEPTH, grid: int = GRID) -> dict[str, Tensor]:
    """Random tensors under the names of the public files."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(shape, generator=rng)

    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, 1 + grid**2, width),
        "mask_token": draw(1, width),
        "patch_embed.proj.weight": draw(width, 3, 14, 14, scale=0.02),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for index in range(depth):
        for name, shape in (
            ("norm1", (width,)), ("norm2", (width,)), ("attn.qkv", (3 * width, width)), ("attn.proj", (width, width)),
            ("mlp.fc1", (4 * width, width)), ("mlp.fc2", (width, 4 * width)),
        ):  # fmt: skip
            state[f"blocks.{index}.{name}.weight"] = draw(*shape) + (1 if "norm" in name else 0)
            state[f"blocks.{index}.{name}.bias"] = draw(shape[0])
        state |= {f"blocks.{index}.{name}.gamma": 1 + draw(width) for name in ("ls1", "ls2")}
    return state


def by_torch(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same network of torch's encoder layers, whose output matrices take up the scales of LayerScale."""
    width = state["cls_token"].shape[2]
    patches = functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    rows, columns = patches.shape[2:]
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    grid = state["pos_embed"][:, 1:].transpose(1, 2).reshape(1, width, side, side)
    if (rows, columns) != (side, side):
        grid = functional.interpolate(grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    tokens = patches.flatten(2).transpose(1, 2) + grid.flatten(2).transpose(1, 2)
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    h = torch.cat([first, tokens], 1)
    for index in range(DEPTH):
        part = {name.removeprefix(f"blocks.{index}."): value for name, value in state.items()}
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict({
            "self_attn.in_proj_weight": part["attn.qkv.weight"],
            "self_attn.in_proj_bias": part["attn.qkv.bias"],
            "self_attn.out_proj.weight": part["ls1.gamma"][:, None] * part["attn.proj.weight"],
            "self_attn.out_proj.bias": part["ls1.gamma"] * part["attn.proj.bias"],
            "linear1.weight": part["mlp.fc1.weight"],
            "linear1.bias": part["mlp.fc1.bias"],
            "linear2.weight": part["ls2.gamma"][:, None] * part["mlp.fc2.weight"],
            "linear2.bias": part["ls2.gamma"] * part["mlp.fc2.bias"],
            **{f"norm{k}.{name}": part[f"norm{k}.{name}"] for k in (1, 2) for name in ("weight", "bias")},
        })  # fmt: skip
        h = layer(h)
    return functional.layer_norm(h[:, 0], (width,), state["norm.weight"], state["norm.bias"], 1e-6)


@pytest.mark.parametrize("side", [GRID, 4, 7])
@torch.no_grad()
def test_features_are_those_of_torchs_own_layers(side: int):
    state = generated()
    x = torch.randn((2, 3, 14 * side, 14 * side), generator=torch.Generator().manual_seed(1))
    found, expected = transformer(state, "here")(x), by_torch(state, x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_large_network_has_the_published_shapes():
    with torch.device("meta"):
        net = VisionTransformer(1024, 24, 37)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["pos_embed"] == (1, 1370, 1024)
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 14, 14)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["blocks.23.mlp.fc2.weight"] == (1024, 4096)
    assert sum(math.prod(shape) for shape in shapes.values()) == 304_368_640, "ViT-L/14: 0.30 billion"


def test_images_are_prepared_as_edm2_does():
    """224 pixels, [0, 1], ImageNet's mean and deviation; grey images are repeated."""
    grey = torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)
    x = preprocessed(grey)
    assert x.shape == (1, 3, 224, 224)
    expected = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(x[0, :, 100, 100], expected, rtol=1e-5, atol=1e-6)
    edge = torch.zeros((1, 3, 448, 448), dtype=torch.uint8)
    edge[..., 224:] = 255
    small = preprocessed(edge)[0, 0] * 0.229 + 0.485
    assert small[50, :100].abs().max() < 1e-5
    assert (small[50, 111] + small[50, 112]).item() == pytest.approx(1, abs=1e-4)
    assert small.max() > 1.001, "bicubic overshoots, and it is not clipped"


@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_a_file_becomes_an_extractor_named_after_size_and_weights(tmp_path: Path, end: str):
    state, path = generated(384, 1), tmp_path / f"weights{end}"
    (torch.save if end == ".pth" else save_file)(state, path)
    found = load_dinov2(Dinov2Config(path=str(path)))
    assert found is not None
    assert (found.name, found.dim) == (f"dinov2_vits14_{found.digest[:8]}", 384)
    images = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = found(images)
    torch.testing.assert_close(features, transformer(state, "")(preprocessed(images)))
    assert found.logits(features) is None
    assert features.std(0).mean() > 1e-4, "different images, different features"
    with pytest.raises(ValueError, match="expected uint8"):
        found(images.float())
    with pytest.raises(DataError, match=r"expected sha256 0{64} \(eval\.dinov2\.sha256\)"):
        load_dinov2(Dinov2Config(path=str(path), sha256="0" * 64))


def test_nothing_is_loaded_unless_asked_for():
    assert load_dinov2(EvalConfig().dinov2) is None
    assert NAMES[1024] == "dinov2_vitl14"


class _Payload:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def test_wrong_files_are_named_and_their_code_never_runs(tmp_path: Path):
    path = tmp_path / "wrong.pth"
    with pytest.raises(DataError, match=r"eval\.dinov2\.path: expected a file of DINOv2's weights"):
        load_dinov2(Dinov2Config(path=str(path)))
    lacking = {name: value for name, value in generated().items() if name != "norm.bias"}
    for content in ({"fc.weight": torch.zeros(2)}, lacking, {**generated(), "cls_token": torch.zeros(1, 1, 130)}):
        torch.save(content, path)
        with pytest.raises(DataError, match=r"wrong\.pth: expected the weights of DINOv2"):
            load_dinov2(Dinov2Config(path=str(path)))
    for junk in (b"junk", pickle.dumps(_Payload())):
        path.write_bytes(junk)
        with pytest.raises(DataError, match=r"wrong\.pth"):
            load_dinov2(Dinov2Config(path=str(path)))
    torch.save(_Payload(), path)
    with pytest.raises(DataError, match=r"wrong\.pth"):
        load_dinov2(Dinov2Config(path=str(path)))


def test_a_failed_download_is_one_line_and_a_cached_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(url: str, target: str, progress: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(DataError, match=r"cannot be downloaded \(no network\); or name a file: eval\.dinov2\.path"):
        load_dinov2(Dinov2Config(download=True))
    torch.save(generated(384, 1), tmp_path / "checkpoints" / dinov2.URL.rpartition("/")[2])
    assert load_dinov2(Dinov2Config(download=True)) is not None


def test_a_wrong_checksum_names_its_key():
    with pytest.raises(ConfigError, match=r"^eval\.dinov2\.sha256: "):
        read(EvalConfig, {"dinov2": {"sha256": "abc"}}, "eval")


def test_the_extractor_measures_beside_the_workloads_own(tmp_path: Path):
    from cmcore.evaluate.records import Source
    from cmcore.evaluate.reference import load_reference, store_features
    from cmcore.evaluate.suite import evaluate_samples

    class Images:
        images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8)).astype(np.uint8)
        labels, classes, digest = np.zeros(12, np.int64), 0, "d" * 64

    config = EvalConfig(
        samples=10,
        scan_samples=10,
        snapshot_samples=10,
        batch=5,
        bootstrap=2,
        kid_subsets=2,
        kid_size=4,
        score_splits=2,
    )
    extractor = Dinov2Extractor(transformer(generated(128, 1), ""), "ab" * 32)
    store_features(Images(), extractor, config, tmp_path)
    source = Source(workload="w", run="r", method="m", fingerprint="f", sampler="s", nfe=1, ema="e", images=1, seed=1)
    samples = torch.from_numpy(255 - Images.images[:10])
    records = evaluate_samples(samples.split(5), [load_reference(tmp_path, extractor, "d" * 64)], source, config)
    assert [record.key for record in records] == ["fd_dinov2", "kid_dinov2", "precision_dinov2", "recall_dinov2"]
    assert records[0].name == f"fd_{extractor.name}"
    assert records[0].value > 0
