"""Reference moments that others have published, from a file: the FID of a paper is against exactly these."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcore.errors import DataError
from cmcore.evaluate.moments import Moments

_RECONSTRUCT = np._core.multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]


def read_moments(path: Path, dim: int) -> tuple[Moments, str]:
    """Moments of features of dimension `dim`, and the sha256 of the file.

    Args:
        path: an .npz with mu and sigma, as of the EDM repository; a .pkl with both under "fid", as of EDM2's; or a .pt
            with both, as torch-fidelity caches them.
        dim: of the features that will be compared with them.

    Raises:
        DataError: the file is missing or holds something else; nothing in it was executed.
    """
    expected = f"{path} (eval.reference_npz): expected mu ({dim},) and sigma ({dim}, {dim}) in an .npz, .pkl or .pt"
    try:
        content = path.read_bytes()
        moments = _read(path, content)
    except OSError as error:
        raise DataError(f"{expected}; cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file fails in any operation there is
        raise DataError(f"{expected}, got something else ({' '.join(str(error).split())[:200]})") from error
    if moments.mean.shape != (dim,) or moments.cov.shape != (dim, dim):
        raise DataError(f"{expected}, got {tuple(moments.mean.shape)} and {tuple(moments.cov.shape)}")
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.cov).all()):
        raise DataError(f"{expected}, got numbers that are not finite")
    return moments, hashlib.sha256(content).hexdigest()


def _read(path: Path, content: bytes) -> Moments:
    if path.suffix == ".pt":
        return _of_arrays(_torch_load(content))
    return _of_arrays(_Unpickler(io.BytesIO(content)).load()["fid"]) if path.suffix == ".pkl" else Moments.load(path)


class _Unpickler(pickle.Unpickler):
    """Takes plain data and arrays. Nothing else is looked up, so nothing else can be called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, global_name)
        # The first name is in files that were written with numpy 1.
        if global_name == "_reconstruct" and module_name in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _RECONSTRUCT
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _torch_load(content: bytes) -> Any:
    """A file of torch.save with arrays in it; torch's restricted unpickler takes these names and no others."""
    # Under the second name it is in files that were written with numpy 1.
    names = [_RECONSTRUCT, (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
    names += [type(np.dtype(kind)) for kind in ("float32", "float64")]
    with torch.serialization.safe_globals(names):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _of_arrays(data: Any) -> Moments:
    mean, cov = (torch.from_numpy(np.asarray(data[key], np.float64)) for key in ("mu", "sigma"))
    return Moments(0, mean, cov)
