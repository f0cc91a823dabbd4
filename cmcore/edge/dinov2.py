"""DINOv2's weights, from a file or downloaded, as a `FeatureExtractor`."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from cmcore.bounded import check_safetensors
from cmcore.errors import DataError, reason
from cmcore.evaluate.dinov2 import Dinov2Extractor, transformer
from cmcore.evaluate.settings import Dinov2Config
from cmcore.nets.public.foreign import load_foreign, named_tensors

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


def load_dinov2(config: Dinov2Config, device: torch.device | str = "cpu") -> Dinov2Extractor | None:
    """The extractor, or None where the parameters ask for none.

    Raises:
        DataError: the file is missing, cannot be downloaded, has another checksum, or holds something else. Nothing in
            it is executed.
    """
    if not config.path and not config.download:
        return None
    path = Path(config.path) if config.path else _downloaded()
    if not path.is_file():
        raise DataError(f"eval.dinov2.path: expected a file of DINOv2's weights, got {config.path!r}; {URL} is one")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if config.sha256 and digest != config.sha256:
        raise DataError(f"{path}: expected sha256 {config.sha256} (eval.dinov2.sha256), got {digest}")
    return Dinov2Extractor(transformer(_tensors(path), str(path)), digest, device)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return dict(named_tensors(load_foreign(path)))
    check_safetensors(path)
    return load_file(path)


def _downloaded() -> Path:
    """The weights in torch.hub's cache, downloaded if absent. Their digest is part of the extractor's name."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(target), progress=False)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{URL}: cannot be downloaded ({reason(error)}); or name a file: eval.dinov2.path"
            ) from error
    return target
