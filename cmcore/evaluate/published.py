"""Reference moments that others have published, from a file: the FID of a paper is against exactly these."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcore.data.errors import DataError
from cmcore.evaluate.moments import Moments


def read_moments(path: Path, dim: int) -> tuple[Moments, str]:
    """Moments of features of dimension `dim`, and the sha256 of the file.

    Args:
        path: an .npz with mu and sigma, as of the EDM repositories, or a .pt with both as torch-fidelity caches them.
        dim: of the features that will be compared with them.

    Raises:
        DataError: the file is missing or holds something else; nothing in it was executed.
    """
    expected = f"{path} (eval.reference_npz): expected mu ({dim},) and sigma ({dim}, {dim}) in an .npz, or a .pt"
    try:
        content = path.read_bytes()
        moments = _of_arrays(_torch_load(content)) if path.suffix == ".pt" else Moments.load(path)
    except OSError as error:
        raise DataError(f"{expected}; cannot be read ({error.strerror or error})") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"{expected}, got something else ({' '.join(str(error).split())[:200]})") from error
    if moments.mean.shape != (dim,) or moments.cov.shape != (dim, dim):
        raise DataError(f"{expected}, got {tuple(moments.mean.shape)} and {tuple(moments.cov.shape)}")
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.cov).all()):
        raise DataError(f"{expected}, got numbers that are not finite")
    return moments, hashlib.sha256(content).hexdigest()


def _torch_load(content: bytes) -> Any:
    """A file of torch.save with arrays in it; torch's restricted unpickler takes these names and no others."""
    rebuild = np._core.multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
    # Under the second name it is in files that were written with numpy 1.
    names = [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
    names += [type(np.dtype(kind)) for kind in ("float32", "float64")]
    with torch.serialization.safe_globals(names):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _of_arrays(data: Any) -> Moments:
    mean, cov = (torch.from_numpy(np.asarray(data[key], np.float64)) for key in ("mu", "sigma"))
    return Moments(0, mean, cov)
