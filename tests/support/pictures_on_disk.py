"""Small pictures in folders and archives, and how a wrong one is refused."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmcore.data.settings import DataConfig
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError


def picture(seed: int, size=(4, 4), mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int, size=(4, 4), mode="RGB", kind="PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed, size, mode).save(buffer, kind)
    return buffer.getvalue()


# Stored in an order that is not the sorted one.
FILES = {"dog/b.png": png(3), "cat/2.png": png(1), "dog/a.png": png(2), "cat/10.png": png(0)}
ORDER = ["cat/10.png", "cat/2.png", "dog/a.png", "dog/b.png"]


def write_folder(path: Path, content=FILES) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path: Path, content=FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content=FILES, mode="w:xz", change=lambda member: None) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            change(member)
            archive.addfile(member, io.BytesIO(data))
    return path


def config(source: str, path: Path, **fields) -> DataConfig:
    return DataConfig(source=source, path=str(path), **{"resolution": 4, "channels": 3, **fields})


def refused(config: DataConfig, out: Path, match: str) -> None:
    """`prepare` raises DataError with this message, leaves an older result untouched and nothing else behind."""
    out.mkdir(parents=True)
    (out / "older").write_text("result")
    before = sorted(out.parent.iterdir())
    with pytest.raises(DataError, match=match):
        prepare(config, out)
    assert sorted(out.parent.iterdir()) == before
    assert [p.name for p in out.iterdir()] == ["older"]
