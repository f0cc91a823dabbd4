"""What every method must do, whatever its paper: the tests find the methods by themselves."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from registry import ENTRIES, entry
from tiny import METHODS, batches, flat, make_denoiser, make_method, make_state, make_train, weightless

from cmcore import plugins
from cmcore.config import ConfigError, plain, read
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import STUDENT, Blend, Copy, LossOut, Progress
from cmcore.rng import Draws
from cmcore.train.state import State, new_state

every_method = pytest.mark.parametrize("name", METHODS)
HALFWAY = Progress(images=160, total=320, batch=16)
WRONG = [(name, options, field) for name, known in ENTRIES.items() for options, field in known.wrong]
VARIANTS = [(name, options) for name in METHODS for options in ({}, *entry(name).variants)]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


def loss(state: State, name: str, seed: int = 1, progress: Progress = HALFWAY, **options: Any) -> LossOut:
    draws = Draws(seed, progress.images, 16)
    return make_method(name, **options).loss(state.nets, batches(draws), progress, draws)


def test_the_registry_knows_every_method_and_no_other():
    assert set(ENTRIES) == set(METHODS)


@every_method
def test_the_config_survives_a_round_trip_and_refuses_unknown_keys(name: str):
    cls = plugins.load("cmcore.methods", name).Config
    config = cls()
    assert read(cls, plain(config)) == config
    with pytest.raises(ConfigError, match="unknown key"):
        read(cls, {**plain(config), "nonsense": 1})


@every_method
def test_presets_are_the_constants_of_the_papers(name: str):
    config, known = plain(plugins.load("cmcore.methods", name).Config()), entry(name)
    assert {key: config[key] for key in config if key not in known.other} == known.paper


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


@every_variant
def test_gradients_reach_all_that_a_player_trains_and_nothing_else(name: str, options: dict[str, Any]):
    method = make_method(name, **options)
    for player in method.players:
        state = make_state(method, noise=0.3)
        draws = Draws(1, HALFWAY.images, 16)
        method.loss_of(player, state.nets, batches(draws), HALFWAY, draws).loss.sum().backward()
        named = {
            f"{key}.{at}": parameter
            for key, module in state.nets.modules.items()
            for at, parameter in module.named_parameters()
            if (key == player == STUDENT) or (key in method.networks and method.networks[key].role == "trained"
                                              and method.networks[key].player == player)
        }  # fmt: skip
        for key, parameter in named.items():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key
        for key, network in method.networks.items():
            if network.role != "trained":
                assert all(p.grad is None and not p.requires_grad for p in state.nets[key].parameters()), key
        held = {id(p) for group in state.players[player].optimiser.param_groups for p in group["params"]}
        assert held == {id(parameter) for parameter in named.values()}


@every_method
def test_the_first_steps_reach_every_layer_from_the_zero_start(name: str):
    state = make_state(make_method(name))
    optimiser = state.players[STUDENT].optimiser
    for step in range(3):
        optimiser.zero_grad()
        loss(state, name, seed=step).loss.mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in state.nets.student.parameters())


@every_method
def test_the_boundary_flag_decides_whether_f_is_the_identity_at_sigma_min(name: str):
    method = make_method(name)
    assert method.traits.boundary == entry(name).boundary
    student = make_state(method, noise=0.5).nets.student.eval()
    x = batches(Draws(0, 0, 16)).x
    with torch.no_grad():
        f = student(x, torch.full((16,), 0.002, dtype=torch.float64))
    assert torch.equal(f, x) == method.traits.boundary


@every_variant
def test_every_network_starts_and_stands_as_its_role_says(name: str, options: dict[str, Any]):
    method = make_method(name, **options)
    student = make_denoiser(
        boundary=method.traits.boundary, dropout=0.3, noise=0.3, inputs=method.traits.inputs
    ).eval()  # fmt: skip
    sources = {"student": student, "init": make_denoiser(seed=5, dropout=0.3), "teacher": make_denoiser(dropout=0.3)}
    nets = new_state(method, student, make_train(), init=sources["init"], teacher=sources["teacher"]).nets
    assert nets.student.training
    assert set(nets.modules) == {STUDENT, *method.networks}
    for key, network in method.networks.items():
        dropping = network.role == "trained" or (network.role == "moved" and network.dropout)
        assert {module.training for module in nets[key].modules()} == {dropping}, key
        assert (nets[key] is sources.get(network.start)) == (network.role == "frozen" and network.start != "new")
        if network.start != "new" and network.make is None:
            assert torch.equal(flat(nets[key].parameters()), flat(sources[network.start].parameters())), key


@every_method
def test_a_target_follows_with_a_decay(name: str):
    for options in ({}, *entry(name).variants):
        method = make_method(name, **options)
        actions = [method.after(Progress(images, 320, 16)) for images in range(0, 320, 16)]
        moved = {key for key, network in method.networks.items() if network.role == "moved"}
        followed = [{action.network for action in found if isinstance(action, Blend)} for found in actions]
        copied = {action.network for found in actions for action in found if isinstance(action, Copy)}
        assert all(names == followed[0] for names in followed)  # at every step
        assert (followed[0] | copied) - {STUDENT} == moved
        assert all(0 <= action.decay < 1 for found in actions for action in found if isinstance(action, Blend))


@every_method
def test_a_missing_teacher_is_named(name: str):
    method = make_method(name)
    assert (method.traits.teacher != "none") == entry(name).teacher
    if entry(name).teacher:
        with pytest.raises(ValueError, match=r"needs a teacher for its network 'teacher': set the run's `teacher`"):
            new_state(method, make_denoiser(), make_train(), init=make_denoiser())
    else:
        assert new_state(method, make_denoiser(), make_train()).nets.student.training


@pytest.mark.parametrize("name", [name for name in METHODS if entry(name).close is not None])
def test_student_and_target_share_noise_and_dropout_mask(name: str, monkeypatch: pytest.MonkeyPatch):
    """Both points are (almost) the same, so that only a different mask can tell their images apart."""
    options, diffusion = entry(name).close, DiffusionConfig(sigma_min=0.1, sigma_max=20.0)
    assert options is not None
    method = make_method(name, diffusion, **options)
    state = make_state(method, noise=0.3, dropout=0.5)

    def distance() -> float:
        draws = Draws(1, 0, 16)
        out = method.loss(state.nets, batches(draws), Progress(319, 320, 16), draws)
        return float(out.scalars.get("distance", out.loss.detach().mean()))

    same = distance()
    monkeypatch.setattr(Draws, "dropout", lambda _: nullcontext())
    torch.manual_seed(0)
    assert same < 1e-2 * distance()


@pytest.mark.parametrize("name", [name for name in METHODS if weightless(name)])
def test_a_distance_without_its_weights_is_refused(name: str):
    service = make_method(name, distance="lpips").traits.services
    assert service == ("lpips",)
    assert make_method(name).traits.services == ()
    with pytest.raises(ValueError, match="lpips needs its weights"):
        loss(make_state(make_method(name)), name, distance="lpips")
