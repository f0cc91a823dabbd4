"""Noise levels of a few-step model's steps, one after the other: a scan, then ternary search (arXiv 2303.01469)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmcore.assemble.results import TrainedRun
from cmcore.atomic import write_atomic
from cmcore.diffusion.grids import karras_grid
from cmcore.evaluate.collect import collect
from cmcore.evaluate.frechet import frechet_distance
from cmcore.evaluate.suite import Reference
from cmcore.rng import derive_seed

GRID = 49  # levels of the Karras grid among which is searched
STRIDE = 6  # of the first look at them
Distance = Callable[[tuple[float, ...]], float]


def least(distance: Callable[[int], float], low: int, high: int, stride: int = STRIDE) -> int:
    """The least of a function on the whole numbers low to high.

    Every `stride`-th value is tried; between the neighbours of the least of them the function is taken to be unimodal,
    and searched in thirds.
    """
    met: dict[int, float] = {}

    def at(index: int) -> float:
        met[index] = met[index] if index in met else distance(index)
        return met[index]

    coarse = [*range(low, high, stride), high]
    place = min(range(len(coarse)), key=lambda i: at(coarse[i]))
    low, high = coarse[max(0, place - 1)], coarse[min(len(coarse) - 1, place + 1)]
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        if at(left) <= at(right):
            high = right - 1
        else:
            low = left + 1
    for index in range(low, high + 1):
        at(index)
    return min(met, key=lambda index: met[index])


def search(distance: Distance, grid: Sequence[float], most: int) -> list[tuple[float, ...]]:
    """The levels after the first for 2 up to `most` steps.

    Those of fewer steps are kept, and one more is searched for below them, among the levels of the descending grid.
    """
    found: list[tuple[float, ...]] = []
    above: tuple[float, ...] = ()
    for _ in range(2, most + 1):
        low = grid.index(above[-1]) + 1 if above else 0
        if low >= len(grid):
            break

        def at(index: int, above: tuple[float, ...] = above) -> float:
            return distance((*above, grid[index]))

        above = (*above, grid[least(at, low, len(grid) - 1)])
        found.append(above)
    return found


@dataclass
class Record:
    """Distances by levels, in a file, so that none is measured twice under the same settings."""

    path: Path
    settings: dict[str, Any]  # all that decides a distance
    tried: dict[tuple[float, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if known["settings"] == self.settings:
                self.tried = {tuple(row["levels"]): row["distance"] for row in known["tried"]}

    def cached(self, distance: Distance) -> Distance:
        """The function, asked only for what is new."""

        def known(levels: tuple[float, ...]) -> float:
            if levels not in self.tried:
                self.tried[levels] = distance(levels)
                self.write([])
            return self.tried[levels]

        return known

    def write(self, found: Sequence[tuple[float, ...]]) -> None:
        """Write what is known, and the best of every number of steps."""
        tried = [{"levels": list(levels), "distance": value} for levels, value in sorted(self.tried.items())]
        best = [{"steps": len(levels) + 1, "levels": list(levels), "distance": self.tried[levels]} for levels in found]
        data = {"settings": self.settings, "best": best, "tried": tried}
        write_atomic(self.path, (json.dumps(data, indent=1) + "\n").encode())


def search_levels(
    run: TrainedRun,
    reference: Reference,
    path: Path,
    *,
    steps: int,
    samples: int,
    seed: int,
    on_images: Callable[[int], None] = lambda _: None,
) -> list[tuple[float, ...]]:
    """The best levels after the first for 2 up to `steps` steps, by the Frechet distance of samples.

    Args:
        run: a few-step model whose levels are free.
        reference: the real images.
        path: of the record; what is in it for the same weights, reference, samples and seed is not measured again.
        steps: the most.
        samples: images for each distance. All are from the same noise, which is not that of the tables.
        seed: the tables'.
        on_images: gets the size of every batch that is drawn.

    Raises:
        ValueError: there are no levels to choose.
    """
    d, noise = run.model.diffusion, derive_seed(seed, "levels")
    grid = [
        level for level in karras_grid(GRID, d.sigma_min, d.sigma_max, d.rho)[1:-1].tolist()
        if run.method.scan(run.sampling, [level])
    ]  # fmt: skip
    if not grid:
        raise ValueError(f"{run.name}: expected a method whose steps have levels to choose")

    def distance(levels: tuple[float, ...]) -> float:
        batches = run.batches(range(samples), sampler=run.sampler(levels=levels), seed=noise, on_images=on_images)
        (part,) = collect(batches, [reference.extractor], shard=samples, keep=0, device=run.device)
        return frechet_distance(part.moments, reference.moments)

    settings = {
        "weights": run.model.meta.get("fingerprint", ""), "ema": run.model.profile,
        "extractor": reference.extractor.digest, "reference": reference.digest,
        "samples": samples, "seed": noise, "grid": grid,
    }  # fmt: skip
    record = Record(path, settings)
    found = search(record.cached(distance), grid, steps)
    record.write(found)
    return found
