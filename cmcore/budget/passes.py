"""How often a method asks each of its networks in one training step: found by running its loss on stand-ins."""

import dataclasses
from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cmcore.assemble.project import Run, build_method, needs_lpips
from cmcore.budget.cost import PassKind
from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import Batch, Models, Progress
from cmcore.rng import Draws

Passes = Counter[tuple[str, PassKind]]  # ("student", "forward+backward") -> times
ROWS = 2  # of the batch that a step is tried on


class Probe(nn.Module):
    """A network of one number that writes down how it is asked."""

    def __init__(self, name: str, seen: list[tuple[str, PassKind]]) -> None:
        super().__init__()
        self.gain, self.name, self.seen = nn.Parameter(torch.ones(())), name, seen

    def forward(self, x: Tensor, c_noise: Tensor, labels: object = None) -> Tensor:
        del labels
        derivative = forward_ad.unpack_dual(c_noise).tangent is not None
        value = "jvp" if derivative else "forward"
        kind = cast("PassKind", f"{value}+backward" if torch.is_grad_enabled() else value)
        self.seen += [(self.name, kind)] * (len(x) // ROWS)  # guidance asks for all images twice in one pass
        return x * self.gain + 0 * c_noise.reshape(-1, 1, 1, 1)


def passes(run: Run) -> Passes:
    """The passes of a training step of the run, by network and kind; none where the weights come from a file."""
    if build_method(run).needs.file:
        return Counter()
    config = run.method_config
    if needs_lpips(config):
        config = dataclasses.replace(config, distance="l2")  # counted apart: its network is no part of the method
    method = build_method(dataclasses.replace(run, method_config=config))
    needs = method.needs
    seen: list[tuple[str, PassKind]] = []

    def stand_in(name: str) -> Denoiser:
        net, sigma_data = run.net, run.diffusion.sigma_data
        return Denoiser(Probe(name, seen), sigma_data=sigma_data, coordinate=net.config.c_noise, inputs=net.inputs)

    heads = nn.ModuleDict({name: make() for name, make in needs.heads.items()})
    teacher, target = (stand_in(name) if getattr(needs, name) else None for name in ("teacher", "target"))
    models = Models(stand_in("student"), teacher, target, heads)
    batch = Batch(torch.zeros(ROWS, 1, 2, 2), torch.zeros(ROWS, dtype=torch.int64) if run.conditional else None)
    total = run.train.total
    method.loss(models, batch, Progress(total // 2, total, run.train.batch), Draws(0, total // 2, ROWS))
    return Counter(seen)


def head_count(run: Run) -> int:
    """Parameters of what is trained beside the network."""
    return sum(p.numel() for make in build_method(run).needs.heads.values() for p in make().parameters())
