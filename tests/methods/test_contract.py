"""What every method must do, whatever its paper: the tests find the methods by themselves."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny import METHODS, batches, flat, make_config, make_denoiser, make_method, make_state, make_train

from cmcore import plugins
from cmcore.config import ConfigError, plain, read
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import LossOut, Progress
from cmcore.rng import Draws
from cmcore.train.state import State, new_state

every_method = pytest.mark.parametrize("name", METHODS)
HALFWAY = Progress(images=160, total=320, batch=16)
# The papers' constants for CIFAR-10: CD and CT arXiv 2303.01469 Table 3; iCT 2310.14189 Table 2 and sec. 3.3-3.5;
# ECT 2406.14548 and its repository's run_ecm.sh (c = 0 there, see the field); sCM 2410.11081 Alg. 1 and App. D, with
# H = 10k iterations of 512 images; EDM 2206.00364 Table 1.
PRESETS: dict[str, dict[str, Any]] = {
    "edm": {"P_mean": -1.2, "P_std": 1.2, "uncertainty": False, "label_dropout": 0.0},
    "cd": {"N": 18, "solver": "heun", "distance": "lpips", "mu": 0.0, "guidance": None},
    "ct": {"s0": 2, "s1": 150, "mu0": 0.9, "distance": "lpips"},
    "ict": {"s0": 10, "s1": 1280, "P_mean": -1.1, "P_std": 2.0, "huber_c": 0.0},
    "ect": {
        "P_mean": -1.1, "P_std": 2.0, "q": 2.0, "k": 8.0, "b": 1.0, "stages": 8, "huber_c": 1e-8, "weighting": "gap",
        "ratio_limit": 1.0,
    },
    "sct": {"P_mean": -1.0, "P_std": 1.4, "c": 0.1, "warmup_images": 5_120_000},
    "scd": {"P_mean": -1.0, "P_std": 1.4, "c": 0.1, "warmup_images": 5_120_000, "guidance": None},
}  # fmt: skip
BOUNDARY = {"edm": False, "cd": True, "ct": True, "ict": True, "ect": False, "sct": False, "scd": False}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("edm", {"P_std": 0.0}, "P_std"),
    ("cd", {"N": 1}, "N"),
    ("cd", {"mu": 1.0}, "mu"),
    ("cd", {"huber_c": 0.0}, "huber_c"),
    ("cd", {"guidance": [2.0, 1.0]}, "guidance"),
    ("scd", {"guidance": [-1.0, 1.0]}, "guidance"),
    ("scd", {"guidance": [1.0]}, "guidance"),
    ("edm", {"label_dropout": 1.1}, "label_dropout"),
    ("cd", {"solver": "rk4"}, "solver"),
    ("ct", {"s0": 1}, "s0"),
    ("ct", {"s0": 9, "s1": 8}, "s1"),
    ("ct", {"mu0": 1.0}, "mu0"),
    ("ict", {"s0": 0}, "s0"),
    ("ict", {"s1": 9}, "s1"),
    ("ict", {"huber_c": -1.0}, "huber_c"),
    ("ect", {"q": 1.0}, "q"),
    ("ect", {"stages": 0}, "stages"),
    ("ect", {"q": 256.0}, "stages"),
    ("ect", {"q": 1e300}, "stages"),
    ("ect", {"ratio_limit": 1.1}, "ratio_limit"),
    ("ect", {"huber_c": 0.0}, "huber_c"),
    ("ect", {"weighting": "x"}, "weighting"),
    ("sct", {"c": -1.0}, "c"),
    ("scd", {"P_std": -1.0}, "P_std"),
    ("sct", {"warmup_images": -1}, "warmup_images"),
    ("pretrained", {"sha256": "abc"}, "sha256"),
    ("pretrained", {"kind": "teacher"}, "kind"),
]


def loss(state: State, name: str, seed: int = 1, progress: Progress = HALFWAY, **options: Any) -> LossOut:
    draws = Draws(seed, progress.images, 16)
    return make_method(name, **options).loss(state.nets, batches(draws), progress, draws)


def test_the_method_that_trains_nothing_says_so_and_is_the_only_one_left_out_here():
    others = set(plugins.available("cmcore.methods")) - set(METHODS)
    assert others == {"pretrained"}
    pretrained = plugins.load("cmcore.methods", "pretrained")
    assert read(pretrained.Config, plain(pretrained.Config())) == pretrained.Config()
    for kind, few_step in (("diffusion", False), ("consistency", True)):
        method = make_method("pretrained", kind=kind)
        assert method.needs.file
        assert (method.boundary, method.few_step) == (few_step, few_step)
    assert not make_method("pretrained", kind="consistency", boundary=False).boundary
    assert not any(make_method(name).needs.file for name in METHODS)


@every_method
def test_the_config_survives_a_round_trip_and_refuses_unknown_keys(name: str):
    cls = plugins.load("cmcore.methods", name).Config
    config = cls()
    assert read(cls, plain(config)) == config
    with pytest.raises(ConfigError, match="unknown key"):
        read(cls, {**plain(config), "nonsense": 1})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_constants_of_the_papers(name: str):
    config = plain(plugins.load("cmcore.methods", name).Config())
    assert {key: config[key] for key in PRESETS[name]} == PRESETS[name]
    assert {*config} - {*PRESETS[name]} <= {"huber_c"}  # of a distance that is not the paper's choice


@pytest.mark.parametrize(("name", "options", "field"), WRONG)
def test_impossible_constants_are_refused_by_name(name: str, options: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        read(plugins.load("cmcore.methods", name).Config, options)
    assert caught.value.path == field


@every_method
def test_the_loss_is_finite_and_one_number_a_sample(name: str):
    for noise in (0.0, 0.3):
        out = loss(make_state(make_method(name), noise=noise), name)
        assert out.loss.shape == (16,)
        assert out.loss.isfinite().all()
        assert not any(isinstance(value, torch.Tensor) and value.requires_grad for value in out.scalars.values())


@every_method
def test_one_seed_gives_one_loss(name: str):
    state = make_state(make_method(name), noise=0.3, dropout=0.2)
    first = loss(state, name).loss
    torch.manual_seed(123)  # the global generator is not asked
    assert torch.equal(loss(state, name).loss, first)
    assert not torch.equal(loss(state, name, seed=2).loss, first)


@every_method
def test_gradients_reach_every_student_parameter_and_no_other(name: str):
    state = make_state(make_method(name), noise=0.3)
    loss(state, name).loss.sum().backward()
    trained = [*state.nets.student.named_parameters(), *state.nets.named_parameters()]
    for key, parameter in trained:
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key
    for other in (state.nets.teacher, state.nets.target):
        assert other is None or all(p.grad is None and not p.requires_grad for p in other.parameters())
    held = {id(p) for group in state.optimiser.param_groups for p in group["params"]}
    assert held == {id(parameter) for _, parameter in trained}


@every_method
def test_the_first_steps_reach_every_layer_from_the_zero_start(name: str):
    state = make_state(make_method(name))
    for step in range(3):
        state.optimiser.zero_grad()
        loss(state, name, seed=step).loss.mean().backward()
        state.optimiser.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in state.nets.student.parameters())


@every_method
def test_the_boundary_flag_decides_whether_f_is_the_identity_at_sigma_min(name: str):
    method = make_method(name)
    assert method.boundary == BOUNDARY.get(name, method.boundary)
    student = make_state(method, noise=0.5).nets.student.eval()
    x = batches(Draws(0, 0, 16)).x
    with torch.no_grad():
        f = student(x, torch.full((16,), 0.002, dtype=torch.float64))
    assert torch.equal(f, x) == method.boundary


@every_method
def test_teacher_and_target_stand_as_they_should(name: str):
    method = make_method(name, **({"mu": 0.5} if name == "cd" else {}))
    student = make_denoiser(boundary=method.boundary, dropout=0.3, noise=0.3).eval()
    teacher = make_denoiser(dropout=0.3) if method.needs.teacher else None
    models = new_state(method, student, teacher, make_train()).models
    assert models.student.training
    assert models.teacher is None or not models.teacher.training
    assert (models.target is not None) == method.needs.target
    if models.target is not None:  # in train mode: it has to drop what the student drops
        assert models.target.training
        assert torch.equal(flat(models.target.parameters()), flat(models.student.parameters()))
        assert 0 <= method.target_decay(HALFWAY) < 1
    else:
        with pytest.raises(NotImplementedError):
            make_method("ict").target_decay(HALFWAY)


@every_method
def test_a_missing_teacher_is_named(name: str):
    method = make_method(name)
    if method.needs.teacher:
        with pytest.raises(ValueError, match="needs a teacher"):
            new_state(method, make_denoiser(), None, make_train())
    else:
        assert new_state(method, make_denoiser(), None, make_train()).models.teacher is None


# Settings under which both points are (almost) the same, so that only a different mask can tell their images apart.
CLOSE: dict[str, dict[str, Any]] = {
    "cd": {"N": 50_000, "distance": "l2"},
    "ct": {"s0": 50_000, "s1": 50_000, "distance": "l2"},
    "ict": {"s0": 50_000, "s1": 50_000},
    "ect": {"q": 4096.0, "stages": 2},
}


@pytest.mark.parametrize("name", CLOSE)
def test_student_and_target_share_noise_and_dropout_mask(name: str, monkeypatch: pytest.MonkeyPatch):
    options, diffusion = CLOSE[name], DiffusionConfig(sigma_min=0.1, sigma_max=20.0)
    method = make_method(name, diffusion, **options)
    state = make_state(method, noise=0.3, dropout=0.5)
    progress = Progress(images=319, total=320, batch=16) if name == "ect" else Progress(0, 320, 16)

    def distance() -> float:
        draws = Draws(1, 0, 16)
        out = method.loss(state.nets, batches(draws), progress, draws)
        return float(out.scalars.get("distance", out.loss.detach().mean()))

    same = distance()
    monkeypatch.setattr(Draws, "dropout", lambda _: nullcontext())
    torch.manual_seed(0)
    assert same < 1e-2 * distance()


def test_the_config_helper_chooses_a_distance_without_weights():
    assert make_config("cd").distance == "pseudo_huber"
    with pytest.raises(ValueError, match="lpips needs its weights"):
        loss(make_state(make_method("cd")), "cd", distance="lpips")
