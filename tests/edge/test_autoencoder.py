"""The decoder of latents: what is refused before it is loaded, what it gives, and the same with the real diffusers."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmcore.config import ConfigError, read
from cmcore.data.decoded import Decoding
from cmcore.data.latent_space import FINAL_STD, RAW_MEAN, RAW_STD, normalisation, sample_posterior
from cmcore.edge.autoencoder import FILES, check_decoder, load_decoder, load_decoding
from cmcore.edge.torchvision_ops import import_torchvision
from cmcore.errors import DataError
from cmcore.evaluate.settings import DecoderConfig
from cmcore.rng import Draws

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
