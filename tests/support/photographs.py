"""Folders of images as people have them, drawn by formulas: photographs, faces, icons, large pictures."""

from pathlib import Path

import numpy as np
from PIL import Image


def photographs(folder: Path, count: int = 100) -> Path:
    """Colour JPEG files of two classes, discs and bars on a sky, of sizes between 40 and 72 pixels."""
    draws = np.random.default_rng(1)
    for index in range(count):
        name, (height, width) = ("discs", "bars")[index % 2], draws.integers(40, 72, 2)
        y, x = np.mgrid[0:height, 0:width] / min(height, width)
        image = np.stack([90 + 60 * y, 120 + 50 * y, 230 - 40 * y], axis=2)
        at, size = draws.uniform(0.3, 0.7, 2), draws.uniform(0.1, 0.25)
        shape = (y - at[0]) ** 2 + (x - at[1]) ** 2 < size**2 if name == "discs" else abs(x - at[1]) < size / 2
        image[shape] = draws.integers(0, 255, 3)
        save(image + draws.normal(0, 4, image.shape), folder / name / f"{index:03d}.jpg")
    return folder


def faces(folder: Path, count: int = 60) -> Path:
    """Grey PNG files of 48x40: an oval with eyes and a mouth."""
    draws = np.random.default_rng(2)
    y, x = np.mgrid[0:48, 0:40]
    for index in range(count):
        cx, cy = 20 + draws.normal(0, 1), 24 + draws.normal(0, 1)
        image = np.where(((x - cx) / 13) ** 2 + ((y - cy) / 18) ** 2 < 1, 190.0, 40.0)
        for side in (-5, 5):
            image[(x - cx - side) ** 2 + (y - cy + 4) ** 2 < 5] = 30
        image[(abs(y - cy - 8) < 1 + draws.random()) & (abs(x - cx) < 5)] = 60
        save(image + draws.normal(0, 4, image.shape), folder / f"{index:03d}.png")
    return folder


def icons(folder: Path, count: int = 80) -> Path:
    """PNG files of 32x32 in colour with an alpha channel: a disc on nothing."""
    draws = np.random.default_rng(3)
    y, x = np.mgrid[0:32, 0:32]
    for index in range(count):
        image = np.zeros((32, 32, 4))
        image[(x - 16) ** 2 + (y - 16) ** 2 < draws.integers(20, 200)] = (*draws.integers(0, 255, 3), 255)
        save(image, folder / f"{index:03d}.png")
    return folder


def large(folder: Path, count: int = 24) -> Path:
    """JPEG files of 900x600 and of 600x900: waves of colour."""
    draws = np.random.default_rng(4)
    for index in range(count):
        height, width = (600, 900) if index % 3 else (900, 600)
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / draws.integers(40, 90) + y / draws.integers(40, 90)) for _ in range(3)]
        save(128 + 90 * np.stack(waves, axis=2), folder / f"{index:03d}.jpg")
    return folder


def save(image: np.ndarray, path: Path) -> None:
    """Values (H, W) or (H, W, C), cut to 0 to 255, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
