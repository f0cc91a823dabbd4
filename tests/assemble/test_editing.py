"""Editing with runs of all kinds: what is known stays, evaluations are matched, wrong models are refused."""

import pytest
import torch
from stored import PARAMS, store
from torch.nn.functional import avg_pool2d

from cmcore.assemble import editing
from cmcore.assemble.results import open_run
from cmcore.diffusion.guidance import at_scale
from cmcore.diffusion.inputs import NO_LABEL

RUNS = {
    **PARAMS["runs"],
    "imm": {"method": "imm", "init": "edm", "teacher": "none"},
    "tcm": {"method": "tcm", "init": "ect", "teacher": "ect"},
    "dmd2": {"method": "dmd2", "init": "edm", "teacher": "edm"},
}


@pytest.fixture
def opened(tmp_path):
    def one(name, **changes):
        store(tmp_path, name, **{"runs": RUNS, **changes})
        return open_run(name, tmp_path)

    return one


def images(count: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("name", "nfe"), [("ect", 9), ("imm", 9), ("edm", 9)])
@pytest.mark.parametrize("task", ["inpaint", "super-resolution"])
def test_the_known_part_is_kept_at_the_same_number_of_evaluations(opened, name, nfe, task):
    run, missing = opened(name), images()[:, :1] > 0
    known = editing.known_part(task, images(), missing=missing, factor=2, resolution=8)
    x, got = editing.restore(run, known, range(2), steps=9, seed=1)
    assert (x.shape, x.dtype, got) == ((2, 1, 8, 8), torch.float64, nfe)
    assert known.error(x) < 1e-12
    if task == "super-resolution":
        torch.testing.assert_close(avg_pool2d(x, 2), avg_pool2d(images().double(), 2), rtol=0, atol=1e-12)
    else:
        assert torch.equal(x[~missing], images().double()[~missing])
    assert not torch.equal(x, editing.restore(run, known, range(2), steps=9, seed=2)[0])


def test_small_images_are_enlarged():
    small = avg_pool2d(images(), 4)
    assert editing.known_part("super-resolution", small, resolution=8).shown().shape == (2, 1, 8, 8)


def test_colours_and_grey_are_taken_alike():
    colour = images(channels=3)
    whole = editing.known_part("colourise", colour)
    grey = torch.einsum("bchw,c->bhw", colour.double(), torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64))
    assert editing.known_part("colourise", grey[:, None]).error(colour) < 1e-12
    assert whole.error(colour) < 1e-12


def test_levels_that_a_model_has_forgotten_are_left_out(opened):
    assert min(editing.levels(opened("tcm"), 40)) >= 1.0
    assert len(editing.levels(opened("ect"), 40)) == 40


def test_strokes_are_guided_from_below_the_highest_level(opened):
    for name, nfe in (("ect", 2), ("edm", 17)):
        run = opened(name)
        x, got = editing.stroke(run, images(), seed=1)
        assert (x.shape, got) == ((2, 1, 8, 8), nfe)
        near, _ = editing.stroke(run, images(), sigma=0.003, steps=3)
        assert (near - images()).abs().mean() < 0.05 < (x - images()).abs().mean()


def test_interpolation_ends_at_the_samples_of_the_seeds(opened):
    run = opened("ect")
    way, nfe = editing.interpolate(run, (3, 4), 5)
    assert nfe == 1
    for index, seed in ((0, 3), (-1, 4)):
        assert torch.equal(run.to_images(way)[index], run.sample(1, seed=seed)[0])


def test_denoising_is_one_evaluation(opened):
    run, noisy = opened("ect"), images().double()
    level = torch.full((2,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        found, nfe = editing.denoise(run, noisy, 0.5)
        assert torch.equal(found, run.model.denoiser(noisy, level, None))
    assert nfe == 1


@pytest.mark.parametrize("away", [None, 2])
def test_every_evaluation_of_an_edit_is_guided(opened, away: int | None):
    """By the formula in one step; in several it counts, and what is known stays known."""
    run, noisy, labels = opened("edm", classes=3, conditional=True), images().double(), torch.tensor([0, 1])
    guided = run.sampler(guidance=1.7)
    guided = guided if away is None else run.away_from(guided, away)
    known, many = editing.known_part("super-resolution", images(), factor=2, resolution=8), {"steps": 9, "seed": 1}
    with torch.no_grad():
        level = torch.full((2,), 0.5, dtype=torch.float64)
        told, none = (
            run.model.denoiser(noisy, level, y) for y in (labels, torch.full((2,), NO_LABEL if away is None else away))
        )
        found, nfe = editing.denoise(run, noisy, 0.5, labels, guided)
        torch.testing.assert_close(found, none + 1.7 * (told - none), rtol=0, atol=1e-5)
    assert nfe == 2
    x, nfe = editing.restore(run, known, range(2), labels=labels, sampler=guided, **many)
    plain, once = editing.restore(run, known, range(2), labels=labels, **many)
    assert (nfe, once) == (18, 9)
    assert known.error(x) < 1e-12
    assert (x - plain).abs().max() > 1e-3
    painted, nfe = editing.stroke(run, images(), labels=labels, sampler=guided, **many)
    plain, once = editing.stroke(run, images(), labels=labels, **many)
    assert (nfe, once) == (18, 9)
    assert (painted - plain).abs().max() > 1e-3


def test_a_student_edits_at_the_scale_that_it_is_told(opened):
    options = {"guidance": [1, 3], "distance": "l2"}
    runs = {"cd": {"method": "cd", "init": "edm", "teacher": "edm", "options": options}}
    runs["edm"] = {**RUNS["edm"], "options": {"label_dropout": 0.1}}
    run, noisy, labels = opened("cd", classes=3, conditional=True, runs=runs), images().double(), torch.tensor([0, 1])
    level = torch.full((2,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        found, nfe = editing.denoise(run, noisy, 0.5, labels, run.sampler(guidance=2.5))
        assert torch.equal(found, at_scale(run.model.denoiser, 2.5)(noisy, level, labels))
        assert not torch.equal(found, editing.denoise(run, noisy, 0.5, labels)[0])
    assert nfe == 1


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda opened: editing.function(opened("dmd2")), "dmd2: expected a diffusion model, or a method whose steps"),
        (lambda opened: editing.levels(opened("ect"), 0), "steps: expected at least 1, got 0"),
        (lambda opened: editing.denoise(opened("ect"), images(), 30.0), "sigma: expected a level from 0.002 to 20.0"),
        (lambda _: editing.known_part("inpaint", images()), "mask: expected one for inpainting"),
        (
            lambda _: editing.known_part("super-resolution", images(), factor=3, resolution=8),
            "factor: expected a divisor of 8, at least 2, got 3",
        ),
        (
            lambda _: editing.known_part("super-resolution", images()[..., :3, :3], resolution=8),
            "image: expected a side that divides 8, got 3",
        ),
    ],
)
def test_what_does_not_suit_is_refused(opened, action, message):
    with pytest.raises(ValueError, match=message):
        action(opened)


def test_a_diffusion_model_needs_two_steps(opened):
    known = editing.known_part("super-resolution", images(), resolution=8)
    with pytest.raises(ValueError, match="steps: expected at least 3 for a diffusion model, got 2"):
        editing.restore(opened("edm"), known, range(2), steps=2)
