"""The decoder of latents: what is refused before it is loaded, what it gives, and the same with the real diffusers."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmcore.config import ConfigError, read
from cmcore.data.codec import decoding_of
from cmcore.data.decoded import Decoding
from cmcore.data.images import open_data, open_images
from cmcore.data.latent_space import FINAL_STD, RAW_MEAN, RAW_STD, normalisation, sample_posterior
from cmcore.data.settings import CodecConfig, DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.edge.autoencoder import (
    FILES,
    check_decoder,
    check_decoders,
    image_converter,
    load_decoder,
    load_decoding,
    own_decoding,
    reconstructions_of,
)
from cmcore.edge.encoder import encoder_maker
from cmcore.errors import DataError
from cmcore.evaluate.settings import DecoderConfig
from cmcore.rng import Draws
from cmcore.tensors import to_float, to_uint8
from cmcore.torchvision_ops import import_torchvision

STAND_IN = Path(__file__).parents[1] / "support/without_diffusers"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that stands for diffusers."""
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    monkeypatch.syspath_prepend(STAND_IN)
    yield importlib.import_module("diffusers")
    sys.modules.pop("diffusers", None)


@pytest.fixture
def folder(stand_in: Any, tmp_path: Path) -> Path:
    return stand_in.write(tmp_path / "vae")


def latents(count: int, size: int = 8) -> torch.Tensor:
    """Normalised, as a sampler gives them."""
    return 0.5 * torch.randn((count, 4, size, size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_images_are_those_of_the_unnormalised_latents_cut_off_as_edm2_does(folder: Path):
    state = load_file(folder / FILES[1])
    weight, bias = state["layers.0.weight"][:, :, 0, 0].double(), state["layers.0.bias"].double()
    x = latents(11)  # more than one batch
    raw = torch.stack([x[:, c] / FINAL_STD * RAW_STD[c] + RAW_MEAN[c] for c in range(4)], dim=1)
    pixels = torch.einsum("oc,bchw->bohw", weight, raw) + bias[:, None, None]
    expected = (torch.pixel_shuffle(pixels, 2).clip(0, 1) * 255).floor()
    images = Decoding(load_decoder(DecoderConfig(path=str(folder))), normalisation())(x)
    assert (images.dtype, images.shape) == (torch.uint8, (11, 3, 16, 16))
    assert (images.double() - expected).abs().max() <= 1
    assert (images.double() == expected).double().mean() > 0.999
    assert images.double().std() > 10


def test_it_is_known_by_the_checksum_of_its_weights(folder: Path, stand_in: Any, tmp_path: Path):
    known = load_decoder(DecoderConfig(path=str(folder))).digest
    assert load_decoder(DecoderConfig(path=str(folder), sha256=known)).digest == known
    other = stand_in.write(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=rf"expected sha256 {known} \(eval\.decoder\.sha256\)"):
        load_decoder(DecoderConfig(path=str(other), sha256=known))
    noted = Decoding(load_decoder(DecoderConfig(path=str(folder))), normalisation()).described
    assert load_decoding(tmp_path, DecoderConfig()) is None
    (tmp_path / "decoding.json").write_text(json.dumps(noted))
    again = load_decoding(tmp_path, DecoderConfig(path=str(folder)))
    assert again is not None
    assert again.described == noted
    with pytest.raises(DataError, match=r"expected the decoder of the reference.*run the reference stage again"):
        load_decoding(tmp_path, DecoderConfig(path=str(other)))


def test_what_is_no_autoencoder_of_latents_is_refused(folder: Path, stand_in: Any, tmp_path: Path):
    stand_in.AutoencoderKL(3).save_pretrained(tmp_path / "three")
    with pytest.raises(DataError, match=r"three: expected all weights of an AutoencoderKL of 4 channels, got 3"):
        load_decoder(DecoderConfig(path=str(tmp_path / "three")))
    state = load_file(folder / FILES[1])
    save_file({"layers.0.weight": state["layers.0.weight"]}, folder / FILES[1])
    with pytest.raises(DataError, match=r"got without layers\.0\.bias"):
        load_decoder(DecoderConfig(path=str(folder)))
    (folder / FILES[1]).write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"safetensors: expected a safetensors header of 1 to 2 bytes, got one of"):
        load_decoder(DecoderConfig(path=str(folder)))


def test_what_is_missing_is_said_before_any_compute(folder: Path, monkeypatch: pytest.MonkeyPatch):
    check_decoder(DecoderConfig(path=str(folder)))
    (folder / "config.json").rename(folder / "elsewhere.json")
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.path: expected a folder.*without config\.json$"):
        check_decoder(DecoderConfig(path=str(folder)))
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.path: expected a folder.*got ''$"):
        load_decoder(DecoderConfig())
    (folder / "elsewhere.json").rename(folder / "config.json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^eval\.decoder: needs diffusers.*pip install -e '\.\[latents\]'$"):
        check_decoder(DecoderConfig(path=str(folder)))
    with pytest.raises(ConfigError, match=r"^eval\.decoder\.sha256: "):
        read(DecoderConfig, {"sha256": "abc"}, "eval.decoder")


def test_the_real_autoencoder_gives_back_the_images_of_what_it_encoded(tmp_path: Path):
    """From images to stored means and deviations, as a network sees them, and back: as without what lies between."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed (the extra 'latents')")
    import_torchvision()
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    net = diffusers.AutoencoderKL(**blocks, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4).eval()
    with torch.no_grad():
        net.decoder.conv_out.weight *= 5  # so that the images are not grey
        net.decoder.conv_out.bias += 0.5
        posterior = net.encode(torch.rand(10, 3, 32, 32)).latent_dist
        expected = (net.decode(posterior.mean).sample.clamp(0, 1) * 255).to(torch.uint8)
    net.save_pretrained(tmp_path)
    seen = sample_posterior(torch.cat([posterior.mean, 0 * posterior.std], dim=1), Draws(1, 0, 10), normalisation())
    assert seen.shape == (10, 4, 8, 8)
    images = Decoding(load_decoder(DecoderConfig(path=str(tmp_path))), normalisation())(seen.double())
    assert images.shape == expected.shape == (10, 3, 32, 32)
    assert expected.double().std() > 5
    assert (images.int() - expected.int()).abs().max() <= 1
    assert (images == expected).double().mean() > 0.999
    state = load_file(tmp_path / FILES[1])
    save_file({name: value for name, value in state.items() if name != "decoder.conv_in.bias"}, tmp_path / FILES[1])
    with pytest.raises(DataError, match=r"got without decoder\.conv_in\.bias"):
        load_decoder(DecoderConfig(path=str(tmp_path)))


DATA = DataConfig(
    source="shapes", resolution=16, channels=3, count=40, test=0.1,
    codec=CodecConfig(kind="diffusers", path="vae", channels=4, factor=2),
)  # fmt: skip


def encoded(out: Path, data: DataConfig = DATA) -> Path:
    """The folder of the data, prepared with the codec."""
    assert data.codec is not None
    prepare(data, out, encoder=encoder_maker(data.codec, "cpu"))
    return out


def test_own_images_are_encoded_and_their_folder_has_the_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    out = encoded(Path("data"))
    known = load_decoder(DecoderConfig(path="vae"), own=True)
    shutil.rmtree("vae")  # what is prepared is whole
    data, images = open_data(out), open_images(out)
    assert images is not None
    x = to_float(torch.from_numpy(images.images.copy()))
    expected = torch.nn.functional.pixel_unshuffle(x, 2)[:, :4]  # as the stand-in does, of images in [-1, 1]
    torch.testing.assert_close(torch.from_numpy(data.images[:, :4].copy()), expected)
    assert data.manifest["codec"] == {"kind": "diffusers", "digest": known.digest}
    assert data.manifest["channel_std"] == pytest.approx([FINAL_STD] * 4)
    decoding, converter = own_decoding(out), image_converter(out, DecoderConfig())
    assert decoding is not None
    assert isinstance(converter, Decoding)
    assert decoding.digest == converter.digest == known.digest
    raw = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decoding.decoder(raw), to_uint8(known._net.decode(raw).sample))
    found = reconstructions_of(out)["reconstruction"]
    assert found is not None
    assert len(found.images) == len(found.decoded.images) == 4
    assert decoding_of(out) is None  # without diffusers there is nothing to decode it
    (out / "codec" / FILES[1]).write_bytes((out / "codec" / FILES[1]).read_bytes() + b" ")
    with pytest.raises(DataError, match=r"expected sha256 .* \(data\.codec\.sha256\), got"):
        own_decoding(out)


def test_a_codec_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    for fields, message in (
        ({"factor": 4}, r"vae: expected latents of a side 4 times shorter \(data\.codec\.factor\), got \(8, 8\)"),
        ({"channels": 3}, r"vae: expected all weights of an AutoencoderKL of 3 channels, got 4"),
        ({"path": "nowhere"}, r"^data\.codec\.path: expected a folder with config\.json"),
        ({"sha256": "0" * 64}, r"expected sha256 0+ \(data\.codec\.sha256\)"),
    ):
        assert DATA.codec is not None
        with pytest.raises((ConfigError, DataError), match=message):
            encoded(tmp_path / "out", replace(DATA, codec=replace(DATA.codec, **fields)))
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"^data\.codec\.path: "):
        check_decoders(replace(DATA, codec=replace(DATA.codec, path="nowhere")), DecoderConfig())
    check_decoders(DATA, DecoderConfig())


def test_the_real_autoencoder_encodes_images_as_it_was_trained_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed (the extra 'latents')")
    monkeypatch.chdir(tmp_path)
    import_torchvision()
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    net = diffusers.AutoencoderKL(**blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4).eval()
    net.save_pretrained("vae")
    out = encoded(Path("data"))
    data, images = open_data(out), open_images(out)
    assert images is not None
    with torch.no_grad():
        posterior = net.encode(to_float(torch.from_numpy(images.images.copy()))).latent_dist
        decoded = to_uint8(net.decode(posterior.mean).sample)
    stored = torch.from_numpy(data.images.copy())
    torch.testing.assert_close(stored, torch.cat([posterior.mean, posterior.std], dim=1), rtol=1e-4, atol=1e-5)
    decoding = own_decoding(out)
    assert decoding is not None
    assert (decoding.decoder(stored[:, :4]).int() - decoded.int()).abs().max() <= 1
