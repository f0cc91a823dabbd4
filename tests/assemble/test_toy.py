"""Methods in the plane: the distributions, the exact flow, and what is measured against it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cmcore import plugins
from cmcore.assemble import toy
from cmcore.commands.toy import toy as draw_page
from cmcore.oracles import as_consistency
from cmcore.report.toy import along, hues, panels
from cmcore.rng import Draws

PROJECT = toy.toy_project()
D = PROJECT.sections.diffusion


@pytest.fixture(scope="module")
def exact() -> toy.Exact:
    return toy.Exact.of(toy.mixture(0.5), D, 40)


@pytest.mark.parametrize("name", toy.DATA)
def test_the_points_have_the_scale_of_the_settings(name):
    oracle = toy.DATA[name](0.5)
    moment = (oracle.weights[:, None] * (oracle.means.flatten(1) ** 2 + oracle.std[:, None] ** 2)).sum(0)
    assert float(moment.mean()) == pytest.approx(0.25, abs=1e-12)
    drawn = toy.batches(oracle)(Draws(1, 0, 20_000)).x
    assert drawn.shape == (20_000, 2, 1, 1)
    assert float(drawn.square().mean()) == pytest.approx(0.25, abs=0.01)
    assert drawn.mean(0).abs().max() < 0.02
    assert float(toy.density(oracle).max()) > 0.5


def test_every_method_takes_part_after_those_it_needs():
    methods = {run.method for run in PROJECT.runs.values()}
    assert methods == {name for name in plugins.available("cmcore.methods") if not toy.sees_images(name)}
    assert toy.sees_images("fd_loss")
    order = [run.name for run in toy.in_order(PROJECT)]
    assert sorted(order) == sorted(PROJECT.runs)
    for run in PROJECT.runs.values():
        assert all(order.index(parent) < order.index(run.name) for parent in run.parents)


def test_every_method_takes_a_step_in_the_plane_and_is_drawn(exact, monkeypatch):
    monkeypatch.setattr(toy, "JUDGED", 20)
    trained, real = {}, toy._real(exact.oracle, 20)
    for run in toy.in_order(PROJECT):
        short = replace(run, train=replace(run.train, images=32, batch=16, lr_ref_images=0))
        trained[run.name] = toy.train(short, exact.oracle, trained)
        assert toy.draw(run, trained[run.name], exact, real).ends.shape == (20, 2), run.name
        toy.errors_along(run, trained[run.name], exact, 20)


def test_a_method_without_an_entry_gets_one(monkeypatch):
    read = toy.load_yaml(toy.SETTINGS)
    del read["runs"]["tcm"], read["runs"]["cd"]
    monkeypatch.setattr(toy, "load_yaml", lambda _: read)
    runs = toy.toy_project().runs
    assert (runs["tcm"].teacher, runs["cd"].teacher, runs["cd"].method_config.distance) == (
        "ect",
        "edm",
        "pseudo_huber",
    )


def test_the_flow_is_exact_to_more_digits_than_a_figure_shows(exact):
    fine = replace(exact.oracle, steps=400)
    start, end = (torch.full((40,), v, dtype=torch.float64) for v in (D.sigma_max, D.sigma_min))
    assert (fine.flow(exact.states[0], start, end) - exact.ends).abs().max() < 1e-3


def test_noise_is_seen_as_wide_as_the_data(exact):
    seen = exact.seen(exact.states[0], D.sigma_max)
    assert seen.shape == (40, 2)
    assert seen.std() == pytest.approx(0.5, abs=0.1)
    assert np.allclose(exact.seen(exact.ends, 0.0), exact.ends.flatten(1))


def test_the_exact_map_has_no_error_and_another_has(exact, monkeypatch):
    monkeypatch.setattr(toy, "JUDGED", 40)
    perfect, real = as_consistency(replace(exact.oracle, steps=400), D.sigma_min), toy._real(exact.oracle, 500)
    drawn = toy.draw(PROJECT.runs["ect"], perfect, exact, real)
    assert drawn.map_error < 1e-3
    assert (drawn.nfe, drawn.ends.shape, drawn.paths.shape) == (1, (40, 2), (2, 12, 2))
    errors = toy.errors_along(PROJECT.runs["ect"], perfect, exact, 40)
    assert errors is not None
    assert errors.max() < 1e-3
    moved = toy.draw(PROJECT.runs["ect"], lambda x, sigma, labels: perfect(x, sigma, labels) + 0.3, exact, real)
    assert moved.map_error == pytest.approx(0.3 * 2**0.5, abs=1e-3)
    assert moved.energy > drawn.energy + 0.1


def test_networks_that_know_some_levels_alone_have_no_error_along(exact):
    model = as_consistency(exact.oracle, D.sigma_min)
    assert toy.errors_along(PROJECT.runs["dmd2"], model, exact) is None


def test_the_energy_distance():
    a, b = torch.zeros(5, 2), torch.full((5, 2), 3.0)
    assert toy.energy_distance(a, b) == pytest.approx(math.sqrt(2 * 3 * 2**0.5))
    one, two = torch.randn(2, 3000, 2, generator=torch.Generator().manual_seed(0))
    assert toy.energy_distance(one, two) < 0.06


def test_colours_follow_the_direction_of_the_noise():
    points = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    shades = hues(points)
    assert shades.shape == (3, 4)
    assert ((shades >= 0) & (shades <= 1)).all()
    assert np.abs(shades[0] - shades[1]).max() < 0.3 < np.abs(shades[0] - shades[2]).max()


def test_a_page_of_few_steps(tmp_path, monkeypatch):
    """Two runs instead of all, for two steps."""
    few = {name: PROJECT.runs[name] for name in ("edm", "ect")}
    short = {name: replace(run, train=replace(run.train, images=512, lr_ref_images=0)) for name, run in few.items()}
    project = replace(PROJECT, runs=short)
    monkeypatch.setattr("cmcore.commands.toy.toy_project", lambda _=None: project)
    monkeypatch.setattr(toy, "JUDGED", 60)
    threads = torch.get_num_threads()
    try:
        lines = list(draw_page(tmp_path, tmp_path / "out", "mixture"))
    finally:
        torch.set_num_threads(threads)
    assert lines[-1].endswith("index.html shows mixture")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html", "mixture.png", "mixture_along.png", "toy.json",
    }  # fmt: skip
    assert Image.open(tmp_path / "out/mixture.png").size[0] > 1000
    found = json.loads((tmp_path / "out/toy.json").read_text())
    assert [row["name"] for row in found["data"]["mixture"]["rows"]] == ["exact flow", "edm", "ect", "ect"]
    assert found["data"]["mixture"]["rows"][0]["energy"] < 0.3
    text = (tmp_path / "out/index.html").read_text()
    assert "mixture.png" in text
    assert "easy consistency tuning" in text


def test_figures_hold_any_number_of_methods():
    points = np.zeros((5, 2))
    one = toy.Drawn(name="a", nfe=1, ends=points, paths=np.zeros((2, 2, 2)), map_error=0.1, energy=0.1)
    for count in (1, 4, 5, 23):
        scene = toy.Scene(
            data="mixture", noise=points, density=np.zeros((9, 9)), exact=one, drawn=[one] * count,
            levels=np.array([10.0, 0.1]), errors={f"m{i}": np.array([0.1, 0.2]) for i in range(count)},
        )  # fmt: skip
        shown = [axes for axes in panels(scene).axes if axes.get_title(loc="left")]
        assert len(shown) == count + 2
        assert len(along(scene).axes[0].lines) == count
