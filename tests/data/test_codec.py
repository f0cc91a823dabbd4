"""A codec trained on the images: closed forms of its loss, its latents, its files, and what refuses it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmcore.config import ConfigError, read
from cmcore.data.codec import CODEC, Codec, decoding_of, reconstruction
from cmcore.data.images import ImageData, LatentData, open_data, open_images
from cmcore.data.latent_space import FINAL_STD
from cmcore.data.settings import CodecConfig, DataConfig
from cmcore.data.sources.codec import codec_loss, train_codec
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError
from cmcore.layers.autoencoder import Shape, build_autoencoder, kl_divergence
from cmcore.rng import Draws
from cmcore.tensors import to_float

TINY = CodecConfig(channels=2, factor=4, width=8, images=256, batch=32, lr=3e-3)
DATA = DataConfig(source="shapes", count=160, resolution=16, channels=3, test=0.1, codec=TINY)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "data"
    prepare(DATA, folder)
    return folder


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_shapes_of_latents_and_images(factor: int):
    net = build_autoencoder(Shape(3, 5, factor, 8), seed=0)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    mean, log_variance = net.encode(x)
    assert mean.shape == log_variance.shape == (2, 5, 16 // factor, 24 // factor)
    assert net.decode(mean).shape == x.shape


def test_kl_of_gaussians_is_that_of_the_closed_form():
    """By hand, and against torch.distributions: KL(N(1, 4) || N(0, 1)) = (1 + 4 - 1 - ln 4) / 2."""
    mean = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    variance = torch.tensor([[4.0], [1.0]], dtype=torch.float64)
    assert kl_divergence(mean, variance.log()).tolist() == pytest.approx([(4 - np.log(4)) / 2, 0.0])
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64, generator=rng)
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    known = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), known.mean((1, 2, 3)))


class Linear(nn.Module):
    """A linear autoencoder of D numbers, with one free variance for each latent."""

    def __init__(self, D: int, d: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(D, d).double(), nn.Linear(d, D).double()
        self.log_variance = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.down(x)
        return mean, self.log_variance.expand_as(mean)

    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents)


def test_the_best_linear_codec_has_the_loss_of_probabilistic_pca():
    """Optimum of a linear Gaussian autoencoder (arXiv 1911.02469, with the decoder's variance fixed by the weight kl).

    With sums instead of means the loss is |x - x'|^2 / D + kl / d KL, so the decoder's variance is v = kl D / (2 d).
    Of a direction with variance l > v, latent noise and KL leave v + v ln(l / v) of its squared error; of others, all.
    """
    D, d, kl = 6, 3, 0.05
    spectrum = torch.tensor([4.0, 2.0, 0.5, 0.3, 0.2, 0.1], dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=rng)).Q
    # 2 D points with exactly that covariance.
    points = torch.cat([torch.eye(D), -torch.eye(D)]).double() * (spectrum * D).sqrt() @ rotation.T
    v = kl * D / (2 * d)
    kept, lost = spectrum[:d], spectrum[d:]
    optimum = float(((v + v * (kept / v).log()).sum() + lost.sum()) / D)
    torch.manual_seed(0)
    net = Linear(D, d)
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for step in range(1500):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        rows = torch.arange(96) % len(points)
        loss = codec_loss(net, points[rows], Draws(0, step, 96), kl).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        many = codec_loss(net, points.repeat(2000, 1), Draws(0, 0, 2000 * len(points)), kl).mean().item()
        mean, _ = net.encode(points)
        error = float(((net.decode(mean) - points) ** 2).mean())
    assert many == pytest.approx(optimum, rel=0.01)
    assert error >= float(lost.sum() / D)  # no linear codec is better than PCA


def test_training_lowers_the_error_and_repeats_to_the_bit():
    images = np.concatenate([block.images for block in _shapes(64)])
    first, again = (train_codec(images, TINY) for _ in range(2))
    assert first.digest == again.digest
    assert first.digest != train_codec(images, replace(TINY, seed=1)).digest
    untrained = Codec(build_autoencoder(Shape(3, 2, 4, 8), 0))
    x = torch.from_numpy(images)

    def error(codec: Codec) -> float:
        return float((to_float(codec(codec.encode(x)[:, :2])) - to_float(x)).square().mean())

    assert error(first) < 0.5 * error(untrained)


def _shapes(count: int):
    from cmcore.data.sources.shapes import shapes

    return shapes(DataConfig(source="shapes", count=count, resolution=16, channels=3)).blocks()


def test_networks_see_latents_of_unit_deviation_times_sigma_data(prepared: Path):
    data = open_data(prepared)
    assert isinstance(data, LatentData)
    assert data.shape == (2, 4, 4)
    assert data.images.shape == (144, 4, 4, 4)
    many = torch.cat([data.normalised(data.batch(range(144))[0], Draws(1, k, 144)) for k in range(60)]).double()
    torch.testing.assert_close(many.mean((0, 2, 3)), torch.zeros(2).double(), atol=2e-2 * FINAL_STD, rtol=0)
    torch.testing.assert_close(many.std((0, 2, 3)), FINAL_STD * torch.ones(2).double(), atol=1e-2, rtol=0)
    assert data.manifest["channel_std"] == pytest.approx([FINAL_STD] * 2)
    assert data.manifest["channel_mean"] == pytest.approx([0, 0], abs=1e-6)
    test = open_data(prepared / "test")
    assert test.manifest["raw_std"] == data.manifest["raw_std"]
    assert test.manifest["channel_std"] != data.manifest["channel_std"]


def test_latents_are_those_of_the_stored_codec_and_decode_with_it(prepared: Path):
    codec, data, images = Codec.load(prepared / CODEC), open_data(prepared), open_images(prepared)
    assert isinstance(images, ImageData)
    np.testing.assert_array_equal(data.images, codec.encode(torch.from_numpy(np.array(images.images))).numpy())
    assert (data.manifest["codec"]["digest"], data.labels.tolist()) == (codec.digest, images.labels.tolist())
    decoding = decoding_of(prepared)
    assert decoding is not None
    assert decoding.digest == codec.digest
    stored = data.batch(range(9))[0]
    mean = torch.cat([stored[:, :2], 0 * stored[:, 2:]], dim=1)
    made = decoding(data.normalised(mean, Draws(1, 0, 9)).double())
    assert (made.dtype, made.shape) == (torch.uint8, (9, 3, 16, 16))
    assert (made.int() - codec(stored[:, :2]).int()).abs().max() <= 1


def test_the_images_stand_beside_their_latents(tmp_path: Path, prepared: Path):
    """As they are without a codec, captions and test images too; what wants images of networks refuses them."""
    manifest = prepare(replace(DATA, codec=None), tmp_path / "plain")
    for part in ("", "test"):
        plain, beside = open_data(tmp_path / "plain" / part), open_images(prepared / part)
        assert beside is not None
        np.testing.assert_array_equal(beside.images, plain.images)
        assert (beside.digest, beside.shape) == (plain.digest, plain.shape)
        assert beside.manifest["std"] == plain.manifest["std"]
        np.testing.assert_array_equal(open_data(prepared / part).captions, plain.captions)
    assert manifest["sha256"] != open_data(prepared).digest
    with pytest.raises(DataError, match="expected images, got latents"):
        ImageData.open(prepared)


def test_a_reconstruction_is_of_test_images_row_by_row(prepared: Path, tmp_path: Path):
    codec = Codec.load(prepared / CODEC)
    found = reconstruction(prepared, codec)
    assert len(found.images) == len(found.decoded.images) == 16
    x = torch.from_numpy(np.array(found.images.images))
    np.testing.assert_array_equal(found.decoded.images[:], codec(codec.encode(x)[:, :2]).numpy())
    prepare(replace(DATA, codec=None), tmp_path / "plain")
    assert decoding_of(tmp_path / "plain") is None


def test_half_precision_and_the_same_bytes_again(prepared: Path, tmp_path: Path):
    prepare(DATA, tmp_path / "again")
    for name in ("latents.npy", "manifest.json", CODEC, "test/latents.npy", "words.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (prepared / name).read_bytes()
    prepare(replace(DATA, precision="float16"), tmp_path / "half")
    half = open_data(tmp_path / "half")
    assert half.images.dtype == np.float16
    np.testing.assert_allclose(half.images, open_data(prepared).images, rtol=2**-10, atol=1e-6)


def test_progress_counts_every_part_of_the_work(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    prepare(replace(DATA, count=40, test=0.0), tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen == [(40, 40), *((k, 256) for k in range(32, 257, 32)), (40, 40)]


def test_damaged_codecs_are_named(prepared: Path, tmp_path: Path):
    for content in (b"", b"no tensors", (prepared / CODEC).read_bytes()[:-7]):
        (tmp_path / CODEC).write_bytes(content)
        with pytest.raises(DataError, match=r"codec\.safetensors"):
            Codec.load(tmp_path / CODEC)
    with pytest.raises(DataError, match=r"codec\.safetensors"):
        Codec.load(tmp_path / "nowhere" / CODEC)
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not a prepared data set"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"codec": {"factor": 3}}, r"codec\.factor"),
        ({"codec": {"factor": 64}}, r"codec\.factor"),
        ({"codec": {"lr": 0.0}}, r"codec\.lr"),
        ({"codec": {"kl": -1.0}}, r"codec\.kl"),
        ({"codec": {"channels": 0}}, r"codec\.channels"),
        ({"codec": {"kind": "vq"}}, r"codec\.kind"),
        ({"source": "latents", "path": "p", "channels": 4, "count": 0, "codec": {}}, "codec"),
        ({"precision": "float16"}, "precision"),
        ({"codec": {"path": "vae"}}, r"codec\.path"),
        ({"codec": {"kind": "diffusers"}}, r"codec\.path"),
        ({"codec": {"sha256": "abc"}}, r"codec\.sha256"),
    ],
)
def test_wrong_settings_name_their_key(fields: dict, key: str):
    data = {"source": "shapes", "resolution": 16, "channels": 3, "count": 4, **fields}
    with pytest.raises(ConfigError, match=rf"^data\.{key}: "):
        read(DataConfig, data, "data")


class Fixed:
    """An encoder whose means are 3 and 5 times a pixel of every 4 by 4, with deviations of 1."""

    digest = "0" * 64

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) -> means and standard deviations (B, 4, H/4, W/4)."""
        pixel = to_float(images[:, :1, ::4, ::4])
        return torch.cat([3 * pixel, 5 * pixel, torch.ones_like(pixel), torch.ones_like(pixel)], 1)

    def save(self, folder: Path) -> None:
        """It has no weights."""


def test_a_scale_takes_the_place_of_the_normalisation(tmp_path: Path):
    """Latents times the scale and the deviation of 0.5, as a public network saw them; the mean stays where it is."""
    public = CodecConfig(kind="diffusers", path="vae", channels=2, factor=4, scale=0.25)
    prepare(replace(DATA, codec=public), tmp_path / "data", encoder=lambda images, *, progress: Fixed())
    data, images = open_data(tmp_path / "data"), open_images(tmp_path / "data")
    assert images is not None
    draws = Draws(1, 0, 20)
    stored, _ = data.batch(range(20))
    seen = data.normalised(stored, draws)
    raw = stored[:, :2] + draws.normal((2, 4, 4), stream="latent")
    torch.testing.assert_close(seen, 0.25 * FINAL_STD * raw.float())
    torch.testing.assert_close(stored[:, 1], 5 * to_float(torch.from_numpy(images.images[:20].copy()))[:, 0, ::4, ::4])
    assert (data.manifest["raw_mean"], data.manifest["raw_std"]) == ([0, 0], [4, 4])
    with pytest.raises(ConfigError, match=r"scale: expected a positive number of kind diffusers, or 0, got 0\.25"):
        CodecConfig(scale=0.25)
