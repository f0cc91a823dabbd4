"""How often a method asks each of its networks in one training step: found by running its loss on stand-ins."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmcore.assemble.run import Run
from cmcore.budget.cost import PassKind
from cmcore.config import ConfigError, join
from cmcore.consistency.distances import l2, provided
from cmcore.diffusion.precond import Denoiser, Labels, as_condition
from cmcore.dual import Dual, Value, each
from cmcore.methods.base import STUDENT, Batch, Nets, Network, Progress
from cmcore.rng import Draws
from cmcore.tensors import expand_like
from cmcore.train.steps import turns_of

Passes = Counter[tuple[str, PassKind]]  # ("student", "forward+backward") -> times
ROWS, IMAGES = 2, (1, 2, 2)  # of the batch that a step is tried on


class Probe(nn.Module):
    """A network of one number that writes down how it is asked."""

    def __init__(self, name: str, rows: int, seen: list[tuple[str, PassKind]]) -> None:
        super().__init__()
        self.channels, self.resolution = IMAGES[0], IMAGES[1]
        self.gain, self.name, self.rows, self.seen = nn.Parameter(torch.ones(())), name, rows, seen

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        value = "jvp" if isinstance(c_noise, Dual) else "forward"
        kind = cast("PassKind", f"{value}+backward" if torch.is_grad_enabled() else value)
        self.seen += [(self.name, kind)] * max(
            1, x.shape[0] // self.rows
        )  # guidance asks for all images twice in one pass
        out = each(lambda x: x * self.gain, x)
        for value in as_condition(labels).inputs.values():
            if isinstance(out, Tensor) and isinstance(value, Tensor):  # a loss may ask for the derivative by it
                out = out + 0 * expand_like(value, out).to(out.dtype)
        return out


def passes(run: Run) -> Passes:
    """The passes of a training step of the run, by network and kind; none where the weights come from a file.

    Raises:
        ConfigError: the loss refuses the batch, as one with labels.
    """
    if run.weights is not None:
        return Counter()
    seen: list[tuple[str, PassKind]] = []
    total = run.train.total
    _step(run, Progress(total // 2, total, run.train.batch), seen)
    return Counter(seen)


def spans(run: Run) -> str:
    """Why a step of the run depends on how many images there will be in all; empty where it does not.

    Raises:
        ConfigError: the loss refuses the batch, as one with labels.
    """
    if any(run.train.of(player).lr_decay == "linear" for player in run.objective.players):
        return "train.lr_decay is linear, to its end"
    if run.weights is not None:
        return ""
    read: list[str] = []

    class Watched(Progress):
        def __getattribute__(self, name: str) -> Any:
            if name == "total":
                read.append(name)
            return super().__getattribute__(name)

    steps, batch = run.train.steps, run.train.batch
    for step in sorted({0, steps // 2, steps - 1}):
        progress = Watched(step * batch, steps * batch, batch)
        _step(run, progress, [])
        list(run.objective.after(progress))
    return f"{run.method} plans its curriculum over the whole run" if read else ""


def _step(run: Run, progress: Progress, seen: list[tuple[str, PassKind]]) -> None:
    """The losses of a step on stand-ins, which write down how they are asked."""
    method = run.objective
    rows = ROWS * method.traits.group

    def stand_in(name: str) -> Denoiser:
        probe = Probe(name, rows, seen)
        net, sigma_data = run.net, run.diffusion.sigma_data
        return Denoiser(probe, sigma_data=sigma_data, coordinate=net.config.c_noise, inputs=net.inputs)

    others = {
        name: _made(network, stand_in(name)) if network.make else stand_in(name)
        for name, network in method.networks.items()
    }
    seen.clear()  # what looked at a network to be built for it is no part of a step
    nets = Nets({STUDENT: stand_in(STUDENT), **others})
    batch = Batch(torch.zeros(rows, *IMAGES), torch.zeros(rows, dtype=torch.int64) if run.conditional else None)
    with provided(dict.fromkeys(run.services, l2)):  # counted apart: their networks are no part of the method
        for turn in turns_of(method, progress):
            draws = Draws(0, progress.images, rows, prefix=turn.stream)
            try:
                method.loss_of(turn.player, nets, batch, progress, draws)
            except ValueError as error:
                raise ConfigError(join("runs", run.name), str(error)) from error


def check_labels(runs: Iterable[Run]) -> None:
    """A ConfigError where the loss of a conditional run refuses labels, before anything is computed for it."""
    for run in runs:
        if run.conditional:
            passes(run)


def head_count(run: Run, denoiser: Denoiser) -> int:
    """Parameters of what is trained beside the network, which is that of `denoiser`."""
    made = [_made(network, denoiser) for network in run.objective.networks.values() if network.make]
    return sum(parameter.numel() for module in made for parameter in module.parameters())


def _made(network: Network, source: Denoiser) -> nn.Module:
    """A new network, from the source where it starts from another one."""
    assert network.make is not None
    return network.make() if network.start == "new" else network.make(source)
