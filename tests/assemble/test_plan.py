"""The plan of a workload against closed forms, against PyTorch's own counter, and against the clock."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from every_run import run_of
from registry import entry
from tiny import METHODS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cmcore.assemble.models import ModelShape
from cmcore.assemble.project import Project, parse_project
from cmcore.budget.cost import Autocast, Meter, PassCost, PassKind, lpips_cost, on_meta, parameter_count, pass_cost
from cmcore.budget.machines import MACHINES, Machine, machine, this_cpu
from cmcore.budget.passes import check_labels, head_count, passes
from cmcore.budget.plan import RESERVE, Costs, Setting, data_shape, plan_run
from cmcore.commands import plan as cost
from cmcore.config import ConfigError
from cmcore.consistency.tangents import jvp_precision
from cmcore.diffusion.precond import Denoiser
from cmcore.layers.blocks import blocks
from cmcore.nets import adm, unet
from cmcore.numbers import size
from cmcore.pipeline.sizes import disk_of
from cmcore.tensors import full_precision, meta_dtype, meta_precision

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"kind": "unet", "model_channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [8]}
EMA = {"a": {"half_life": 1000.0}, "b": {"half_life": 2000.0}}
TEACHER = {"method": "edm", "init": "random", "teacher": "none"}


def project(**sections: object) -> Project:
    runs = {name: run_of(name) for name in METHODS}
    base = {
        "workload": "x",
        "data": {"source": "array", "path": "x.npy", "resolution": 16, "channels": 3},
        "diffusion": {},
        "net": SMALL,
        "train": {"images": 6400, "batch": 64, "ema": EMA, "eval_ema": "a"},
        "runs": runs,
    }
    return parse_project(base | sections)


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs(ModelShape(3, 16, 0))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_convolution_and_its_gradients():
    layer = on_meta(lambda: nn.Conv2d(3, 8, 5, padding=2, bias=False))
    x = meta(4, 3, 16, 16).requires_grad_()
    with Meter() as meter:
        y = layer(x)
        forward = dict(meter.flops)
        y.backward(torch.empty_like(y))
    assert forward == {torch.float32: 2 * 4 * 16 * 16 * 8 * 3 * 25}
    assert (
        meter.flops[torch.float32] == 3 * forward[torch.float32]
    )  # value, gradient of the image, gradient of the weights


def test_a_linear_layer_and_its_parameters():
    layer = on_meta(lambda: nn.Linear(20, 30))
    with Meter() as meter:
        layer(meta(7, 20))
    assert meter.flops == {torch.float32: 2 * 7 * 20 * 30}
    assert parameter_count(layer) == 20 * 30 + 30


def test_the_peak_is_what_lives_at_one_time():
    with Meter() as meter, torch.no_grad():
        a = meta(1000) + 1  # 4000 bytes
        b = a * 2
        c = b.view(10, 100)  # a view needs nothing
        del a, b
        d = c + 1
        del c, d
    assert meter.peak == 8000
    assert meter.live == 0


def test_what_is_kept_for_the_gradient_counts():
    x = meta(100).requires_grad_()
    with Meter() as meter:
        y = x
        for _ in range(5):
            y = y.sin()  # each keeps its input
        del y
    assert meter.peak == 5 * 400


def test_mixed_precision_without_a_device():
    layer, norm = on_meta(lambda: nn.Conv2d(4, 4, 1)), on_meta(lambda: nn.GroupNorm(2, 4))
    with Meter() as meter, meta_precision(torch.bfloat16), Autocast():
        y = layer(meta(1, 4, 8, 8))
        z = norm(y)
        with full_precision(torch.device("meta")):
            full = layer(meta(1, 4, 8, 8))
        back = layer(z)
    assert (y.dtype, z.dtype, full.dtype, back.dtype) == (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16)
    assert meter.flops == {torch.bfloat16: 2 * 2 * 64 * 16, torch.float32: 2 * 64 * 16}
    assert meta_dtype.get() is None


def test_half_precision_halves_the_weights_of_what_is_computed_not_the_operations(costs):
    run = project().run("edm")
    half = dataclasses.replace(run, train=dataclasses.replace(run.train, precision="bf16"))
    a, b = costs.of(run, "forward+backward"), costs.of(half, "forward+backward")
    assert sum(a.flops.values()) == sum(b.flops.values())
    assert set(a.flops) == {torch.float32}
    assert b.flops[torch.bfloat16] > 0.95 * sum(b.flops.values())


def test_the_networks_of_the_papers():
    ddpmpp = on_meta(lambda: unet.build(unet.Config(), channels=3, resolution=32, classes=0))
    imagenet = on_meta(lambda: adm.build(adm.Config(), channels=3, resolution=64, classes=1000))
    assert parameter_count(ddpmpp) == pytest.approx(55.7e6, rel=1e-3)
    assert parameter_count(imagenet) == pytest.approx(296e6, rel=2e-3)
    # VGG-16 has 15.35 G multiply-adds: two images forwards, one backwards.
    assert sum(lpips_cost().flops.values()) == pytest.approx(3 * 2 * 15.35e9, rel=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_step_asks_of_the_networks(name):
    assert dict(passes(project().run(name))) == entry(name).passes


@pytest.mark.parametrize("name", ["cd", "scd"])
def test_a_guided_teacher_is_asked_twice(name):
    teacher = TEACHER | {"options": {"label_dropout": 0.1}}
    student = run_of(name)
    student["options"] = student["options"] | {"guidance": [1.0, 2.0]}
    run = project(conditional=True, runs={"edm": teacher, name: student}).run(name)
    plain = entry(name).passes["teacher", "forward"]
    assert dict(passes(run)) == entry(name).passes | {("teacher", "forward"): 2 * plain}
    costs = Costs(ModelShape(3, 16, 10))
    assert costs.parameters(run) == costs.parameters(project(conditional=True).run("edm")) + 16 * 16  # the embedding
    extra = plan_run(run, costs, Setting(MACHINES["h100"])).operations
    unguided = dataclasses.replace(run, method_config=dataclasses.replace(run.method_config, guidance=None))
    extra -= plan_run(unguided, costs, Setting(MACHINES["h100"])).operations
    assert extra == plain * sum(costs.of(run, "forward").flops.values())


def test_cd_by_euler_with_an_average_as_target():
    options = {"solver": "euler", "mu": 0.9, "distance": "l2"}
    run = project(
        runs={"edm": TEACHER, "cd": {"method": "cd", "init": "edm", "teacher": "edm", "options": options}}
    ).run("cd")
    assert dict(passes(run)) == {
        ("student", "forward+backward"): 1,
        ("target", "forward"): 1,
        ("teacher", "forward"): 1,
    }


def test_adversaries_on_the_blocks_of_the_teacher(costs):
    options = {"features": "teacher", "distillation": 0.0}
    run = project(
        runs={"edm": TEACHER, "add": {"method": "add", "init": "edm", "teacher": "edm", "options": options}}
    ).run("add")
    assert dict(passes(run)) == {
        ("student", "forward+backward"): 1,
        ("student", "forward"): 1,
        ("teacher", "forward+backward"): 1,
        ("teacher", "forward"): 2,
    }
    maps = blocks(costs.denoiser(run).net)
    assert head_count(run, costs.denoiser(run)) >= 128 * 3 * len(maps) > 0


def test_operations_of_the_methods(costs):
    plans = {name: plan_run(run, costs, Setting(MACHINES["h100"])) for name, run in project().runs.items()}
    forward = plans["edm"].forward
    step = {name: plan.operations / forward for name, plan in plans.items()}
    assert step["edm"] == pytest.approx(3, rel=5e-3)  # the first layer has no gradient of the image
    for name in ("ect", "ict", "ct"):
        assert step[name] == pytest.approx(step["edm"] + 1, abs=1e-9)
    assert step["cd"] == pytest.approx(step["edm"] + 3, abs=1e-9)
    assert step["scd"] == pytest.approx(step["sct"] + 1, abs=1e-9)
    # A forward-mode derivative costs one network more. Attention differs: fused without it, written out with it.
    assert step["sct"] == pytest.approx(step["edm"] + 1, abs=0.1)


def test_operations_are_those_of_pytorchs_counter_on_real_tensors(costs):
    net = unet.build(project().run("edm").net.config, channels=3, resolution=16, classes=0)
    denoiser, x = Denoiser(net, sigma_data=0.5), torch.randn(2, 3, 16, 16)
    # Fused attention is not in PyTorch's count on a CPU; written out, its gradient recomputes one product less.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser(x, torch.ones(2, dtype=torch.float64)).sum().backward()
    counted = sum(costs.of(project().run("edm"), "forward+backward").flops.values())
    assert counter.get_total_flops() <= 2 * counted <= 1.02 * counter.get_total_flops()


def test_memory_by_images_is_what_a_real_step_keeps(costs):
    net = unet.build(project().run("edm").net.config, channels=3, resolution=16, classes=0)
    weights = {p.data_ptr() for p in net.parameters()}

    def kept(rows: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = net(torch.randn(rows, 3, 16, 16), torch.zeros(rows))
        assert out.shape[0] == rows
        return sum(sizes.values())

    saved = (kept(6) - kept(2)) / 4
    planned = costs.of(project().run("edm"), "forward+backward").per_image
    assert saved <= planned <= 1.5 * saved  # beside what is kept, what the backward pass works with


def test_memory_parts(costs):
    run, box = project().run("cd"), Machine("box", "a box", 4e9, 1e12)
    plan = plan_run(run, costs, Setting(box))
    p = 4 * plan.parameters
    assert plan.memory["weights"] == plan.memory["gradients"] == p
    assert plan.memory["optimiser"] == plan.memory["averages"] == 2 * p
    assert plan.memory["teacher, target"] == p
    assert plan.memory["reserve"] == pytest.approx(RESERVE + 0.05 * 4e9)
    assert plan.bytes == sum(plan.memory.values())
    heads = plan_run(project().run("sct"), costs, Setting(box))
    assert heads.memory["weights"] == p + 4 * head_count(project().run("sct"), costs.denoiser(project().run("sct")))


def test_sharded_memory_parts(costs):
    run, box = project().run("cd"), Machine("box", "a box", 4e9, 1e12)
    whole, four = (plan_run(run, costs, Setting(box, 4, shard=shard)) for shard in (False, True))
    for part in ("weights", "gradients", "optimiser", "averages", "teacher, target"):
        assert four.memory[part] == whole.memory[part] / 4
    largest = costs.largest_block(run)
    assert four.parameters / 20 < largest < four.parameters / 2
    assert four.memory["gathered"] == 3 * 4 * largest
    # Gradients are whole beside the activations of a pass, and go as they come, or add up over micro-batches.
    gradients = 4 * four.parameters
    assert whole.memory["activations"] == four.memory["activations"]
    parts = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=4))
    small, small_whole = (plan_run(parts, costs, Setting(box, 4, shard=shard)) for shard in (True, False))
    assert small_whole.bytes - small.bytes == pytest.approx(whole.bytes - four.bytes + gradients / 4)


def test_what_machines_exchange(costs):
    run = project().run("ect")  # one pass with a gradient and one without
    slow = Machine("slow", "a box", 40e9, 1e12, link=1e6)
    p = 4 * plan_run(run, costs, Setting(slow)).parameters
    assert plan_run(run, costs, Setting(slow)).exchanged == 0
    whole, shard = (plan_run(run, costs, Setting(slow, 4, 0.5, shard=shard)) for shard in (False, True))
    assert whole.exchanged == pytest.approx(2 * 0.75 * p)  # a ring: summed, then passed on
    assert shard.exchanged == pytest.approx((1 + 2 + 1) * 0.75 * p)  # summed; gathered thrice
    parts = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=4))
    assert plan_run(parts, costs, Setting(slow, 4, 0.5)).exchanged == pytest.approx(2 * 0.75 * p)
    assert plan_run(parts, costs, Setting(slow, 4, 0.5, shard=True)).exchanged == pytest.approx((1 + 4 * 3) * 0.75 * p)
    compute = 16 * whole.operations / 0.5e12
    backward = 16 * (whole.operations - 2 * whole.forward) / 0.5e12
    for plan, covered in ((whole, backward), (shard, compute)):
        assert plan.exchange == pytest.approx(plan.exchanged / 1e6)
        assert plan.exposed == pytest.approx(plan.exchange - covered)
        assert plan.seconds == pytest.approx(plan.steps * (compute + plan.exposed))
    fast = plan_run(run, costs, Setting(slow, 4, 0.5, bandwidth=1e15))
    assert fast.exposed == 0
    assert fast.seconds == pytest.approx(fast.steps * compute)


def test_the_largest_micro_batch_fits_and_one_more_does_not(costs):
    run = project(train={"images": 10**6, "batch": 10**5, "ema": EMA, "eval_ema": "a"}).run("ect")
    box = Machine("box", "a box", 4e9, 1e12)
    most = plan_run(run, costs, Setting(box)).most_rows

    def used(rows: int) -> float:
        smaller = dataclasses.replace(run, train=dataclasses.replace(run.train, micro_batch=rows))
        return plan_run(smaller, costs, Setting(box)).bytes

    assert 0 < most < 10**5
    assert used(most) <= box.memory < used(most + 1)
    assert not plan_run(run, costs, Setting(box)).fits
    assert plan_run(run, costs, Setting(Machine("tiny", "", 1e9, 1e12))).most_rows == 0


def test_time_and_cost(costs):
    run, box = project().run("ect"), Machine("box", "a box", 40e9, 1e12)
    plan = plan_run(run, costs, Setting(box, efficiency=0.5, price=3.0))
    assert plan.seconds == pytest.approx(plan.operations * 6400 / 0.5e12)
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 3.0)
    four = plan_run(run, costs, Setting(box, count=4, efficiency=0.5, price=3.0))
    assert (four.rows, four.seconds, four.cost) == (16, pytest.approx(plan.seconds / 4), pytest.approx(plan.cost))
    assert plan_run(run, costs, Setting(box)).cost is None
    uneven = plan_run(run, costs, Setting(box, count=3, efficiency=0.5))
    assert uneven.rows == 22
    assert uneven.seconds == pytest.approx(plan.seconds * 22 / 64)  # the machine with the most rows decides


def test_every_training_seed_takes_its_time(tmp_path):
    runs = {"edm": TEACHER, "public": TEACHER | {"weights": {"file": "edm.pkl"}}}
    setting = Setting(Machine("box", "a box", 40e9, 1e12), price=3.0)
    one, five = (
        {run.name: run for run in cost.plan(project(runs=runs, replicates=n), setting, tmp_path)} for n in (1, 5)
    )
    assert (one["edm"].seeds, five["edm"].seeds, five["public"].seeds) == (1, 5, 1)
    assert five["edm"].seconds == pytest.approx(5 * one["edm"].seconds)
    assert five["edm"].cost == pytest.approx(5 * one["edm"].cost)
    assert (five["edm"].images, five["edm"].bytes) == (one["edm"].images, one["edm"].bytes)
    text = cost.report(project(runs=runs, replicates=5), list(five.values()), setting)
    total = five["edm"].operations * 6400 * 5
    assert any(
        line.endswith(f"{total:.3g} operations, {five['edm'].cost:,.2f} at 3 a machine and hour") for line in text
    )
    parameters = {"edm": five["edm"].parameters, "public": five["public"].parameters}
    needed = disk_of(project(runs=runs, replicates=5), parameters)
    assert needed > 5 * 4 * five["edm"].parameters
    assert f"disk: {size(needed, 'B', ' ')} for checkpoints, weights and snapshots" in text
    assert "seeds" in text[2].split()
    assert "seeds" not in cost.report(project(runs=runs), list(one.values()), setting)[2]


def test_a_loss_that_refuses_labels_says_so_before_any_compute():
    runs = {"edm": TEACHER, "fd_loss": {"method": "fd_loss", "init": "edm", "teacher": "none"}}
    check_labels(project(runs=runs).runs.values())
    with pytest.raises(ConfigError, match=r"^runs\.fd_loss: .*expected an unconditional network"):
        check_labels(project(runs=runs, conditional=True).runs.values())
    check_labels(project(runs={"edm": TEACHER}, conditional=True).runs.values())


def test_rates_follow_the_precision():
    a100, v100 = MACHINES["a100"], MACHINES["v100"]
    assert a100.rate(torch.float32, "fp32") == a100.rate(torch.float32, "bf16") == 19.5e12
    assert a100.rate(torch.float32, "tf32") == 156e12
    assert a100.rate(torch.bfloat16, "bf16") == a100.rate(torch.float16, "fp16") == 312e12
    assert v100.rate(torch.bfloat16, "bf16") == v100.rate(torch.float32, "tf32") == 15.7e12  # it has no such units
    with pytest.raises(ValueError, match=r"expected one of .*h100.*cpu, got 'h1000'"):
        machine("h1000")


def test_classes_come_from_the_file_or_from_prepared_data(tmp_path):
    data = {"source": "array", "path": "x.npy", "resolution": 16, "channels": 3}
    with pytest.raises(ConfigError, match=r"data\.classes: expected the number of classes"):
        data_shape(project(conditional=True, data=data), tmp_path)
    assert data_shape(project(conditional=True, data=data | {"classes": 7}), tmp_path).classes == 7
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": 9}))
    assert data_shape(project(conditional=True, data=data), tmp_path).classes == 9
    assert data_shape(project(data=data), tmp_path).classes == 0


def test_conditional_networks_are_told_labels():
    conditional = project(conditional=True)
    told, free = Costs(ModelShape(3, 16, 10)), Costs(ModelShape(3, 16, 0))
    assert told.parameters(conditional.run("edm")) > free.parameters(project().run("edm"))
    assert told.of(conditional.run("sct"), "jvp+backward").per_image > 0


def unet_pass(kind: PassKind, jvp: str = "fp32", dtype: torch.dtype | None = None) -> PassCost:
    """Of the network that benchmarks time."""
    config = unet.Config(model_channels=32, channel_mult=(1, 2, 2), blocks=1, attention_resolutions=(16,), dropout=0.1)
    denoiser = Denoiser(on_meta(lambda: unet.build(config, channels=3, resolution=32, classes=0)), sigma_data=0.5)
    with jvp_precision(jvp):
        return pass_cost(denoiser, kind, (3, 32, 32), labels_of=lambda rows: None, dtype=dtype)


def test_a_derivative_costs_one_more_pass_and_little_memory():
    plain, both, forward = (unet_pass(kind) for kind in ("forward+backward", "jvp+backward", "forward"))
    extra = sum(both.flops.values()) - sum(plain.flops.values())
    assert 1.0 <= extra / sum(forward.flops.values()) < 1.1  # attention has more products in its derivative
    for rows in (4, 32):
        assert both.bytes(rows) < 1.25 * plain.bytes(rows)


def test_operations_of_a_derivative_are_counted_in_their_precision():
    half = torch.bfloat16
    full = unet_pass("jvp+backward", "fp32", half)
    assert set(full.flops) == {torch.float32}
    mixed, plain = unet_pass("jvp+backward", "bf16", half), unet_pass("forward+backward", dtype=half)
    assert sum(mixed.flops.values()) == sum(full.flops.values())
    extra = mixed.flops[half] - plain.flops[half]
    assert 0.97 < extra / unet_pass("forward", dtype=half).flops[half] < 1.1
    assert mixed.flops[torch.float32] > plain.flops[torch.float32]  # the embedding's share of the tangent
    alone = unet_pass("jvp+backward", "bf16")
    assert alone.flops[half] == extra


def test_the_clock_agrees(costs):
    """Operations over this processor's rate, against a measured step: the plan is no more than an estimate."""
    run, here = project().run("edm"), this_cpu(512)
    net = unet.build(run.net.config, channels=3, resolution=16, classes=0)
    denoiser, x, sigma = Denoiser(net, sigma_data=0.5), torch.randn(32, 3, 16, 16), torch.ones(32, dtype=torch.float64)
    best = float("inf")
    for _ in range(4):
        start = time.process_time()
        denoiser(x, sigma).sum().backward()
        best = min(best, time.process_time() - start)
    planned = plan_run(run, costs, Setting(here, efficiency=0.4)).seconds / run.train.total * 32
    assert 1 / 8 < best / planned < 8


def run_cost(*arguments: Any, **named: Any) -> str:
    return "\n".join(cost.lines(ROOT, *arguments, **named))


def test_the_command_prints_every_run_with_its_price():
    text = run_cost("digits", gpu="a100", gpus=2, price=2.0, efficiency=0.3)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert text.startswith("digits on 2 x NVIDIA A100")
    assert {"edm", "cd", "ct", "ict", "ect", "sct", "scd"} <= set(lines)
    assert "30%" in text
    assert "at 2 a machine and hour" in text
    assert "2 x teacher forward" in text
    assert "GB between machines in" in text
    assert "over 300 GB/s each way" in text
    alone = run_cost("digits")
    assert "cost" not in alone.splitlines()[2]
    assert "between machines" not in alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workload": "cifer10"}, "WORKLOAD: expected one of .*cifar10.*, got 'cifer10'"),
        ({"gpu": "h1000"}, "--gpu: expected one of .*h100.*, got 'h1000'"),
        ({"gpus": 0}, "--gpus: expected at least 1, got 0"),
        ({"price": -1.0}, "--price: expected a number above 0, got -1.0"),
        ({"price": float("nan")}, "--price: expected a number above 0, got nan"),
        ({"shard": True}, "--shard: expected --gpus of at least 2, got 1"),
        ({"bandwidth": 0.0}, "--bandwidth: expected a number above 0, got 0.0"),
        ({"efficiency": 1.5}, "--efficiency: expected a number above 0 and at most 1, got 1.5"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cost.lines(ROOT, **arguments)


def test_costs_are_counted_once(costs, monkeypatch):
    run = project().run("edm")
    before = costs.of(run, "forward")
    monkeypatch.setattr("cmcore.budget.plan.pass_cost", None)
    assert costs.of(dataclasses.replace(run, name="other"), "forward") is before
    assert isinstance(before.flops, Counter)
    assert pass_cost is not None
