"""Text encoders by path: the vectors of transformers itself, their digest, and what is refused before any compute."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import TOKENS, WIDTH, write_clip, write_t5

from cmcore.config import ConfigError
from cmcore.data.settings import DataConfig, TextConfig
from cmcore.edge.text import check_text, load_text_encoder
from cmcore.errors import DataError


def config(folder: Path, **changes: Any) -> TextConfig:
    return TextConfig(**{"path": str(folder), "tokens": TOKENS, "width": WIDTH, **changes})


def test_clip_has_the_states_of_all_places(tmp_path: Path):
    model = write_clip(tmp_path)
    found = load_text_encoder(config(tmp_path)).encode(["a cat", "", "A cat"])
    assert found.shape == (3, TOKENS, WIDTH)
    end, start, a, t = 53, 52, 26, 45
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    assert (vocabulary["<|endoftext|>"], vocabulary["a</w>"], vocabulary["t</w>"]) == (end, a, t)
    ids = [start, a, vocabulary["c"], vocabulary["a"], t, end]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids + [end] * (TOKENS - len(ids))])).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(found[:1]), expected, rtol=1e-5, atol=1e-6)
    assert (found[0] == found[2]).all()
    assert not (found[0] == found[1]).all()


def test_t5_has_zeros_beyond_the_last_token(tmp_path: Path):
    model = write_t5(tmp_path / "t5")
    found = torch.from_numpy(load_text_encoder(config(tmp_path / "t5")).encode(["a red circle", "square"]))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[3, 4, 6]])).last_hidden_state
    torch.testing.assert_close(found[:1, :3], expected, rtol=1e-5, atol=1e-6)
    assert not found[0, 3:].any()
    assert found[1, 0].any()
    assert not found[1, 1:].any()


def test_the_digest_is_of_weights_and_tokenizer(tmp_path: Path):
    write_clip(tmp_path / "one")
    write_clip(tmp_path / "other", seed=1)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    shutil.copytree(tmp_path / "one", tmp_path / "other-signs")
    file = tmp_path / "other-signs" / "tokenizer" / "vocab.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "a": known["b"], "b": known["a"]}))
    digests = [load_text_encoder(config(tmp_path / name)).digest for name in ("one", "moved", "other", "other-signs")]
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_too_many_tokens_are_an_error_that_names_the_caption(tmp_path: Path):
    write_clip(tmp_path)
    encoder = load_text_encoder(config(tmp_path))
    with pytest.raises(
        ValueError, match=r"prompt: expected at most 16 tokens \(data\.text\.tokens\), got 17 of 'abcde"
    ):
        encoder.encode(["a", "abcdefghijklmno"])


def test_what_is_missing_is_said_before_any_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = DataConfig(source="shapes", count=4, resolution=16, channels=3, text=config(tmp_path))
    with pytest.raises(ConfigError, match=r"^data\.text\.path: expected a folder with config\.json and \.safetensors"):
        check_text(data)
    write_clip(tmp_path)
    check_text(data)
    check_text(DataConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^data\.text: needs transformers, which is not installed"):
        check_text(data)


def test_another_model_is_refused(tmp_path: Path):
    write_clip(tmp_path)
    with pytest.raises(DataError, match=r"expected vectors of data\.text\.width = 768 numbers, got 12"):
        load_text_encoder(config(tmp_path, width=768))
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "bert"}))
    with pytest.raises(DataError, match=r"model_type: expected one of clip_text_model, t5, got 'bert'"):
        load_text_encoder(config(tmp_path))


def test_captions_are_encoded_where_there_may_be_some(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"text: expected null for source digits"):
        DataConfig(text=config(tmp_path))
    with pytest.raises(ConfigError, match=r"text: expected null for source speech"):
        DataConfig(source="speech", resolution=64, text=config(tmp_path))
