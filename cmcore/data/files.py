"""Images to files: a grid, an archive, or a folder with one file each."""

from pathlib import Path

import numpy as np
import torch

from cmcore.atomic import write_atomic
from cmcore.data.mel import to_sounds
from cmcore.data.png import to_png
from cmcore.data.wav import write_wav

SIDE = 512  # pixels at least, of a grid


def save_images(
    images: np.ndarray, path: Path, *, columns: int = 0, labels: np.ndarray | None = None, sound: bool = False
) -> None:
    """Write images (N, C, H, W), uint8 with one or three channels unless they go to an archive.

    Args:
        images: the images.
        path: NAME.png for a grid, small images enlarged; NAME.npz for the array `images`, and `labels` where there are
            some; NAME.wav for sounds one after the other; else a folder, for 000000.png and so on, each in its own
            size.
        columns: of the grid, by default as many as rows.
        labels: (N,).
        sound: the images are sounds (cmcore/data/mel.py).

    Raises:
        ValueError: the path has another ending, or a PNG cannot hold the images.
    """
    suffix = path.suffix.lower()
    check_target(path, sound=sound)
    if suffix == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, allow_pickle=False, images=images, **({} if labels is None else {"labels": labels}))
        return
    if images.dtype != np.uint8 or images.shape[1] not in (1, 3):
        kind = f"{images.dtype} with {images.shape[1]} channels"
        raise ValueError(f"{path}: a PNG holds uint8 images of 1 or 3 channels, got {kind}; name a .npz file instead")
    if suffix == ".png":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_png(images, columns or round(len(images) ** 0.5), least_side=SIDE))
        return
    if suffix == ".wav":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, write_wav(to_sounds(torch.from_numpy(images)).flatten().numpy()))
        return
    path.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        write_atomic(path / f"{index:06d}.png", _plain_png(image))


def save_image(image: np.ndarray, path: Path) -> None:
    """Write one image (C, H, W) as it is, with the ending .png; else as `save_images`."""
    if path.suffix.lower() == ".png":
        write_atomic(path, _plain_png(image))
    else:
        save_images(image[None], path)


def check_target(path: Path, *, sound: bool = False) -> None:
    """A ValueError for a path that `save_images` would refuse."""
    endings = (".png", ".npz", *((".wav",) if sound else ()))
    if path.suffix and path.suffix.lower() not in endings and not path.is_dir():
        names = ", ".join(f"NAME{ending}" for ending in endings)
        raise ValueError(f"{path}: expected {names}, or a folder without an ending")


def _plain_png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
