"""The training loop, as a generator. It knows the method's protocol and nothing of logging, saving or cadence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.layers.magnitude import force_normalisation, unit_layers
from cmcore.methods.base import Batch, Method, Progress
from cmcore.rng import Draws
from cmcore.train import ema
from cmcore.train.gate import Watch, gated_step
from cmcore.train.optim import learning_rate, set_learning_rate
from cmcore.train.precision import autocast
from cmcore.train.settings import TrainConfig
from cmcore.train.state import State

Batches = Callable[[Draws], Batch]
Reduce = Callable[[Sequence[Tensor]], None]


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a run together; by default the only one. Each computes its share of a batch."""

    rank: int = 0
    world: int = 1
    reduce: Reduce | None = None  # sums tensors over the workers, in place; needed where world > 1

    @property
    def lead(self) -> bool:
        """Whether this is the one worker that writes files."""
        return self.rank == 0


ALONE = Worker()


class StepRecord(NamedTuple):
    """What one optimiser step did. `images` counts those seen after it; tensors are detached, and on the device.

    Call `settle` before the state is saved or shown: it raises the NonFiniteError of a step that nobody has waited for.
    """

    images: int
    loss: Tensor
    grad_norm: Tensor  # 0 for a step that was skipped, which only fp16 does
    lr: float
    scalars: dict[str, Tensor | float]
    settle: Callable[[], None]


def row_slices(batch: int, micro_batch: int, worker: Worker) -> list[slice]:
    """The rows of the global batch that a worker computes, one slice at a time.

    A batch that does not divide among the workers is a ValueError.
    """
    if batch % worker.world:
        raise ValueError(f"train.batch: expected a multiple of compute.workers = {worker.world}, got {batch}")
    share = batch // worker.world
    start, size = worker.rank * share, micro_batch or share
    return [slice(low, min(low + size, start + share)) for low in range(start, start + share, size)]


def steps(
    state: State, method: Method, batches: Batches, config: TrainConfig, worker: Worker = ALONE
) -> Iterator[StepRecord]:
    """Train until `config.total` images are seen, one optimiser step a record.

    Args:
        state: changed in place; between two records it is consistent and may be saved.
        method: the objective.
        batches: gives the images of some rows of the global batch at an address.
        config: training settings.
        worker: which part of every batch is computed here, and how the parts are summed.

    Yields:
        A record after every optimiser step.

    Raises:
        NonFiniteError: naming step and method, before the optimiser step. On a device that works on its own the step is
            closed off there, and the error comes when the host hears of it, which never waits.
    """
    device = next(state.models.student.net.parameters()).device
    trained = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
    slices = row_slices(config.batch, config.micro_batch, worker)
    layers = unit_layers(state.models.student, state.models.heads)
    # What a CUDA graph returns lasts until its next run. Gradients that add up over several have memory of their own.
    kept = config.cuda_graphs and len(slices) > 1
    for parameter in trained if kept else ():
        parameter.grad = torch.zeros_like(parameter)
    watch, direct = Watch(type(method).__name__, device), answers_at_once(device)
    while state.images < config.total:
        progress = Progress(state.images, config.total, config.batch)
        force_normalisation(layers)
        lr = learning_rate(config, state.images)
        set_learning_rate(state.optimiser, lr)
        state.optimiser.zero_grad(set_to_none=not kept)
        loss = torch.zeros((), device=device)
        scalars: dict[str, Tensor | float] = {}
        for rows in slices:
            draws = Draws(config.seed, state.images, config.batch, rows, device)
            with autocast(config.precision, device):
                out = method.loss(state.models, batches(draws), progress, draws)
            part = out.loss.sum() / config.batch
            (part if state.scale is None else part * state.scale.scale).backward()
            loss += part.detach()
            _add_scalars(scalars, out.scalars, (rows.stop - rows.start) / config.batch)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if worker.reduce is not None:
            worker.reduce([loss, *(value for value in scalars.values() if isinstance(value, Tensor)), *gradients])
        if state.scale is not None:
            state.scale.unscale(gradients)
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(loss + grad_norm)
        watch.add(_is_bad(state, loss, finite), loss, grad_norm, state.images // config.batch + 1, state.images)
        watch.look()
        if config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, config.clip_norm, grad_norm)
        state.images += config.batch
        if not direct:
            _advance(state, method, progress, config, watch.open & finite)
        elif bool(finite):
            _advance(state, method, progress, config)
        if state.scale is not None:
            grad_norm = torch.where(finite, grad_norm, 0.0)
            scalars |= {"loss_scale": state.scale.scale.clone(), "skipped": (~finite).float()}
        yield StepRecord(state.images, loss, grad_norm, lr, scalars, watch.settle)
    watch.settle()


def answers_at_once(device: torch.device) -> bool:
    """Whether asking for a value keeps nobody from working."""
    return device.type == "cpu"


def _add_scalars(total: dict[str, Tensor | float], part: dict[str, Tensor | float], share: float) -> None:
    """Add what a share of the batch has to say: tensors are its means, plain numbers are the same for all."""
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + share * value.detach() if isinstance(value, Tensor) else value


def _is_bad(state: State, loss: Tensor, finite: Tensor) -> Tensor:
    """Whether the run ends here, a bool (). In fp16 gradients may overflow: that step is skipped, at a lower scale."""
    return ~finite if state.scale is None else ~torch.isfinite(loss) | state.scale.update(finite)


def _advance(state: State, method: Method, progress: Progress, config: TrainConfig, go: Tensor | None = None) -> None:
    """Optimiser, averages and target, together; with `go`, a bool () on the device, only where that holds."""
    if go is None:
        state.optimiser.step()
    else:
        gated_step(state.optimiser, go)
    parameters = state.parameters
    for name, averages in state.ema.items():
        ema.update(averages, parameters, ema.decay(config.ema[name], state.images, config.batch), go)
    if state.models.target is not None:
        ema.update(state.models.target.net.parameters(), parameters, method.target_decay(progress), go)
