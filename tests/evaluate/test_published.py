"""Reference moments from other people's files: the right numbers, or one sentence, and never their code."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from cmcore.errors import DataError
from cmcore.evaluate.published import read_moments


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}


def test_edms_npz_and_torch_fidelitys_cache_give_the_same_moments(arrays, tmp_path):
    np.savez(tmp_path / "edm.npz", **arrays)
    torch.save({"mu": arrays["mu"].astype(np.float32), "sigma": arrays["sigma"]}, tmp_path / "fidelity.pt")
    moments, digest = read_moments(tmp_path / "edm.npz", 4)
    cached, other = read_moments(tmp_path / "fidelity.pt", 4)
    assert np.array_equal(moments.cov.numpy(), arrays["sigma"])
    assert np.array_equal(moments.mean.numpy(), arrays["mu"])
    assert (moments.count, cached.count) == (0, 0)
    torch.testing.assert_close(cached.mean, moments.mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(cached.cov, moments.cov)
    assert digest == hashlib.sha256((tmp_path / "edm.npz").read_bytes()).hexdigest() != other


def test_edm2s_pickle_gives_them_too(arrays, tmp_path):
    dino = {"mu": np.zeros(3), "sigma": np.eye(3)}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps({"num_images": 50, "fid": arrays, "fd_dinov2": dino}))
    moments, digest = read_moments(tmp_path / "img512.pkl", 4)
    assert np.array_equal(moments.cov.numpy(), arrays["sigma"])
    assert np.array_equal(moments.mean.numpy(), arrays["mu"])
    assert digest == hashlib.sha256((tmp_path / "img512.pkl").read_bytes()).hexdigest()


def test_damaged_pickles_are_refused_or_read(arrays, tmp_path):
    whole, rng = pickle.dumps({"fid": arrays}), np.random.default_rng(1)
    for cut in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        for content in (whole[:cut], bytes(damaged)):
            (tmp_path / "damaged.pkl").write_bytes(content)
            try:
                read_moments(tmp_path / "damaged.pkl", 4)
            except DataError as error:
                assert str(error).startswith(f"{tmp_path / 'damaged.pkl'} (eval.reference_npz): ")  # noqa: PT017


class _Payload:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def test_wrong_files_are_named(arrays, tmp_path):
    np.savez(tmp_path / "small.npz", **arrays)
    np.savez(tmp_path / "other.npz", mu=arrays["mu"])
    np.savez(tmp_path / "nan.npz", mu=arrays["mu"] * np.nan, sigma=arrays["sigma"])
    np.savez(tmp_path / "objects.npz", mu=np.array([_Payload()]), sigma=arrays["sigma"])
    torch.save(_Payload(), tmp_path / "code.pt")
    torch.save({"mu": np.array([_Payload()])}, tmp_path / "objects.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"fid": _Payload()}))
    (tmp_path / "dino.pkl").write_bytes(pickle.dumps({"fd_dinov2": arrays}))
    (tmp_path / "number.pkl").write_bytes(pickle.dumps({"fid": 1.0}))
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"small\.npz .*expected mu \(2048,\).*got \(4,\)"):
        read_moments(tmp_path / "small.npz", 2048)
    for name in (
        "code.pkl",
        "dino.pkl",
        "number.pkl",
        "other.npz",
        "nan.npz",
        "objects.npz",
        "code.pt",
        "objects.pt",
        "list.pt",
        "junk.npz",
        "empty.npz",
    ):
        with pytest.raises(DataError, match=rf"{name} \(eval\.reference_npz\): expected mu \(4,\)"):
            read_moments(tmp_path / name, 4)
    with pytest.raises(DataError, match="cannot be read"):
        read_moments(tmp_path / "absent.npz", 4)
