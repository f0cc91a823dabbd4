"""Published reference moments, from a file: the FIDs of a paper are measured against exactly these."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcore import unpickle
from cmcore.errors import DataError, reason
from cmcore.evaluate.moments import Moments
from cmcore.nets.public.foreign import load_foreign


def read_moments(path: Path, dim: int) -> tuple[Moments, str]:
    """Moments of features of dimension `dim`, and the sha256 of the file.

    Args:
        path: an .npz with mu and sigma, as of the EDM repository; a .pkl with both under "fid", as of EDM2's; or a .pt
            with both, as torch-fidelity caches them.
        dim: dimension of the features.

    Raises:
        DataError: the file is missing or holds something else. Nothing in it is executed.
    """
    expected = f"{path} (eval.reference_npz): expected mu ({dim},) and sigma ({dim}, {dim}) in an .npz, .pkl or .pt"
    try:
        content = path.read_bytes()
        moments = _read(path, content)
    except OSError as error:
        raise DataError(f"{expected}; cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file fails in any operation there is
        raise DataError(f"{expected}, got something else ({reason(error)})") from error
    if moments.mean.shape != (dim,) or moments.cov.shape != (dim, dim):
        raise DataError(f"{expected}, got {tuple(moments.mean.shape)} and {tuple(moments.cov.shape)}")
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.cov).all()):
        raise DataError(f"{expected}, got numbers that are not finite")
    return moments, hashlib.sha256(content).hexdigest()


def _read(path: Path, content: bytes) -> Moments:
    if path.suffix == ".pt":
        return _of_arrays(load_foreign(path))
    return _of_arrays(unpickle.load(content)["fid"]) if path.suffix == ".pkl" else Moments.load(path)


def _of_arrays(data: Any) -> Moments:
    mean, cov = (torch.from_numpy(np.array(data[key], np.float64)) for key in ("mu", "sigma"))
    return Moments(0, mean, cov)
