"""Short runs by workers that share the networks: functions for processes, which import them by name."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from registry import entry
from tiny import DIFFUSION, METHODS, batches, make_method, make_state, make_train
from torch import Tensor

from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import Batch, Method
from cmcore.nets import edm2
from cmcore.rng import Draws
from cmcore.tracking.base import Null
from cmcore.train.background import Writer
from cmcore.train.session import resume, run_session, save
from cmcore.train.settings import TrainConfig
from cmcore.train.shard import is_sharded, parts, whole
from cmcore.train.state import State, new_state
from cmcore.train.steps import steps
from cmcore.train.timing import TIME, Stopwatch
from cmcore.train.workers import Worker

Numbers = dict[str, Tensor]


def images(draws: Draws) -> Batch:
    return Batch(0.5 * draws.normal((2, 8, 8), stream="data"), None)


def mlp_state(method: Method, config: TrainConfig, worker: Worker) -> State:
    return make_state(method, config, noise=0.3, worker=worker)


def edm2_state(method: Method, config: TrainConfig, worker: Worker) -> State:
    """Gains that are one number, weights of unit length, and rows that two workers cannot share evenly."""
    small = edm2.Config(model_channels=6, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), head_channels=6)

    def denoiser(seed: int) -> Denoiser:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = edm2.build(small, channels=2, resolution=8, classes=0, inputs=method.traits.inputs)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += 0.3 * torch.randn_like(parameter)
        epsilon = DIFFUSION.sigma_min if method.traits.boundary else 0.0
        return Denoiser(net, sigma_data=DIFFUSION.sigma_data, epsilon=epsilon, inputs=method.traits.inputs)

    return new_state(method, denoiser(0), config, init=denoiser(1), teacher=denoiser(1), worker=worker)


FIRST_ORDER = [name for name in METHODS if not make_method(name, **entry(name).coarse).traits.second_order]
# By name: method, its options, state, images, settings.
CASES: dict[str, tuple[str, dict[str, Any], Any, Any, dict[str, Any]]] = {
    **{name: (name, entry(name).coarse, mlp_state, batches, {}) for name in FIRST_ORDER},
    "edm2": ("edm", {"uncertainty": True}, edm2_state, images, {"clip_norm": 1.0}),
    "edm2 with Duals": ("sct", {}, edm2_state, images, {"optimiser": "adam"}),
    "channels last": ("ect", {}, edm2_state, images, {"channels_last": True}),
    "compiled": ("sct", {}, mlp_state, batches, {"compile": True}),
    "fp16": ("edm", {}, mlp_state, batches, {"precision": "fp16"}),
}


def train(name: str, worker: Worker, micro_batch: int) -> Numbers:
    """Weights, averages, losses and gradient norms of a short run."""
    kind, options, make, feed, settings = CASES[name]
    method, config = make_method(kind, **options), make_train(images=96, micro_batch=micro_batch, **settings)
    state = make(method, config, worker)
    assert all(is_sharded(parameter) == (worker.shard and parameter.ndim > 0) for parameter in state.parameters)
    records = list(steps(state, method, feed, config, worker))
    compiled = [module for module in state.nets.student.net.modules() if module._compiled_call_impl is not None]
    assert bool(compiled) == config.compile, "compiling failed, and the run went on without"
    profiles = {profile: whole(state.weights(profile), lead=True) for profile in ("raw", *state.ema)}
    found = {f"{profile}/{key}": tensor for profile, named in profiles.items() for key, tensor in named.items()}
    for key in ("loss", "grad_norm"):
        found[key] = torch.tensor([float(record.values[key]) for record in records])
    return found


def train_all(rank: int, world: int, names: Sequence[str]) -> tuple[dict[str, Numbers], list[int]]:
    """Cases with a part of every parameter and with micro-batches; the sizes of what is held of one."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")  # of what it calls in itself
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # Dynamo asks for it
    worker = Worker(rank, world, shard=True)
    net = edm2_state(make_method("edm"), make_train(), worker).nets.student
    return {name: train(name, worker, 8) for name in names}, [part.numel() for part in parts(net)]


def session(rank: int, world: int, folder: Path, total: int, again: Path | None = None) -> None:
    """Train to `total` images, from the start or a checkpoint, which is first read and saved `again`, and save."""
    worker = Worker(rank, world, shard=world > 1)
    method, config = make_method("edm", uncertainty=True), make_train(images=total, batch=24)
    state = edm2_state(method, config, worker)
    with Writer() as writer:
        if again is not None:
            assert resume(state, folder, "mark")
            meta = {"fingerprint": "mark", "images": state.images}
            save(state, again, meta, Stopwatch(again / TIME, state.device, world), writer, worker)
        kept = {"folder": folder, "fingerprint": "mark", "tracker": Null()}
        quiet = {"on_progress": lambda *_: None, "on_snapshot": lambda _: None}
        run_session(state, method, images, config, **kept, **quiet, writer=writer, worker=worker)
