"""Latents: what EDM2's dataset tool writes, how it is normalised, and that nothing takes it for images."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_on_disk import write_folder, write_tar, write_zip

from cmcore.config import ConfigError, read
from cmcore.data.decoded import DecodedData
from cmcore.data.images import ImageData, LatentData, open_data
from cmcore.data.latent_space import FINAL_STD, RAW_MEAN, RAW_STD, sample_posterior, unnormalise
from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError
from cmcore.rng import Draws

SIZE, COUNT = 8, 70  # more than one block of files


def stored(count: int = COUNT) -> np.ndarray:
    """Latents that are normalised to mean 0 and deviation 0.5, up to chance."""
    rng = np.random.default_rng(0)
    std = np.array(RAW_STD)[:, None, None] * np.full((count, 4, SIZE, SIZE), 0.1)
    mean = np.array(RAW_MEAN)[:, None, None] + np.array(RAW_STD)[:, None, None] * np.sqrt(0.99) * rng.standard_normal(
        (count, 4, SIZE, SIZE)
    )
    return np.concatenate([mean, std], axis=1).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def content(latents: np.ndarray) -> dict[str, bytes]:
    names = [f"00000/img-mean-std-{k:08d}.npy" for k in range(len(latents))]
    labels = json.dumps({"labels": [[name, k % 3] for k, name in enumerate(names)]}).encode()
    return {name: npy(one) for name, one in zip(names, latents, strict=True)} | {"dataset.json": labels}


def config(path: Path, **fields) -> DataConfig:
    return DataConfig(**{"source": "latents", "path": str(path), "resolution": SIZE, "channels": 4, **fields})


@pytest.fixture
def prepared(tmp_path) -> LatentData:
    prepare(config(write_zip(tmp_path / "in.zip", content(stored()))), tmp_path / "out")
    data = open_data(tmp_path / "out")
    assert isinstance(data, LatentData)
    return data


def test_means_and_deviations_are_stored_as_they_are(prepared):
    np.testing.assert_array_equal(prepared.images, stored())
    assert isinstance(prepared.images, np.memmap)
    assert (prepared.shape, len(prepared), prepared.classes) == ((4, SIZE, SIZE), COUNT, 3)
    assert prepared.labels[:4].tolist() == [0, 1, 2, 0]
    batch, labels = prepared.batch([5, 0])
    assert (batch.shape, labels.tolist()) == ((2, 8, SIZE, SIZE), [2, 0])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_every_route_gives_the_same(tmp_path, prepared, kind):
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind]
    assert prepare(config(write(tmp_path / "again", content(stored()))), tmp_path / "other") == prepared.manifest


def test_the_manifest_explains_them(prepared):
    manifest = prepared.manifest
    assert manifest["kind"] == "latents"
    assert (manifest["raw_mean"], manifest["raw_std"], manifest["final_std"]) == ([*RAW_MEAN], [*RAW_STD], FINAL_STD)
    drawn = prepared.normalised(prepared.batch(range(COUNT))[0], Draws(1, 0, COUNT)).double()
    assert manifest["std"] == pytest.approx(drawn.std().item(), abs=0.01)
    np.testing.assert_allclose(manifest["channel_mean"], drawn.mean((0, 2, 3)), atol=0.02)
    np.testing.assert_allclose(manifest["channel_std"], drawn.std((0, 2, 3)), atol=0.02)
    assert manifest["std"] == pytest.approx(0.5, abs=0.01)


def test_half_precision_is_half_the_size(tmp_path, prepared):
    path = write_zip(tmp_path / "again.zip", content(stored()))
    prepare(config(path, precision="float16"), tmp_path / "half")
    half = open_data(tmp_path / "half")
    assert half.images.dtype == np.float16
    assert half.images.nbytes * 2 == prepared.images.nbytes
    np.testing.assert_allclose(half.images, prepared.images, rtol=2**-10, atol=1e-6)
    assert half.normalised(half.batch([0, 1])[0], Draws(1, 0, 2)).dtype == torch.float32


def test_a_step_draws_from_the_posterior_and_is_repeatable(prepared):
    batch, _ = prepared.batch(range(40))
    draws = Draws(1, 400, 40)
    x = prepared.normalised(batch, draws)
    mean, std = batch.chunk(2, dim=1)
    z = draws.normal((4, SIZE, SIZE), stream="latent")
    expected = torch.stack(
        [(mean[:, c] + std[:, c] * z[:, c] - RAW_MEAN[c]) / RAW_STD[c] * FINAL_STD for c in range(4)], dim=1
    )
    torch.testing.assert_close(x, expected)
    assert torch.equal(x, prepared.normalised(batch, draws))
    assert torch.equal(x[7:20], prepared.normalised(batch[7:20], Draws(1, 400, 40, slice(7, 20))))
    assert not torch.equal(x, prepared.normalised(batch, Draws(1, 440, 40)))


def test_numbers_of_the_normalisation():
    """By hand: (5.81 + 4.17 - 5.81) / 4.17 / 2 is a half."""
    means = torch.tensor([5.81 + 4.17, 3.25, 0.12 - 3.71, -2.15 + 6.56])[None, :, None, None]
    manifest = {"raw_mean": [*RAW_MEAN], "raw_std": [*RAW_STD], "final_std": FINAL_STD}
    x = sample_posterior(torch.cat([means, torch.zeros_like(means)], dim=1), Draws(1, 0, 1), manifest)
    torch.testing.assert_close(x.flatten(), torch.tensor([0.5, 0.0, -0.5, 1.0]))


def test_normalisation_is_undone(prepared):
    batch, _ = prepared.batch(range(5))
    drawn = unnormalise(
        prepared.normalised(torch.cat([batch[:, :4], 0 * batch[:, 4:]], 1), Draws(1, 0, 5)), prepared.manifest
    )
    torch.testing.assert_close(drawn, batch[:, :4], rtol=1e-5, atol=1e-5)
    ones = torch.full((1, 4, 1, 1), 0.5, dtype=torch.float64)
    expected = torch.tensor(RAW_MEAN) + torch.tensor(RAW_STD)  # one deviation above the mean
    torch.testing.assert_close(unnormalise(ones, prepared.manifest).flatten(), expected.double())


class Decoder:
    """Shows the first three channels, twice as large."""

    digest = "d" * 64

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        return (10 * raw[:, :3] + 100).clip(0, 255).to(torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_decoded_data_set_is_one_of_images_and_makes_them_as_an_array_gives_them(prepared):
    data = DecodedData(prepared, Decoder())
    images = Decoder()(torch.from_numpy(stored()[:, :4])).numpy()
    assert (data.images.shape, data.images.ndim, len(data.images)) == ((COUNT, 3, 2 * SIZE, 2 * SIZE), 4, COUNT)
    for key in (0, -1, slice(3, 60), slice(60, 100), np.array([5, 2, 2]), np.array([], np.int64)):
        np.testing.assert_array_equal(data.images[key], images[key])
    assert data.images[2].dtype == np.uint8
    assert (data.classes, data.labels.tolist()) == (3, prepared.labels.tolist())
    assert data.digest not in (prepared.digest, Decoder.digest)


def test_nothing_takes_them_for_images(tmp_path, prepared):
    with pytest.raises(DataError, match="expected images, got latents"):
        ImageData.open(tmp_path / "out")


GOOD = stored(1)[0]
WRONG = {
    "images": (GOOD.astype(np.uint8), r"expected a float32 mean and deviation \(8, 8, 8\), got uint8"),
    "shape": (GOOD[:, :4], r"got float32 \(8, 4, 8\); see `data\.resolution`"),
    "means alone": (GOOD[:4], r"got float32 \(4, 8, 8\)"),
    "not finite": (np.where(np.arange(8) == 1, np.nan, GOOD).astype(np.float32), "expected numbers below 10000"),
    "huge": (GOOD * 1e6, "expected numbers below 10000"),
    "negative": (-GOOD, "deviations of at least 0"),
    "objects": (np.array([None, {}], object), "expected an array of numbers, got Python objects"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_named(tmp_path, kind):
    array, message = WRONG[kind]
    files = content(stored(3)) | {"00000/img-mean-std-00000001.npy": npy(array)}
    with pytest.raises(DataError, match=rf"img-mean-std-00000001\.npy: .*{message}"):
        prepare(config(write_zip(tmp_path / "in.zip", files)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


@pytest.mark.parametrize("damaged", [b"", b"nonsense", npy(GOOD)[:-1]])
def test_damaged_files_are_named(tmp_path, damaged):
    files = content(stored(2)) | {"00000/img-mean-std-00000001.npy": damaged}
    with pytest.raises(DataError, match=r"img-mean-std-00000001\.npy: cannot be read"):
        prepare(config(write_zip(tmp_path / "in.zip", files)), tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"source": "latents", "path": "p", "channels": 3}, "channels"),
        ({"source": "latents", "channels": 4}, "path"),
        ({"source": "latents", "path": "p", "channels": 4, "resize": "adm"}, "resize"),
        ({"source": "folder", "path": "p", "precision": "float16"}, "precision"),
        ({"source": "folder", "path": "p", "download": True}, "download"),
        ({"source": "cifar10", "resolution": 32, "channels": 3}, "path"),
        ({"source": "cifar10", "path": "p", "channels": 3}, "resolution"),
        ({"source": "cifar10", "path": "p", "resolution": 32}, "channels"),
        ({"source": "cifar10", "path": "p", "resolution": 32, "channels": 3, "subfolder": "val"}, "subfolder"),
    ],
)
def test_parameters_that_do_not_go_together_name_their_key(fields, key):
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        read(DataConfig, fields, "data")
