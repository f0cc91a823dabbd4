"""Files of tensors: whole or not there, and never a traceback for a damaged one."""

import errno
import io
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_bytes

from cmcore import atomic as replacing
from cmcore.atomic import write_atomic
from cmcore.train.checkpoint import CheckpointError, header, load, save

TENSORS = {"b/x": torch.arange(6.0).reshape(2, 3), "a/y": torch.ones(2, dtype=torch.float64), "a/n": torch.tensor(3)}


def test_tensors_and_meta_come_back_to_the_bit(tmp_path: Path):
    save(tmp_path / "new/c.safetensors", TENSORS, {"images": 5, "nested": {"x": [1, 2]}})
    tensors, meta = load(tmp_path / "new/c.safetensors")
    assert meta == {"images": 5, "nested": {"x": [1, 2]}}
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )
    part, _ = load(tmp_path / "new/c.safetensors", "a/")
    assert part.keys() == {"y", "n"}


def test_equal_content_gives_equal_bytes_whatever_its_order_and_layout(tmp_path: Path):
    save(tmp_path / "a", TENSORS, {"x": 1, "y": 2})
    turned = {name: TENSORS[name] for name in reversed(TENSORS)}
    turned["b/x"] = torch.arange(6.0).reshape(2, 3).t().contiguous().t()
    save(tmp_path / "b", turned, {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save(tmp_path / "b", TENSORS, {"x": 1, "y": 3})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def damaged(whole: bytes) -> dict[str, bytes]:
    pickled = io.BytesIO()
    torch.save({"a": torch.ones(2)}, pickled)
    return {
        "empty": b"", "cut in the header": whole[:20], "cut in the data": whole[:-3], "garbage": os.urandom(300),
        "header too long": b"\xff" * 8 + whole[8:], "no meta": whole.replace(b"__metadata__", b"__metadatb__"),
        "meta is no JSON": whole.replace(b'{\\"c', b'[\\"c'), "another number": whole.replace(b": 5}", b": 6}"),
        "another tensor": whole.replace(b"b/x", b"b/y"),
        "a bit of data": whole[:-3] + bytes([whole[-3] ^ 8]) + whole[-2:],
        "no checksums": to_bytes(TENSORS, {"meta": json.dumps({"images": 5})}), "torch.save": pickled.getvalue(),
        "pickle": pickle.dumps({"a": 1}),
    }  # fmt: skip


KINDS = [
    "empty", "cut in the header", "cut in the data", "garbage", "header too long", "no meta", "meta is no JSON",
    "another number", "another tensor", "a bit of data", "no checksums",
]  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "torch.save", "pickle"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path):
    save(tmp_path / "c", TENSORS, {"images": 5})
    whole = (tmp_path / "c").read_bytes()
    assert damaged(whole)[kind] != whole
    (tmp_path / "c").write_bytes(damaged(whole)[kind])
    with pytest.raises(CheckpointError, match=r"c: expected a weight file of this project"):
        load(tmp_path / "c")
    if kind not in ("cut in the data", "a bit of data"):
        with pytest.raises(CheckpointError, match=r"c: expected a weight file of this project"):
            header(tmp_path / "c")


def test_no_flipped_bit_of_any_byte_goes_unnoticed(tmp_path: Path):
    """Every byte of header and data, one bit of it after the other."""
    save(tmp_path / "c", TENSORS, {"images": 5, "text": "x"})
    whole, chosen = (tmp_path / "c").read_bytes(), random.Random(1)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chosen.randrange(8)
        (tmp_path / "c").write_bytes(flipped)
        try:
            tensors, meta = load(tmp_path / "c")
        except CheckpointError:
            continue
        # What is read nevertheless is what was written: a blank at the header's end may be another blank.
        assert meta == {"images": 5, "text": "x"}, at
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()), at


def test_tensors_that_are_not_read_are_not_checked(tmp_path: Path):
    save(tmp_path / "c", TENSORS, {})
    whole = bytearray((tmp_path / "c").read_bytes())
    whole[-1] ^= 1  # of b/x, the last
    (tmp_path / "c").write_bytes(whole)
    assert load(tmp_path / "c", "a/")[0].keys() == {"y", "n"}
    with pytest.raises(CheckpointError, match="a damaged tensor, b/x"):
        load(tmp_path / "c", "b/")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.float64])
def test_tensors_of_any_type_have_a_checksum(dtype: torch.dtype, tmp_path: Path):
    tensors = {
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "some": torch.ones(3).to(dtype),
    }
    save(tmp_path / "c", tensors, {})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load(tmp_path / "c")[0].items())


def test_the_header_is_the_json_data(tmp_path: Path):
    save(tmp_path / "c", TENSORS, {"images": 5})
    assert header(tmp_path / "c") == {"images": 5}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match="expected a weight file"):
            load(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_the_previous_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "c"
    save(path, TENSORS, {"images": 5})
    before, real = path.read_bytes(), Path.open

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        return real(Path("/dev/full") if self.name.endswith(".part") else self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(
        OSError, match=r"could not write .*c \(No space left on device\); the previous file is intact"
    ) as caught:
        save(path, {"z": torch.ones(100_000)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_late_leaves_the_previous_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "c"
    write_atomic(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is on fire")

    monkeypatch.setattr(*((replacing.os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="the disk is on fire"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_data_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(replacing.os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (calls.append("replace"), real_replace(self, target)))
    write_atomic(tmp_path / "c", b"data")
    assert calls == ["fsync", "replace", "fsync"]
