"""Every method trains EDM2's network: forced weight normalisation, uncertainty, labels, dropout, resume to the bit."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from registry import entry
from tiny import DIFFUSION, METHODS, make_config, make_method, make_train
from tiny_runs import PARAMS, tiny_inputs
from torch import Tensor, nn

from cmcore import plugins
from cmcore.assemble.models import load_model
from cmcore.assemble.project import parse_project
from cmcore.assemble.training import WEIGHTS, Inputs, train_run
from cmcore.config import ConfigError, merge
from cmcore.consistency import weights
from cmcore.diffusion.precond import Denoiser
from cmcore.layers.magnitude import MPConv
from cmcore.layers.uncertainty import Uncertainty
from cmcore.methods.base import Batch, Method, Progress
from cmcore.methods.edm import UNCERTAINTY
from cmcore.nets import edm2
from cmcore.rng import Draws
from cmcore.sample.fewstep import Multistep
from cmcore.sample.stream import generate
from cmcore.tracking.base import Null
from cmcore.train.optim import learning_rate
from cmcore.train.settings import EmaConfig, TrainConfig
from cmcore.train.state import State, load_state_tensors, new_state, state_tensors
from cmcore.train.steps import steps

SHAPE, CLASSES = (1, 8, 8), 3  # the images that the shipped classifier of add and fd_loss sees
NET = {"model_channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_channels": 4}
# sCM's form of the network goes with its methods.
TRIG = {"c_noise": "trig", "embedding": "positional", "modulation": "double"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {name: (entry(name).short, {}) for name in METHODS} | {
    "edm-uncertain": ({"uncertainty": True}, {}),
    "cd-target": ({"N": 8, "mu": 0.5}, {}),
    "ect-edm": ({"q": 4.0, "stages": 4, "huber_c": 0.06, "weighting": "edm"}, {}),
    "sct-trig": ({"warmup_images": 16}, TRIG),
    "scd-trig": ({"warmup_images": 16}, TRIG),
}


def denoiser(method: Method, fields: dict[str, Any], seed: int = 0, classes: int = CLASSES) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = edm2.Config(**{**NET, "dropout": 0.2, "dropout_resolution": 4, **fields})
        known = method.traits.inputs
        net = edm2.build(config, channels=SHAPE[0], resolution=SHAPE[1], classes=classes, inputs=known)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.0 if parameter.ndim else 0.3)  # the gains, which start at zero
    epsilon = DIFFUSION.sigma_min if method.traits.boundary else 0.0
    return Denoiser(net, sigma_data=DIFFUSION.sigma_data, epsilon=epsilon, coordinate=config.c_noise, inputs=known)


def start(run: str, **train: Any) -> tuple[Method, State, TrainConfig]:
    options, fields = RUNS[run]
    name = run.split("-")[0]
    method, classes = make_method(name, **options), CLASSES if entry(name).labels else 0
    ema = {"wide": EmaConfig(power_std=0.1)}
    config = make_train(**{"images": 8 * 4, "batch": 8, "lr": 1e-2, "ema": ema, "eval_ema": "wide", **train})
    other, net = denoiser(method, fields, seed=1, classes=classes), denoiser(method, fields, classes=classes)
    return method, new_state(method, net, config, init=other, teacher=other), config


def batches(draws: Draws) -> Batch:
    labels = (draws.uniform(stream="label") * CLASSES).long()
    return Batch(0.2 * draws.normal(SHAPE, stream="data") + labels[:, None, None, None] * 0.3 - 0.3, labels)


def unlabelled(draws: Draws) -> Batch:
    return Batch(batches(draws).x, None)


def layers(module: nn.Module) -> list[MPConv]:
    return [layer for layer in module.modules() if isinstance(layer, MPConv)]


@pytest.mark.parametrize("run", RUNS)
def test_a_method_trains_it_and_a_resumed_run_has_the_same_bits(run: str):
    method, state, config = start(run)
    source = batches if entry(run.split("-")[0]).labels else unlabelled
    first = copy.deepcopy(state.nets.student.net.state_dict())
    records = list(steps(state, method, source, config))
    assert all(record.values["loss"].isfinite() for record in records)
    moved = [k for k, v in state.nets.student.net.state_dict().items() if not torch.equal(v, first[k])]
    assert {*moved} == {name for name, _ in state.nets.student.net.named_parameters()}

    method, part, _ = start(run)
    stepping = steps(part, method, source, config)
    for _ in range(2):
        next(stepping)
    saved = {name: tensor.clone() for name, tensor in state_tensors(part).items()}
    method, resumed, _ = start(run)
    load_state_tensors(resumed, saved, part.images)
    later = list(steps(resumed, method, source, config))
    assert [float(record.values["loss"]) for record in later] == [
        float(record.values["loss"]) for record in records[2:]
    ]
    ours, theirs = state_tensors(state), state_tensors(resumed)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("run", ["edm-uncertain", "sct-trig"])
def test_every_step_meets_weights_of_unit_length(run: str):
    # Steps that go far lengthen the weights, as they are orthogonal to them.
    method, state, config = start(run, optimiser="adam", lr=0.3)
    met: list[Tensor] = []
    roots = [*state.nets.modules.values()]

    def watched(draws: Draws) -> Batch:
        met.extend(layer.weight.detach().flatten(1).square().mean(1) for root in roots for layer in layers(root))
        return batches(draws)

    for record in steps(state, method, watched, config):
        assert record.images
    torch.testing.assert_close(torch.cat(met), torch.ones(sum(map(len, met))), rtol=1e-3, atol=0)
    # After the optimiser and before the next step they are longer, and this is what averages see.
    after = torch.cat([layer.weight.detach().flatten(1).square().mean(1) for layer in layers(state.nets.student)])
    assert after.mean() > 1.03


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("run", ["edm-uncertain", "sct-trig"])
def test_half_precision_is_close_and_keeps_the_noise_level(run: str, precision: Any):
    method, state, config = start(run)
    full = next(steps(state, method, batches, config))
    method, state, _ = start(run, precision=precision)
    net, dtypes = state.nets.student.net, set()
    net.embedding.register_forward_hook(lambda _, __, e: dtypes.add(("e", e.dtype)))
    net.encoder["8x8_block0"].register_forward_hook(lambda _, __, h: dtypes.add(("h", h.dtype)))
    half = next(steps(state, method, batches, replace(config, precision=precision)))
    assert float(half.values["loss"]) == pytest.approx(float(full.values["loss"]), rel=0.05)
    # The derivative of sCM is in full precision all through.
    wide = torch.float32 if run.startswith("sct") else {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert dtypes == {("e", torch.float32), ("h", wide)}
    assert all(parameter.dtype == torch.float32 for parameter in state.nets.student.parameters())


def test_gradient_accumulation_changes_nothing():
    method, whole, config = start("ect")
    method, parts, _ = start("ect")
    # Dropout differs between slices, so none here.
    for state in (whole, parts):
        for module in state.nets.student.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
    a = next(steps(whole, method, batches, config))
    b = next(steps(parts, method, batches, replace(config, micro_batch=3)))
    assert float(a.values["loss"]) == pytest.approx(float(b.values["loss"]), rel=1e-5)


def test_the_uncertain_loss_by_hand():
    method, state, _ = start("edm-uncertain")
    nets, draws = state.nets, Draws(3, 0, 8)
    nets.student.eval()
    out = method.loss(nets, batches(draws), Progress(0, 80, 8), draws)
    sigma = (-1.2 + 1.2 * draws.normal(stream="level", dtype=torch.float64)).exp()
    plain = make_method("edm").loss(nets, batches(draws), Progress(0, 80, 8), draws)
    u = nets[UNCERTAINTY](sigma)
    assert u.shape == (8,)
    assert u.dtype == torch.float32
    pixels = batches(draws).x[0].numel()
    torch.testing.assert_close(out.loss, plain.loss / u.exp() + pixels * u)  # the authors sum u over the pixels, too
    torch.testing.assert_close(torch.as_tensor(out.scalars["uncertainty"]), u.detach().mean())


def test_the_best_uncertainty_is_the_logarithm_of_the_weighted_error():
    L = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    u = L.log().requires_grad_()
    (L / u.exp() + u).sum().backward()
    torch.testing.assert_close(u.grad, torch.zeros_like(u.grad))
    # There, every level's gradient with respect to the network's error is of the same relative size.
    assert torch.allclose(L * (1 / u.exp()), torch.ones_like(L))


def test_the_uncertainty_equals_the_public_implementation():
    head = Uncertainty()
    number = torch.arange(1, 129, dtype=torch.float64)
    wave = [torch.sin(0.37 * number * (1 + 0.01 * k) + k) for k in range(4)]
    head = head.double()
    with torch.no_grad():
        head.features.freqs.copy_(wave[1] * 5)
        head.features.phases.copy_(wave[2])
        head.linear.weight.copy_(wave[3][None])
    u = head(torch.tensor([0.02, 0.5, 7.0], dtype=torch.float64)).tolist()
    assert u == pytest.approx([0.1314430238384855, -0.20314449093421744, -0.29794819533342254], rel=1e-9)


def test_the_head_is_the_same_in_every_run_and_asked_for_only_by_name():
    torch.manual_seed(0)
    first = Uncertainty().state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(tensor, first[name]) for name, tensor in Uncertainty().state_dict().items())
    assert make_method("edm").networks == {}
    assert set(make_method("edm", uncertainty=True).networks) == {UNCERTAINTY}
    assert plugins.load("cmcore.methods", "edm").Config() == make_config("edm", uncertainty=False)


def test_the_uncertainty_learns_the_size_of_the_error():
    head = Uncertainty().double()
    sigma = torch.linspace(-3, 2, 64, dtype=torch.float64).exp()
    L = weights.edm(sigma, 0.5) * sigma**2 * 0.3
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        u = head(sigma)
        (L / u.exp() + u).mean().backward()
        optimiser.step()
    # One layer of unit weights has a bounded range; the sizes are in it.
    assert (head(sigma) - L.log()).abs().max() < 0.25


EDM2_RUNS = merge(
    PARAMS,
    {
        "net": {"kind": "edm2", **{k: list(v) if isinstance(v, tuple) else v for k, v in NET.items()}},
        "conditional": True,
        "train": {
            "images": 128, "batch": 16, "optimiser": "adam", "betas": [0.9, 0.99],
            "lr": 0.01, "lr_decay": "inverse_sqrt", "lr_ref_images": 64, "log_images": 64, "snapshots": 1,
            "ema": {"narrow": {"power_std": 0.05}, "wide": {"power_std": 0.1}}, "eval_ema": "narrow",
        },
        "runs": {
            "edm": {"options": {"uncertainty": True, "P_mean": -0.8, "P_std": 1.6}},
            "ect": {"net": {"dropout": 0.4, "dropout_resolution": 4}, "options": {"weighting": "edm", "huber_c": 0.06}},
        },
    },
)  # fmt: skip


def test_labelled_digits_from_parameters_to_images(tmp_path: Path):
    params = copy.deepcopy(EDM2_RUNS)
    params["net"] = {k: v for k, v in params["net"].items() if k not in ("hidden",)}
    params["train"]["ema"].pop("ema", None)
    project, inputs = parse_project(params), tiny_inputs(tmp_path)
    quiet = {"tracker": Null(), "on_progress": lambda *_: None}
    teacher = train_run(project.run("edm"), inputs, tmp_path / "edm", **quiet)
    student = train_run(
        project.run("ect"), Inputs(inputs.data, teacher / WEIGHTS, inputs.teacher), tmp_path / "ect", **quiet
    )
    loaded = load_model(student / WEIGHTS)
    assert loaded.shape.classes == 10
    assert loaded.meta["net"]["dropout_resolution"] == 4
    sampler = Multistep((20.0, 0.8), 0.002)
    for seed in (1, 2):
        batch = next(iter(generate(sampler, loaded.denoiser, (1, 8, 8), range(4), seed=seed, batch=4, classes=10)))
        assert batch.shape == (4, 1, 8, 8)
    x, sigma = torch.zeros(2, 1, 8, 8), torch.full((2,), 5.0, dtype=torch.float64)
    with torch.no_grad():
        digits = loaded.denoiser(x, sigma, torch.tensor([3, 7]))
    assert not torch.equal(digits[0], digits[1])
    with pytest.raises(ConfigError, match="modulation"):
        parse_project(merge(params, {"runs": {"ect": {"net": {"modulation": "double"}}}}))


def test_the_learning_rate_is_that_of_the_paper():
    """alpha_ref / sqrt(max(t / t_ref, 1)) (arXiv 2312.02696, Eq. 67), with 10 Mimg of linear warm-up."""
    batch = 2048
    config = TrainConfig(
        images=1 << 30, batch=batch, lr=0.01, lr_decay="inverse_sqrt", lr_ref_images=35_000 * batch,
        lr_ramp_images=10_000_000,
    )  # fmt: skip
    for images in (10_000_384, 35_000 * batch, 70_000 * batch, 524_288 * batch):
        expected = 0.01 / math.sqrt(max(images / batch / 35_000, 1))
        assert learning_rate(config, images) == pytest.approx(expected, rel=1e-12)
    # Of the images before the step, as in the authors' code: the first step has rate zero.
    assert learning_rate(config, 0) == 0
    assert learning_rate(config, batch) == pytest.approx(0.01 * batch / 1e7)
