"""CIFAR-10's official archive: pickles of Python 2, read without executing anything, and downloaded with care."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cmcore.data.images import ImageData
from cmcore.data.settings import DataConfig
from cmcore.data.sources import open as sources
from cmcore.data.sources.download import download
from cmcore.data.sources.prepare import prepare
from cmcore.errors import DataError

NAMES = [b"airplane", b"automobile", b"bird"]
PER_BATCH = 4
MINUS_ONE = b"J\xff\xff\xff\xff"


def text(value: bytes) -> bytes:
    """A str of Python 2."""
    return b"T" + struct.pack("<i", len(value)) + value


def listed(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def array(pixels: np.ndarray, element: bytes = b"u1") -> bytes:
    """A numpy array as Python 2 pickled it, which no Python 3 does."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in pixels.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n("
        + text(element)
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"


def pickled(fields: dict[bytes, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in fields.items()) + b"u."


def batch(seed: int, **changes: bytes) -> tuple[bytes, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8), rng.integers(0, 3, PER_BATCH).tolist()
    fields = {
        "batch_label": text(b"training"),
        "data": array(pixels),
        "labels": listed([b"K" + bytes([n]) for n in labels]),
    }
    return pickled({key.encode(): value for key, value in (fields | changes).items()}), pixels, labels


def archive(path: Path, **replaced: bytes) -> DataConfig:
    """A small archive of the official layout."""
    content = {f"data_batch_{k}": batch(k)[0] for k in range(1, 6)}
    content |= {"test_batch": batch(6)[0], "readme.html": b"<html>"}
    content |= {"batches.meta": pickled({b"label_names": listed([text(name) for name in NAMES])})} | replaced
    with tarfile.open(path, "w:gz") as file:
        for name, data in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return config(path)


def config(path: Path, **fields) -> DataConfig:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataConfig(
        **{"source": "cifar10", "path": str(path), "resolution": 32, "channels": 3, "sha256": digest, **fields}
    )


def test_the_pickles_here_are_those_of_python_2():
    """numpy reads them, so that what the tests read is what the archive holds."""
    content, pixels, labels = batch(1)
    loaded = pickle.loads(content.replace(b"numpy.core.", b"numpy._core."), encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == labels


def test_the_training_and_the_test_images_in_their_order(tmp_path):
    archive(tmp_path / "c.tar.gz")
    manifest = prepare(config(tmp_path / "c.tar.gz"), tmp_path / "out")
    data = ImageData.open(tmp_path / "out")
    batches = [batch(k) for k in range(1, 6)]
    np.testing.assert_array_equal(data.images.reshape(20, -1), np.concatenate([pixels for _, pixels, _ in batches]))
    assert data.labels.tolist() == [label for *_, labels in batches for label in labels]
    assert (manifest["classes"], manifest["class_names"]) == (3, ["airplane", "automobile", "bird"])
    assert prepare(config(tmp_path / "c.tar.gz", subfolder="test"), tmp_path / "test")["count"] == PER_BATCH
    np.testing.assert_array_equal(ImageData.open(tmp_path / "test").images.reshape(4, -1), batch(6)[1])


def test_another_file_is_refused_by_its_checksum(tmp_path):
    archive(tmp_path / "c.tar.gz")
    with pytest.raises(DataError, match=rf"c\.tar\.gz: expected sha256 {sources.SHA256}"):
        prepare(config(tmp_path / "c.tar.gz", sha256=""), tmp_path / "out")
    with pytest.raises(DataError, match=r"no\.tar\.gz: expected a file.*data\.download: true"):
        prepare(DataConfig(source="cifar10", path="no.tar.gz", resolution=32, channels=3), tmp_path / "out")


class Evil:
    def __reduce__(self):
        return os.system, ("touch witness",)


def too_long() -> bytes:
    """A batch that says it has more pixels than it has."""
    claimed = array(np.zeros((4, 3072), np.uint8)).replace(struct.pack("<i", 3072), struct.pack("<i", 9999))
    return batch(1, data=claimed)[0]


WRONG = {
    "a call": (lambda: pickle.dumps({1: Evil()}, protocol=2), "refused, it asks for .*system"),
    "a late call": (lambda: pickle.dumps(Evil(), protocol=0), "refused, it asks for .*system"),
    "an instance": (lambda: b"(S'touch witness'\nios\nsystem\n.", "refused, it asks for os.system"),
    "no dict": (lambda: pickle.dumps([1], protocol=2), "expected a dict, got list"),
    "floats": (lambda: batch(1, data=array(np.zeros((4, 3072), np.float32), b"f4"))[0], "expected uint8 images"),
    "pixels": (lambda: batch(1, data=array(np.zeros((4, 3000), np.uint8)))[0], r"expected uint8 images \(N, 3072\)"),
    "more than there is": (too_long, "cannot be read"),
    "labels": (lambda: batch(1, labels=listed([b"K\x01"] * 3))[0], "expected 4 labels, got 3"),
    "negative": (lambda: batch(1, labels=listed([MINUS_ONE] * 4))[0], "expected whole numbers from 0 on"),
    "cut": (lambda: batch(1)[0][:-100], "cannot be read as a batch"),
    "nothing": (lambda: b"", "cannot be read as a batch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_batches_are_refused_unexecuted(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    make, message = WRONG[kind]
    with pytest.raises(DataError, match=rf"data_batch_3: .*{message}"):
        prepare(archive(tmp_path / "c.tar.gz", data_batch_3=make()), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.tar.gz"]


def test_a_missing_batch_is_named(tmp_path):
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"expected batches\.meta, data_batch_1, .* in it"):
        prepare(config(tmp_path / "c.tar.gz"), tmp_path / "out")


CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    ranges = True  # whether it can begin in the middle
    cut = len(CONTENT)  # where it breaks off
    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : max(start, self.cut)])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/file", handler
        finally:
            running.shutdown()
            thread.join()


def fetch(url: str, path: Path, sha256: str = SHA256) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    download(url, path, sha256, len(CONTENT), lambda done, total: seen.append((done, total)))
    return seen


def test_a_download_arrives_whole_and_is_not_repeated(tmp_path, server):
    url, handler = server
    path = tmp_path / "deep" / "file"
    seen = fetch(url, path)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) >= 3
    assert fetch(url, path) == []
    assert (handler.asked, [found.name for found in path.parent.iterdir()]) == ([None], ["file"])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(tmp_path, server, ranges):
    url, handler = server
    handler.ranges, handler.cut = ranges, 1_200_000
    with pytest.raises(DataError, match=r"cannot be downloaded .*; try again to continue, or fetch it by hand, put"):
        fetch(url, tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size == 1_200_000
    handler.cut = len(CONTENT)
    seen = fetch(url, tmp_path / "file")
    assert handler.asked == [None, "bytes=1200000-"]
    assert (seen[0][0] > 1_200_000) == ranges
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_wrong_file_is_not_kept(tmp_path, server):
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, got {SHA256}"):
        fetch(server[0], tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    place = tmp_path / "here.tar.gz"
    wanted = DataConfig(source="cifar10", path=str(place), resolution=32, channels=3, download=True)
    with pytest.raises(DataError, match=rf"127\.0\.0\.1:9/.*: cannot be downloaded .*by hand, put it at {place}"):
        prepare(wanted, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
