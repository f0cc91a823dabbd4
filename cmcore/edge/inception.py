"""torch-fidelity's Inception network, whose features define FID, as a `FeatureExtractor`."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmcore.errors import DataError, reason
from cmcore.evaluate.records import INCEPTION_DIGEST
from cmcore.evaluate.settings import InceptionConfig
from cmcore.nets.public.foreign import load_foreign
from cmcore.torchvision_ops import import_torchvision

DIM = 2048
_BATCH, _ROWS = 100, 10_000  # images, and features, at a time


class InceptionExtractor:
    """Pool features (B, 2048) of uint8 images, and the logits without bias of published Inception scores."""

    dim, fidelity = DIM, True

    def __init__(self, net: Any, digest: str, device: torch.device | str = "cpu") -> None:
        self._net, self._device, self.digest = net.to(device), device, digest
        official = digest.startswith(INCEPTION_DIGEST)
        self.name = "inception" if official else f"inception_{digest[:8]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images: expected uint8 (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}")
        # The network resizes images to 299x299, so small batches occupy the device and large ones exceed its memory.
        with _exact():
            features = [self._net(part)[0] for part in images.expand(-1, 3, -1, -1).to(self._device).split(_BATCH)]
        return torch.cat(features).cpu()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([(part.to(self._device) @ self._net.fc.weight.T).cpu() for part in features.split(_ROWS)])


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions in full float32. CUDA's default rounds their factors to TF32, unlike the published FIDs."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Inception(NamedTuple):
    """The extractor, or None and the reason, as a phrase for a table's column."""

    extractor: InceptionExtractor | None
    reason: str


def load_inception(config: InceptionConfig, device: torch.device | str = "cpu") -> Inception:
    """The Inception extractor, where its weights are present or may be downloaded.

    Raises:
        DataError: the file holds something else.
    """
    # The first check, so that a record does not depend on the optional packages that are installed.
    if not config.path and not config.download:
        return Inception(None, "Inception weights absent: set eval.inception.path, or eval.inception.download: true")
    try:
        import_torchvision()
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    except ImportError as error:
        return Inception(None, f"{error.name} is not installed (the extra 'metrics')")
    path = Path(config.path) if config.path else _downloaded(fidelity.URL_INCEPTION_V3)
    if path is None:
        return Inception(None, "Inception weights absent: the download failed")
    if not path.is_file():
        return Inception(None, f"Inception weights absent: eval.inception.path names no file ({config.path})")
    net = _build(fidelity.FeatureExtractorInceptionV3, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Inception(InceptionExtractor(net, digest, device), "")


def _downloaded(url: str) -> Path | None:
    """The weights in torch.hub's cache, downloaded if absent and checked against the hash in the file's name."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=INCEPTION_DIGEST, progress=False)
    except (OSError, RuntimeError):  # no network, or a wrong hash
        return None
    return target


def _build(network: Any, path: Path) -> Any:
    """The network with the weights in a file.

    torch-fidelity unpickles the file without restriction, so it is given a copy of the tensors that were read here.
    """
    try:
        clean = io.BytesIO()
        torch.save(load_foreign(path), clean)
        clean.seek(0)
        return network("inception", ["2048"], feature_extractor_weights_path=clean)
    except Exception as error:  # a state dict of another network fails in torch-fidelity in many ways
        raise DataError(
            f"{path}: expected torch-fidelity's Inception weights (eval.inception.path), got something else "
            f"({reason(error)})"
        ) from error
