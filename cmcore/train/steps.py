"""The training loop, as a generator. It knows the method's protocol and nothing of logging, saving or cadence."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cmcore.consistency.tangents import jvp_precision
from cmcore.layers.adapter import is_adapted, merged
from cmcore.layers.magnitude import force_normalisation, unit_weights
from cmcore.methods.base import STUDENT, Action, Batch, Blend, Copy, Method, Progress
from cmcore.rng import Draws
from cmcore.train import ema
from cmcore.train.compiled import or_plain
from cmcore.train.gate import Watch, gated_step
from cmcore.train.optim import learning_rate, set_learning_rate
from cmcore.train.precision import autocast
from cmcore.train.settings import TrainConfig
from cmcore.train.shard import is_sharded, local, parts, spread, total_norm
from cmcore.train.state import Player, State, raw
from cmcore.train.workers import ALONE, GradientSums, Worker

Batches = Callable[[Draws], Batch]
Values = dict[str, Tensor | float]


class StepRecord(NamedTuple):
    """The outcome of one step of the run. `images` counts those seen after it.

    `values` are numbers, or detached tensors on the device: of the student "loss", "grad_norm" (0 for a skipped step,
    which only fp16 has), "lr" and the scalars of its loss; of another player "<player>/loss" and so on. Call `settle`
    before the state is saved or shown: it raises the NonFiniteError of a step whose outcome was not known yet.
    """

    images: int
    values: Values
    settle: Callable[[], None]


def row_slices(batch: int, micro_batch: int, worker: Worker, group: int = 1) -> list[slice]:
    """The rows of the global batch that a worker computes, one slice at a time.

    A batch that does not divide among the workers, or cuts a group of rows, is a ValueError.
    """
    if batch % (worker.world * group):
        of = f" times the method's groups of {group}" if group > 1 else ""
        raise ValueError(f"train.batch: expected a multiple of compute.workers = {worker.world}{of}, got {batch}")
    if micro_batch % group:
        raise ValueError(f"train.micro_batch: expected a multiple of the method's groups of {group}, got {micro_batch}")
    share = batch // worker.world
    start, size = worker.rank * share, micro_batch or share
    if worker.rows:
        size = min(size, max(group, worker.rows // group * group))
    return [slice(low, min(low + size, start + share)) for low in range(start, start + share, size)]


class Turn(NamedTuple):
    """An optimiser step of a player within a step of the run."""

    player: str
    stream: str  # prefix of its random streams and values


def turns_of(method: Method, progress: Progress) -> list[Turn]:
    """The turns of a step. No two draw the same random numbers; the student's first turn has the plain streams."""
    seen: Counter[str] = Counter()
    turns = []
    for player in method.turns(progress):
        plain = player == STUDENT and not seen[player]
        turns.append(Turn(player, "" if plain else f"{player}.{seen[player]}/"))
        seen[player] += 1
    return turns


def steps(
    state: State, method: Method, batches: Batches, config: TrainConfig, worker: Worker = ALONE
) -> Iterator[StepRecord]:
    """Train until `config.total` images are seen, one batch a record.

    Args:
        state: changed in place; between two records it is consistent and may be saved.
        method: the objective.
        batches: gives the images of some rows of the global batch at an address.
        config: training settings.
        worker: which part of every batch is computed here, and how the parts are summed.

    Yields:
        A record after every step.

    Raises:
        NonFiniteError: naming step and method, before the optimiser step. On a device that works on its own the step is
            closed off there, and the error comes when the host learns of it, without waiting.
    """
    loop = _Loop(state, method, batches, config, worker)
    while state.images < config.total:
        yield loop.step()
    loop.watch.settle()


class _Loop:
    """The constants of a training loop, and its step."""

    def __init__(self, state: State, method: Method, batches: Batches, config: TrainConfig, worker: Worker) -> None:
        self.state, self.method, self.batches, self.config, self.worker = state, method, batches, config, worker
        self.device = state.device
        self.slices = row_slices(config.batch, config.micro_batch, worker, method.traits.group)
        trained = (name for name, network in state.roles.items() if network.role == "trained")
        self.unit_weights = list(map(local, unit_weights(*(state.nets[name] for name in (STUDENT, *trained)))))
        # The outputs of a CUDA graph last until its next run. Gradients that add up over several have their own memory.
        self.kept = config.cuda_graphs and len(self.slices) > 1
        for player in state.players.values() if self.kept else ():
            for parameter in player.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.sums = {name: self._sums(player) for name, player in state.players.items()}
        self.watch, self.direct = Watch(type(method).__name__, self.device), is_synchronous(self.device)

    def _sums(self, player: Player) -> GradientSums:
        """The sums over the workers of the gradients of a player: none for one worker alone."""
        own = player.parameters if self.worker.world > 1 else []
        nets = spread(map(raw, self.state.nets.modules.values())) if self.worker.shard else []
        return GradientSums([p for p in own if not is_sharded(p)], self.worker, nets)

    def step(self) -> StepRecord:
        """Every player's turns with one batch, then the averages and what follows."""
        state, progress = self.state, Progress(self.state.images, self.config.total, self.config.batch)
        force_normalisation(self.unit_weights)
        values: Values = {}
        taken: dict[str, Tensor | bool] = {}  # by player: whether its last step was taken, on the device or here
        for turn in turns_of(self.method, progress):
            finite = or_plain(state.nets.modules.values(), partial(self._turn, turn, progress, values))
            optimiser = state.players[turn.player].optimiser
            if self.direct:
                taken[turn.player] = bool(finite)
                if taken[turn.player]:
                    optimiser.step()
            else:
                taken[turn.player] = go = self.watch.open & finite
                gated_step(optimiser, go)
        state.images += self.config.batch
        self._average(taken.get(STUDENT, False))
        for action in self.method.after(progress):
            self._act(action, list(taken.values()))
        return StepRecord(state.images, values, self.watch.settle)

    def _turn(self, turn: Turn, progress: Progress, values: Values) -> Tensor:
        """The gradients of a player; whether they are finite, a bool ()."""
        state, player = self.state, self.state.players[turn.player]
        if len(state.players) > 1:  # a loss of one player may run through the networks of another
            for other in state.players.values():
                for parameter in other.parameters:
                    parameter.requires_grad_(other is player)
        stage = player.until - player.started if player.until else 0
        lr = learning_rate(player.config, state.images - player.started, stage)
        set_learning_rate(player.optimiser, lr)
        player.zero_grad(keep=self.kept)
        sums = self.sums[turn.player]
        sums.reset()
        loss = torch.zeros((), device=self.device)
        scalars: Values = {}
        for rows in self.slices:
            sums.prepare(last=rows is self.slices[-1])
            address = (self.config.seed, state.images, self.config.batch, rows, self.device)
            draws = Draws(*address, prefix=turn.stream)
            batch = self.batches(Draws(*address))
            with autocast(self.config.precision, self.device), jvp_precision(self.config.jvp_precision):
                out = self.method.loss_of(turn.player, state.nets, batch, progress, draws)
            part = out.loss.sum() / self.config.batch
            (part if player.scale is None else part * player.scale.scale).backward()
            loss += part.detach()
            _add_scalars(scalars, out.scalars, (rows.stop - rows.start) / self.config.batch)
        self.worker.total([loss, *(value for value in scalars.values() if isinstance(value, Tensor))])
        sums.finish()
        gradients = player.gradients()
        if player.scale is not None:
            player.scale.unscale(list(gradients.values()))
        grad_norm = total_norm(gradients, self.worker)
        finite = torch.isfinite(loss + grad_norm)
        step = state.images // self.config.batch + 1
        self.watch.add(_is_bad(player, loss, finite), loss, grad_norm, step, state.images)
        self.watch.look()
        if player.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(player.local, player.config.clip_norm, grad_norm)
        if player.scale is not None:
            grad_norm = torch.where(finite, grad_norm, 0.0)
            scalars |= {"loss_scale": player.scale.scale.clone(), "skipped": (~finite).float()}
        found: Values = {"loss": loss, "grad_norm": grad_norm, "lr": lr, **scalars}
        values |= {f"{turn.stream}{name}": value for name, value in found.items()}
        return finite

    def _average(self, taken: Tensor | bool) -> None:
        """Move the averages of the student, where its step was taken."""
        if taken is False:
            return
        now, go = parts(self.state.nets.student.net), taken if isinstance(taken, Tensor) else None
        for name, averages in self.state.ema.items():
            beta = ema.decay(self.config.ema[name], self.state.images, self.config.batch)
            ema.update(averages, now, beta, go)

    def _act(self, action: Action, taken: Sequence[Tensor | bool]) -> None:
        """Do what follows a step. A blend is left out where a step was skipped; a stage begins all the same."""
        state = self.state
        if isinstance(action, Blend):
            if any(flag is False for flag in taken):  # not by ==, which would ask the device
                return
            flags = [flag for flag in taken if isinstance(flag, Tensor)]
            go = torch.stack(flags).all() if flags else None
            moved, source = (parts(raw(state.nets[name])) for name in (action.network, action.source))
            ema.update(moved, source, action.decay, go)
        elif isinstance(action, Copy):
            target, source = (raw(state.nets[name]) for name in (action.network, action.source))
            weights = state.weights(self.config.eval_ema, apart=True) if action.averaged else source.state_dict()
            target.load_state_dict(weights if is_adapted(target) else merged(weights))
        else:
            state.players[action.player].restart(state.images, action.until)
            if action.player == STUDENT:
                state.restart_averages()


def is_synchronous(device: torch.device) -> bool:
    """Whether the device has finished an operation when the call returns, so that reading a value costs no waiting."""
    return device.type == "cpu"


def _add_scalars(total: Values, part: Values, share: float) -> None:
    """Add the scalars of a share of the batch: tensors are its means, plain numbers are the same for all."""
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + share * value.detach() if isinstance(value, Tensor) else value


def _is_bad(player: Player, loss: Tensor, finite: Tensor) -> Tensor:
    """Whether the run ends here, a bool (). In fp16 gradients may overflow: that step is skipped, at a lower scale."""
    return ~finite if player.scale is None else ~torch.isfinite(loss) | player.scale.update(finite)
