"""Half precision: what stays in float32, and the scaling of fp16's loss."""

from dataclasses import replace

import pytest
import torch
from faulty import Overflows, copied, gate
from registry import entry
from tiny import METHODS, batches, make_method, make_state, make_train

from cmcore.consistency import tangents
from cmcore.consistency.weights import AdaptiveWeight
from cmcore.methods.base import STUDENT
from cmcore.train import precision, steps
from cmcore.train.gate import NonFiniteError
from cmcore.train.precision import INITIAL, LossScale, choose_matrix_units
from cmcore.train.session import Window
from cmcore.train.state import load_state_tensors


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_every_method_trains_in_half_precision_near_the_full_one(name: str, half: str):
    method, losses = make_method(name, **entry(name).coarse), []
    for wanted in ("fp32", half):
        config = make_train(images=96, precision=wanted)
        state = make_state(method, config, noise=0.3)
        records = list(steps.steps(state, method, batches, config))
        losses.append(torch.stack([record.values["loss"] for record in records]))
        everything = [*state.parameters, *state.ema["ema"], *losses[-1]]
        assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in everything)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.02)
    # All that a forward-mode derivative needs is in full precision anyway.
    assert ("student", "jvp+backward") in entry(name).passes or not torch.equal(losses[1], losses[0])


@pytest.mark.parametrize("name", ["sct", "scd"])
def test_tangents_in_fp32_and_what_they_start_from_are_in_full_precision(name: str, monkeypatch: pytest.MonkeyPatch):
    """Then an sCM step under autocast is the step without, to the bit."""
    method, seen = make_method(name), []
    inner = tangents.consistency_tangent
    monkeypatch.setattr(
        "cmcore.consistency.trigflow.consistency_tangent", lambda *args: seen.append(inner(*args)) or seen[-1]
    )
    for wanted in ("fp32", "bf16"):
        config = make_train(images=32, precision=wanted)
        list(steps.steps(make_state(method, config, noise=0.3), method, batches, config))
    assert torch.equal(*seen)
    with torch.autocast("cpu", torch.bfloat16):
        assert AdaptiveWeight()(torch.rand(3)).dtype == torch.float32


def part(key: str) -> str:
    """The part of the state that a tensor belongs to: a network, the averages, an optimiser or its scale."""
    group, name, *rest = key.split("/")
    return {"nets": name, "ema": "ema"}.get(group) or rest[0]


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("name", ["edm", "ct", "sct"])
def test_an_overflow_skips_optimiser_average_and_target_together(name: str, deferred: bool):
    method = Overflows(
        make_method(name, **({"ct": {"s1": 10}, "edm": {"reduction": "mean"}}.get(name, {}))), lambda k: k in (0, 3)
    )
    config = make_train(precision="fp16", optimiser="radam" if name == "ct" else "adam")
    state = make_state(method, config, noise=0.3)
    taken, scales = [], []
    with gate(deferred):
        before = copied(state)
        for record in steps.steps(state, method, batches, config):
            after = copied(state)
            changed = {part(key) for key in after if not torch.equal(after[key], before.get(key, after[key] * 0))}
            assert changed >= {"student", "ema", "optimiser"} if changed - {"scale"} else changed == {"scale"}
            assert ("target" in changed) == (name == "ct" and "student" in changed)
            taken.append("student" in changed)
            scales.append(float(record.values["loss_scale"]))
            assert float(record.values["skipped"]) == (not taken[-1])
            assert record.values["grad_norm"].isfinite()
            before = after
    assert taken == [k not in (0, 3) for k in range(10)]
    assert scales == [INITIAL / 2] * 3 + [INITIAL / 4] * 7
    student = state.players[STUDENT]
    assert student.scale is not None
    assert int(student.scale.skipped) == 2
    assert all(int(slots["step"]) == 8 for slots in student.optimiser.state.values())


def test_the_scale_is_part_of_the_state_and_a_resumed_run_ends_in_the_same_bits():
    method = Overflows(make_method("edm", reduction="mean"), lambda k: k in (1, 6))
    config = make_train(precision="fp16")
    whole, half, resumed = (make_state(method, config, seed=seed) for seed in (0, 0, 1))
    list(steps.steps(whole, method, batches, config))
    list(steps.steps(half, method, batches, replace(config, images=160)))
    load_state_tensors(resumed, copied(half), half.images)
    assert {f"players/student/scale/{key}" for key in ("scale", "streak", "skipped")} <= copied(half).keys()
    list(steps.steps(resumed, method, batches, config))
    ours, theirs = copied(resumed), copied(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert int(theirs["players/student/scale/skipped"]) == 2


def test_the_scale_halves_at_an_overflow_and_doubles_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "INTERVAL", 3)
    scale, seen = LossScale(), []
    for finite in (True, True, False, True, True, True, True, True, True):
        assert not scale.update(torch.tensor(finite))
        seen.append(float(scale.scale) / INITIAL)
    assert seen == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2]
    assert int(scale.skipped) == 1


def test_scaling_is_exact():
    scale, gradients = LossScale(), [torch.randn(50), torch.randn(3, 4)]
    scaled = [gradient * scale.scale for gradient in gradients]
    scale.unscale(scaled)
    assert all(torch.equal(a, b) for a, b in zip(scaled, gradients, strict=True))


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(("kind", "step"), [("gradient", 17), ("loss", 1)])
def test_what_no_scale_can_help_ends_the_run(kind: str, step: int, deferred: bool):
    """Sixteen halvings lead to the least scale, where an overflow is not its fault; a bad loss never is."""
    method, config = Overflows(make_method("edm"), lambda _: True, kind), make_train(precision="fp16", images=32 * 40)
    state = make_state(method, config)
    start = copied(state)
    with gate(deferred), pytest.raises(NonFiniteError, match=rf"at step {step} \("):
        list(steps.steps(state, method, batches, config))
    end = copied(state)
    assert all(torch.equal(end[name], start[name]) for name in start if part(name) != "scale")


def test_the_history_has_the_share_of_skipped_steps():
    method, window = Overflows(make_method("edm", reduction="mean"), lambda k: k == 3), Window()
    config = make_train(precision="fp16", images=128)
    for record in steps.steps(make_state(method, config), method, batches, config):
        window.add(record)
    means = window.means()
    assert means["skipped"] == 0.25
    assert all(torch.tensor(value).isfinite() for value in means.values())


def test_tf32_is_for_the_run_that_asks_for_it():
    flags: list[tuple[bool, bool]] = []
    for wanted in ("tf32", "bf16", "fp32"):
        choose_matrix_units(wanted)
        flags.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
    assert flags == [(True, True), (False, False), (False, False)]
    choose_matrix_units("bf16", "tf32")
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("name", ["sct", "scd"])
def test_a_step_with_a_derivative_in_bf16_is_near_the_full_one(name: str):
    """Alone, and beside a pass in bf16; then also the pass itself is of the run's precision."""
    method, losses = make_method(name, warmup_images=0), []
    for wanted in ({}, {"jvp_precision": "bf16"}, {"precision": "bf16", "jvp_precision": "bf16"}):
        config = make_train(images=96, **wanted)
        records = list(steps.steps(make_state(method, config, noise=0.3), method, batches, config))
        losses.append(torch.stack([record.values["loss"] for record in records]))
    for other in losses[1:]:
        assert not torch.equal(other, losses[0])
        torch.testing.assert_close(other, losses[0], rtol=0.1, atol=0.02)
    assert not torch.equal(losses[1], losses[2])
