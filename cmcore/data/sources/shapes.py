"""Drawn scenes with captions: two coloured shapes, one above the other or left of it.

"a red circle above a blue square": 6 colours, 3 shapes and 2 relations make 648 captions, of which each scene has one;
places and sizes vary. Drawing is whole-number arithmetic, so equal settings give equal bytes everywhere.
"""

from collections.abc import Iterator

import numpy as np
import torch

from cmcore.data.settings import DataConfig
from cmcore.data.sources.source import Block, Source
from cmcore.diffusion.words import Words
from cmcore.rng import generator

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (50, 90, 230),
    "yellow": (250, 220, 50),
    "white": (245, 245, 245),
    "purple": (160, 60, 200),
}
FORMS = ("circle", "square", "triangle")
RELATIONS = ("above", "left of")
GROUND = (38, 42, 48)  # colour behind the shapes
FINE = 4  # samples across a pixel
UNITS = 8  # of length in a pixel, so that samples lie on odd numbers
SOME = 1024  # scenes to a block
# Lengths as parts of a thousand of the image's side: ranges of the near and the far centre along the relation, of both
# centres across it, and of the radius. Shapes neither touch one another nor the border, and are farther apart along the
# relation than across it, so that a scene has one caption only.
NEAR, FAR, ACROSS, RADIUS = (230, 290), (710, 770), (350, 650), (130, 190)
_DRAWN = 11  # numbers that make a scene
WORDS = Words.of(
    f"a {colour} {form} {relation} a {colour} {form}" for colour in COLOURS for form in FORMS for relation in RELATIONS
)


def shapes(config: DataConfig) -> Source:
    """So many scenes as `config.count` asks for; a scene depends on the seed and on its number alone."""
    numbers = np.concatenate([_numbers(config.seed, start) for start in range(0, config.count, SOME)])[: config.count]

    def blocks() -> Iterator[Block]:
        for start in range(0, config.count, SOME):
            some = numbers[start : start + SOME]
            yield Block(range(start, start + len(some)), np.stack([_scene(row, config.resolution) for row in some]))

    return Source(np.zeros(config.count, np.int64), (), blocks, captions=tuple(map(_caption, numbers.tolist())))


def _numbers(seed: int, start: int) -> np.ndarray:
    """The numbers of a block of scenes, int64 (SOME, _DRAWN), each in [0, 2^20)."""
    drawn = torch.randint(2**20, (SOME, _DRAWN), generator=generator("shapes", seed, start))
    return drawn.numpy()


def _pick(number: int, low: int, high: int) -> int:
    """A whole number in [low, high], as good as uniform."""
    return low + number * (high - low + 1) // 2**20


def _things(row: list[int]) -> tuple[list[tuple[str, str]], str]:
    """Colour and form of the two shapes, and their relation."""
    names = list(COLOURS)
    pairs = [(names[_pick(a, 0, len(names) - 1)], FORMS[_pick(b, 0, len(FORMS) - 1)]) for a, b in (row[:2], row[2:4])]
    return pairs, RELATIONS[_pick(row[4], 0, len(RELATIONS) - 1)]


def _caption(row: list[int]) -> str:
    (one, other), relation = _things(row)
    return f"a {' '.join(one)} {relation} a {' '.join(other)}"


def _scene(row: np.ndarray, resolution: int) -> np.ndarray:
    """A scene, uint8 (3, resolution, resolution)."""
    numbers = row.tolist()
    pairs, relation = _things(numbers)
    side = UNITS * resolution
    at = np.arange(FINE * resolution) * (UNITS // FINE) + UNITS // FINE // 2
    image = np.empty((3, resolution, resolution), np.int64)
    image[:] = np.array(GROUND)[:, None, None]
    for (colour, form), along, (a, b, c) in zip(pairs, (NEAR, FAR), (numbers[5:8], numbers[8:11]), strict=True):
        centre = [_pick(a, *along), _pick(b, *ACROSS)]
        y, x = (part * side // 1000 for part in (centre if relation == "above" else centre[::-1]))
        inside = _inside(form, at[:, None] - y, at[None] - x, _pick(c, *RADIUS) * side // 1000)
        covered = inside.reshape(resolution, FINE, resolution, FINE).sum((1, 3))
        paint = np.array(COLOURS[colour])[:, None, None]
        image = (image * (FINE**2 - covered) + paint * covered + FINE**2 // 2) // FINE**2
    return image.astype(np.uint8)


def _inside(form: str, dy: np.ndarray, dx: np.ndarray, radius: int) -> np.ndarray:
    """Whether points, relative to the centre, lie in a shape of about the same size for every form."""
    if form == "circle":
        return dy**2 + dx**2 <= radius**2
    if form == "square":
        return (8 * np.abs(dy) <= 7 * radius) & (8 * np.abs(dx) <= 7 * radius)
    return (4 * dy <= 3 * radius) & (2 * np.abs(dx) <= dy + radius)  # a triangle, its tip up
