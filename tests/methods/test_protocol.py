"""The protocol beyond the shipped methods: players, stages, few-step teachers, groups, second times, own samplers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import DIFFUSION, batches, flat, make_denoiser, make_method, make_train
from torch import Tensor
from toy_methods import NAMES, toy_methods

from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import STUDENT, Method, Progress
from cmcore.nets import mlp
from cmcore.rng import NoiseSource
from cmcore.train.settings import PlayerConfig, TrainConfig
from cmcore.train.state import State, load_state_tensors, new_state, state_tensors
from cmcore.train.steps import row_slices, steps, turns_of
from cmcore.train.workers import Worker

every_toy = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def _toys() -> Iterator[None]:
    with toy_methods():
        yield


def student_of(method: Method, seed: int = 0) -> Denoiser:
    """A tiny network with the inputs that the method declares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = mlp.Config(hidden=16, blocks=1, embedding_width=16, features=8, residual_gain=1.0, dropout=0.2)
        net = mlp.build(config, channels=1, resolution=2, classes=0, inputs=method.traits.inputs)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return Denoiser(net, sigma_data=DIFFUSION.sigma_data, inputs=method.traits.inputs)


def state_of(method: Method, config: TrainConfig) -> State:
    other = make_denoiser(noise=0.3, seed=7)
    if any(network.start == "init" for network in method.networks.values()):
        other = student_of(method, seed=7)
    return new_state(method, student_of(method), config, init=other, teacher=other)


def run(method: Method, config: TrainConfig, state: State | None = None, upto: int = 0) -> State:
    state = state or state_of(method, config)
    for record in steps(state, method, batches, config):
        if record.images == upto:
            break
    return state


@every_toy
def test_a_toy_trains_and_two_runs_agree(name: str):
    method, config = make_method(name), make_train(images=320)
    a, b = (state_tensors(run(method, config)) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    start = state_tensors(state_of(method, config))
    moved = {key for key in a if key in start and not torch.equal(a[key], start[key])}
    assert any(key.startswith("nets/student/") for key in moved)


@every_toy
@pytest.mark.parametrize("stop", [32, 160, 288])
def test_a_resumed_run_ends_in_the_same_bits(name: str, stop: int):
    method, config = make_method(name), make_train(images=320)
    whole = state_tensors(run(method, config))
    saved = {key: tensor.clone() for key, tensor in state_tensors(run(method, config, upto=stop)).items()}
    resumed = state_of(method, config)
    load_state_tensors(resumed, saved, stop)
    again = state_tensors(run(method, config, resumed))
    assert whole.keys() == again.keys()
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


@every_toy
def test_micro_batches_give_the_gradients_of_the_whole_batch(name: str):
    method = make_method(name)
    values = []
    for micro in (0, 8):
        config = make_train(images=32, micro_batch=micro)
        state = state_of(method, config)
        for module in state.nets.modules.values():  # without dropout, whose masks belong to micro-batches
            module.eval()
        (record,) = steps(state, method, batches, config)
        values.append({key: float(value) for key, value in record.values.items()})
    assert values[0] == pytest.approx(values[1], rel=1e-4)


# Players


def test_each_player_moves_in_its_own_turns_only():
    method, config = make_method("toy_critic"), make_train(images=32)
    assert method.players == (STUDENT, "critic")
    for left_out in method.players:
        state = state_of(method, config)
        before = {name: flat(state.nets[name].parameters()).clone() for name in (STUDENT, "critic")}

        class Some(type(method)):
            def turns(self, progress: Progress) -> Any:
                return [turn for turn in super().turns(progress) if turn != left_out]  # noqa: B023

        list(steps(state, Some(method.config, method.diffusion), batches, config))
        for name, start in before.items():
            assert torch.equal(flat(state.nets[name].parameters()), start) == (name == left_out), name


def test_turns_of_a_step_draw_different_noise_and_are_told_apart():
    method, config = make_method("toy_critic"), make_train(images=32)
    turns = turns_of(method, Progress(0, 320, 32))
    assert [turn.player for turn in turns] == ["critic", "critic", STUDENT]
    assert len({turn.stream for turn in turns}) == 3
    assert turns[-1].stream == ""
    (record,) = steps(state_of(method, config), method, batches, config)
    assert {"loss", "critic.0/loss", "critic.1/loss", "critic.0/gap", "opinion"} <= record.values.keys()
    assert float(record.values["critic.0/gap"]) != float(record.values["critic.1/gap"])


def test_a_player_has_its_own_settings():
    method = make_method("toy_critic")
    config = make_train(images=64, optimiser="adam", players={"critic": PlayerConfig(lr=0.5, optimiser="radam")})
    state = state_of(method, config)
    assert type(state.players["critic"].optimiser) is torch.optim.RAdam
    assert type(state.players[STUDENT].optimiser) is torch.optim.Adam
    record = next(iter(steps(state, method, batches, config)))
    assert (record.values["lr"], record.values["critic.0/lr"]) == (1e-3, 0.5)


def test_two_workers_train_two_players_as_one_does():
    method, config = make_method("toy_critic"), make_train(images=64)
    alone = flat(run(method, config).parameters)
    states = [state_of(method, config) for _ in range(2)]
    for state in states:
        for module in state.nets.modules.values():
            module.eval()
    lone = state_of(method, config)
    for module in lone.nets.modules.values():
        module.eval()
    alone = flat(run(method, config, lone).parameters)
    together = in_lockstep(method, config, states)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def in_lockstep(method: Method, config: TrainConfig, states: list[State]) -> Tensor:
    """Two workers in threads that sum what they are given."""
    import threading

    barrier, shared = threading.Barrier(2), {}

    def begin_for(rank: int) -> Any:
        def begin(tensor: Tensor) -> Any:
            shared[rank] = tensor.clone()
            barrier.wait(30)
            tensor.copy_(shared[0] + shared[1])
            barrier.wait(30)
            return lambda: None

        return begin

    def work(rank: int) -> None:
        list(steps(states[rank], method, batches, config, Worker(rank, 2, begin=begin_for(rank))))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    a, b = (flat(state.parameters) for state in states)
    assert torch.equal(a, b)
    return a


# Stages


def test_a_stage_copies_the_student_to_the_teacher_and_starts_anew():
    method, config = make_method("toy_halving"), make_train(images=320, lr_decay="linear", lr_ref_images=0)
    state = state_of(method, config)
    rates, stages = [], []
    for record in steps(state, method, batches, config):
        rates.append(float(record.values["lr"]))
        stages.append(float(record.values["stage"]))
        if record.images == 160:  # the end of the first stage
            averaged = state.weights("ema")
            teacher = state.nets.teacher.net.state_dict()
            assert all(torch.equal(teacher[key], averaged[key]) for key in averaged)
            assert torch.equal(flat(state.parameters), flat(state.ema["ema"]))
            assert state.players[STUDENT].optimiser.state_dict()["state"] == {}
            assert (state.players[STUDENT].started, state.players[STUDENT].until) == (160, 320)
    assert stages == [0.0] * 5 + [1.0] * 5
    assert rates[5] == pytest.approx(1e-3), "the schedule begins again"
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert not state.nets.teacher.training
    assert all(parameter.grad is None for parameter in state.nets.teacher.parameters())


def test_a_moved_teacher_begins_as_the_model_of_init():
    method, config = make_method("toy_halving"), make_train(images=320)
    init = student_of(method, seed=7)
    state = new_state(method, student_of(method), config, init=init)
    assert torch.equal(flat(state.nets.teacher.parameters()), flat(init.parameters()))
    assert state.nets.teacher is not init
    with pytest.raises(ValueError, match="needs a init for its network 'teacher'"):
        new_state(method, student_of(method), config)


# Groups


def test_groups_of_rows_are_never_cut_apart():
    assert [s.stop - s.start for s in row_slices(24, 8, Worker(), 4)] == [8, 8, 8]
    with pytest.raises(ValueError, match=r"train\.micro_batch: expected a multiple of the method's groups of 4, got 6"):
        row_slices(24, 6, Worker(), 4)
    with pytest.raises(ValueError, match=r"compute\.workers = 2 times the method's groups of 4, got 20"):
        row_slices(20, 0, Worker(0, 2), 4)


# Second times and samplers


def test_rows_of_a_method_with_its_own_samplers():
    method = make_method("toy_map")
    from cmcore.sample.settings import Sampling

    sampling = Sampling(diffusion=DIFFUSION, steps=4, two_step=1.0)
    rows = method.samplers(sampling)
    assert [(row.name, row.nfe) for row in rows] == [("jump", 1), ("low", 2), ("high", 2)]
    denoiser = student_of(method).eval()
    source = NoiseSource(1, range(3))
    images = rows[1](method.model(denoiser), (1, 2, 2), source)
    assert images.shape == (3, 1, 2, 2)
    assert images.isfinite().all()


def test_the_second_time_changes_what_the_network_says():
    method, config = make_method("toy_map"), make_train(images=320, lr=1e-2)
    state = run(method, config)
    key = next(name for name in state.weights() if name.startswith("embedding.inputs.s"))
    assert state.weights()[key].abs().max() > 0, "it was learned from zero"
