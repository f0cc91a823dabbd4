"""Samplers chosen by steps, levels, solver and guidance."""

import pytest
from tiny import METHODS, make_method

from cmcore.assemble.choice import at_levels, check_negative, choose
from cmcore.diffusion.grids import karras_grid
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Method
from cmcore.sample.base import Sampler
from cmcore.sample.fewstep import Multistep
from cmcore.sample.guided import GuidedSampler
from cmcore.sample.settings import Sampling

D = DiffusionConfig(sigma_max=20.0)
SAMPLING = Sampling(diffusion=D, steps=7, two_step=1.5)


def same(a: Sampler, b: Sampler) -> bool:
    return (a.name, a.nfe, a.noise_levels, a.sigma_max) == (b.name, b.nfe, b.noise_levels, b.sigma_max)


@pytest.mark.parametrize("name", METHODS)
def test_steps_of_a_row_choose_the_row(name):
    method = make_method(name, D)
    rows = method.samplers(SAMPLING)
    assert same(choose(method, SAMPLING), rows[0])
    for row in rows if method.traits.few_step else ():
        assert same(choose(method, SAMPLING, steps=row.nfe), row)


@pytest.mark.parametrize("name", [name for name in METHODS if make_method(name, D).scan(SAMPLING, [5.0])])
def test_levels_are_those_that_are_asked_for(name):
    method = make_method(name, D)
    assert choose(method, SAMPLING, levels=[5.0, 2.0]).noise_levels == (20.0, 5.0, 2.0)
    assert choose(method, SAMPLING, steps=3, levels=[5.0, 2.0]).nfe == 3
    with pytest.raises(ValueError, match=r"levels: expected 1, one for every step after the first, got \[5.0, 2.0\]"):
        choose(method, SAMPLING, steps=2, levels=[5.0, 2.0])
    for wrong in ([2.0, 5.0], [20.0], [0.002], [5.0, 5.0]):
        with pytest.raises(ValueError, match="levels: expected descending levels"):
            choose(method, SAMPLING, levels=wrong)


def test_more_steps_are_on_the_karras_grid():
    found = choose(make_method("ect", D), SAMPLING, steps=5)
    assert isinstance(found, Multistep)
    assert found.levels == tuple(karras_grid(6, D.sigma_min, 20.0)[:-1].tolist())


def test_levels_that_a_model_has_forgotten_are_refused():
    with pytest.raises(ValueError, match="levels that the model has learned"):
        choose(make_method("tcm", D), SAMPLING, levels=[0.5])  # its student learns levels from 1 on alone


@pytest.mark.parametrize("name", ["pd", "shortcut", "meanflow", "dmd2"])
def test_fixed_steps_are_listed(name):
    with pytest.raises(ValueError, match=r"^steps: expected one of [\d, ]+, got 3"):
        choose(make_method(name, D), SAMPLING, steps=3)


@pytest.mark.parametrize(
    ("solver", "steps", "nfe"),
    [("", 5, 9), ("heun", 5, 9), ("heun_churn", 5, 9), ("dpmpp_2s", 5, 9), ("euler", 5, 5), ("dpmpp_2m", 5, 5),
     ("euler_linear", 1, 1), ("euler", 0, 7), ("heun", 0, 13)],
)  # fmt: skip
def test_a_solver_takes_so_many_steps(solver, steps, nfe):
    found = choose(make_method("edm", D), SAMPLING, steps=steps, solver=solver)
    assert (found.name, found.nfe) == (solver or "heun", nfe)


def conditional(name: str, **options: object) -> Method:
    return make_method(name, D, **options)


def test_guidance_doubles_the_evaluations_of_a_diffusion_model_and_not_of_a_student():
    teacher, student = conditional("edm", label_dropout=0.1), conditional("cd", guidance=(1.0, 4.0))
    found = choose(teacher, SAMPLING, steps=5, guidance=2.0, labelled=True)
    assert isinstance(found, GuidedSampler)
    assert (found.s, found.nfe) == (2.0, 18)
    assert choose(student, SAMPLING, steps=2, guidance=2.0, labelled=True).nfe == 2
    assert choose(student, SAMPLING, levels=[5.0, 1.0], guidance=2.0, labelled=True).noise_levels == (20.0, 5.0, 1.0)


def test_other_levels_stay_under_the_guidance():
    guided = GuidedSampler(Multistep((20.0, 1.0), 0.002), 2.0)
    moved = at_levels(guided, (20.0, 3.0, 2.0))
    assert isinstance(moved, GuidedSampler)
    assert (moved.s, moved.noise_levels) == (2.0, (20.0, 3.0, 2.0))


@pytest.mark.parametrize(
    ("name", "options", "s"),
    [("edm", {}, 2.0), ("rf", {"label_dropout": 0.1}, 0.5), ("imm", {"label_dropout": 0.1}, 2.0)],
)
def test_models_that_are_guided_when_sampled_take_a_negative_prompt(name: str, options: dict[str, object], s: float):
    method = conditional(name, **options)
    found = choose(method, SAMPLING, guidance=s, labelled=True)
    assert check_negative(method, found, labelled=True) is found
    for sampler in (choose(method, SAMPLING, guidance=1.0, labelled=True), None):
        with pytest.raises(ValueError, match=r"^negative: expected a guidance scale other than 1 beside it"):
            check_negative(method, sampler, labelled=True)


@pytest.mark.parametrize(
    ("name", "options", "asked", "message"),
    [
        ("cd", {"guidance": (1.0, 4.0)}, {"guidance": 2.0}, "the network is told the guidance scale"),
        ("cd", {"guidance": (1.0, 4.0)}, {}, "the network is told the guidance scale"),
        ("lcm", {"guidance": (2.0, 2.0)}, {}, r"the guidance scale 2\.0 is part of the weights"),
        ("dmd2", {"guidance": 2.0}, {}, r"the guidance scale 2\.0 is part of the weights"),
        ("ect", {}, {}, "the model has learned no guidance"),
        ("edm", {}, {"labelled": False}, "the network sees no labels"),
    ],
)
def test_models_that_are_not_guided_when_sampled_take_no_negative_prompt(name, options, asked, message):
    method, asked = conditional(name, **options), {"labelled": True} | asked
    for sampler in (choose(method, SAMPLING, **asked), None):
        with pytest.raises(ValueError, match=f"^negative: expected none, as {message}"):
            check_negative(method, sampler, labelled=asked["labelled"])


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("ect", {"steps": -1}, "steps: expected at least 1, got -1"),
        ("ect", {"solver": "heun"}, "solver: expected none, as the model is no diffusion model, got 'heun'"),
        ("edm", {"levels": [1.0]}, "levels: expected none, as the model is a diffusion model"),
        ("edm", {"solver": "rk4"}, "solver: expected one of euler, .*, got 'rk4'"),
        ("edm", {"steps": 1}, "steps: expected at least 2 for heun, got 1"),
        ("edm", {"guidance": 2.0}, "guidance: expected 1, as the network sees no labels, got 2.0"),
        ("ect", {"guidance": 2.0, "labelled": True}, "guidance: expected 1, as the model has learned no scales"),
    ],
)
def test_impossible_requests_are_refused(name, asked, message):
    with pytest.raises(ValueError, match=message):
        choose(make_method(name, D), SAMPLING, **asked)


def test_a_scale_outside_of_the_learned_ones_is_refused():
    with pytest.raises(ValueError, match=r"guidance: expected a scale from 1.0 to 4.0, got 5.0"):
        choose(conditional("cd", guidance=(1.0, 4.0)), SAMPLING, guidance=5.0, labelled=True)
