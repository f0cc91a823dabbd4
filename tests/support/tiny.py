"""Small parts of which tests build runs: a tiny network, a method by name, a state to train."""

from typing import Any

import torch
from torch import Tensor

from cmcore import plugins
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Denoiser
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.methods.base import Batch, Method
from cmcore.nets import mlp
from cmcore.rng import Draws
from cmcore.train.settings import TrainConfig
from cmcore.train.shard import is_sharded, local, rows
from cmcore.train.state import State, new_state
from cmcore.train.workers import ALONE, Worker

METHODS = plugins.available("cmcore.methods")
DIFFUSION = DiffusionConfig(sigma_max=20.0)
SHAPE = (1, 2, 2)


def make_config(name: str, **options: Any) -> Any:
    """A method's Config; where its loss asks for a network from elsewhere, with a distance that needs none."""
    return plugins.load("cmcore.methods", name).Config(**weightless(name) | options)


def weightless(name: str) -> dict[str, Any]:
    """The options under which a method's loss asks for no network from elsewhere."""
    module = plugins.load("cmcore.methods", name)
    return {"distance": "pseudo_huber"} if module.build(module.Config(), DIFFUSION).traits.services else {}


def make_method(name: str, diffusion: DiffusionConfig = DIFFUSION, **options: Any) -> Method:
    """A method by name."""
    return plugins.load("cmcore.methods", name).build(make_config(name, **options), diffusion)


def make_denoiser(
    *,
    boundary: bool = False,
    seed: int = 0,
    noise: float = 0.0,
    dropout: float = 0.0,
    hidden: int = 16,
    blocks: int = 1,
    inputs: tuple[Input, ...] = (),
) -> Denoiser:
    """A tiny MLP; with `noise` no parameter keeps its, partly zero, initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fields = {"embedding_width": hidden, "features": 8, "residual_gain": 1.0}
        config = mlp.Config(hidden=hidden, blocks=1, dropout=dropout, **fields)
        net = mlp.build(config, channels=SHAPE[0], resolution=SHAPE[1], classes=0, inputs=inputs)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += noise * torch.randn_like(parameter)
    epsilon = DIFFUSION.sigma_min if boundary else 0.0
    return Denoiser(net, sigma_data=DIFFUSION.sigma_data, epsilon=epsilon, inputs=inputs)


def make_train(**options: Any) -> TrainConfig:
    """Settings of a short run."""
    return TrainConfig(**{"images": 320, "batch": 32, "lr": 1e-3, **options})


def make_state(
    method: Method, config: TrainConfig | None = None, *, device: str = "cpu", worker: Worker = ALONE, **options: Any
) -> State:
    """A student, a teacher where the method needs one, and the rest."""
    student = make_denoiser(boundary=method.traits.boundary, inputs=method.traits.inputs, **options).to(device)
    other = make_denoiser(**{**options, "seed": 7}).to(device)
    state = new_state(method, student, config or make_train(), init=other, teacher=other, worker=worker)
    for name, network in method.networks.items():
        if network.role == "trained" and network.start == "teacher":  # two that agree may have nothing to teach
            source = torch.Generator().manual_seed(9)
            with torch.no_grad():
                for parameter in state.nets[name].parameters():
                    noise = torch.randn(parameter.shape, generator=source).to(device)
                    local(parameter).add_(0.1 * (noise[rows(parameter)] if is_sharded(parameter) else noise))
    return state


def batches(draws: Draws) -> Batch:
    """Images +-0.5 by address, the same sign all over an image but for a little noise."""
    sign = torch.where(draws.uniform(stream="sign") < 0.5, -0.5, 0.5).float()
    return Batch(sign[:, None, None, None] + 0.05 * draws.normal(SHAPE, stream="data"), None)


def flat(tensors: Any) -> Tensor:
    """All numbers of some tensors in one."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
