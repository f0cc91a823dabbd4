"""The search for levels: it finds the least, keeps earlier levels, and asks for nothing twice."""

import json
from itertools import pairwise

import pytest
import torch
from stored import store

from cmcore.assemble.level_search import Record, least, search, search_levels
from cmcore.assemble.results import open_run
from cmcore.evaluate.features import random_extractor
from cmcore.evaluate.moments import Moments
from cmcore.evaluate.suite import Reference


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 30, 47])
def test_the_least_of_a_unimodal_function_is_found(count):
    for place in range(count):
        assert least(lambda i, place=place: abs(i - place), 0, count - 1) == place


def test_a_second_valley_does_not_catch_the_search():
    """Two steps whose second is at a tiny level are as good as one, so that distances are flat there."""
    assert least(lambda i: -3.0 if i == 12 else -2.0 if 9 < i < 15 else -1.0 if i > 40 else 0.0, 0, 47) == 12


def test_it_takes_few_values():
    asked = set()

    def distance(index: int) -> float:
        asked.add(index)
        return (index - 20) ** 2

    assert least(distance, 0, 46) == 20
    assert len(asked) <= 16


def test_levels_of_fewer_steps_are_kept():
    grid = [10.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.5]
    wanted = (6.0, 2.0, 0.5)

    def distance(levels: tuple[float, ...]) -> float:
        return sum(abs(a - b) for a, b in zip(levels, wanted, strict=False))

    assert search(distance, grid, 4) == [(6.0,), (6.0, 2.0), (6.0, 2.0, 0.5)]
    assert search(distance, grid[:3], 4) == [(6.0,)]  # nothing is left below


def test_what_is_recorded_is_not_asked_again(tmp_path):
    calls = []

    def distance(levels: tuple[float, ...]) -> float:
        calls.append(levels)
        return levels[-1]

    first = Record(tmp_path / "r.json", {"samples": 10})
    assert [first.cached(distance)((2.0,)) for _ in range(2)] == [2.0, 2.0]
    assert Record(tmp_path / "r.json", {"samples": 10}).cached(distance)((2.0,)) == 2.0
    assert len(calls) == 1
    Record(tmp_path / "r.json", {"samples": 20}).cached(distance)((2.0,))
    assert len(calls) == 2


def test_a_run_is_searched_and_continued(tmp_path):
    store(tmp_path, "ect")
    run, extractor = open_run("ect", tmp_path), random_extractor(1, 8, width=4, features=6)
    real = torch.randint(0, 256, (80, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = Reference(extractor, Moments.of(extractor(real)), None, "digest")
    drawn: list[int] = []

    def found(seed: int = 1) -> list[tuple[float, ...]]:
        path = tmp_path / "levels/ect.json"
        return search_levels(run, reference, path, steps=3, samples=50, seed=seed, on_images=drawn.append)

    chosen = found()
    assert chosen
    assert all(after[:-1] == before for before, after in pairwise(chosen))
    assert all(20.0 > level > 0.002 for levels in chosen for level in levels)
    record = json.loads((tmp_path / "levels/ect.json").read_text())
    assert [row["levels"] for row in record["best"]] == [list(levels) for levels in chosen]
    assert record["best"][0]["distance"] == min(r["distance"] for r in record["tried"] if len(r["levels"]) == 1)
    count = len(drawn)
    assert found() == chosen
    assert len(drawn) == count  # all from the record
    found(seed=2)
    assert len(drawn) > count


def test_a_model_without_levels_is_refused(tmp_path):
    store(tmp_path, "edm")
    reference = Reference(random_extractor(1, 8, width=4, features=6), None, None, "")  # pyright: ignore
    with pytest.raises(ValueError, match="edm: expected a method whose steps have levels to choose"):
        search_levels(open_run("edm", tmp_path), reference, tmp_path / "r", steps=2, samples=50, seed=1)
