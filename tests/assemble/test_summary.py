"""Checksums of the results of a run."""

from pathlib import Path

import pytest

from cmcore.assemble.summary import SUMMARY, check_results, read_summary, write_summary
from cmcore.train.checkpoint import CheckpointError

FACTS = {"run": "edm", "images": 512, "eval_ema": "ema"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "snapshots").mkdir()
    for name in ("weights.safetensors", "history.jsonl", "snapshots/000000512.safetensors"):
        (tmp_path / name).write_bytes(name.encode() * 50)
    write_summary(tmp_path, FACTS)
    return tmp_path


def test_sound_results_pass(results: Path):
    summary = check_results(results)
    assert FACTS.items() <= summary.items()
    assert sorted(summary["files"]) == ["history.jsonl", "snapshots/000000512.safetensors", "weights.safetensors"]
    assert read_summary(results) == summary


def test_equal_results_have_equal_summaries(results: Path):
    before = (results / SUMMARY).read_bytes()
    (results / SUMMARY).unlink()
    write_summary(results, dict(reversed(FACTS.items())))
    assert (results / SUMMARY).read_bytes() == before


@pytest.mark.parametrize("name", ["weights.safetensors", "history.jsonl", "snapshots/000000512.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(results: Path, name: str, harm: str):
    path = results / name
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data[:-1] if harm == "cut" else data)
    if harm == "remove":
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: is (damaged|missing)"):
        check_results(results)
    check_results(results, *(one for one in read_summary(results)["files"] if one != name))


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b'{"files": {}, "checksum": 1}', b"\xff", b"[" * 10**5])
def test_a_damaged_summary_is_named(results: Path, text: bytes):
    (results / SUMMARY).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"{SUMMARY}: "):
        read_summary(results)


def test_another_number_in_the_summary_is_noticed(results: Path):
    text = (results / SUMMARY).read_text()
    (results / SUMMARY).write_text(text.replace("512,", "513,"))
    with pytest.raises(CheckpointError, match=f"{SUMMARY}: is damaged"):
        read_summary(results)
