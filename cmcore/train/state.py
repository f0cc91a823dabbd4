"""Everything that changes while a run trains, and how it becomes named tensors and back."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import Denoiser
from cmcore.layers.adapter import attach, merged
from cmcore.methods.base import STUDENT, Method, Nets, Network
from cmcore.rng import seeded
from cmcore.train.layout import arrange
from cmcore.train.optim import build_optimiser
from cmcore.train.precision import LossScale
from cmcore.train.settings import TrainConfig
from cmcore.train.shard import is_sharded, like, load, local, parts, rows, shard, trainable
from cmcore.train.workers import ALONE, Worker


@dataclass
class Player:
    """An optimiser and the parameters it trains."""

    parameters: list[nn.Parameter]
    local: list[nn.Parameter]  # the same as this worker holds them: what the optimiser works on
    config: TrainConfig
    optimiser: torch.optim.Optimizer
    scale: LossScale | None = None  # of an fp16 run
    started: int = 0  # images seen when its present stage began
    until: int = 0  # images seen when that stage ends; 0 for the end of the run

    @classmethod
    def of(cls, parameters: list[nn.Parameter], config: TrainConfig) -> "Player":
        """A player before its first step."""
        scale = LossScale(parameters[0].device) if config.precision == "fp16" else None
        own = list(map(trainable, parameters))
        return cls(parameters, own, config, build_optimiser(own, config), scale)

    def zero_grad(self, *, keep: bool = False) -> None:
        """Drop the gradients, or fill those that there are with zeros."""
        self.optimiser.zero_grad(set_to_none=not keep)
        for parameter, part in zip(self.parameters, self.local, strict=True):
            if part is not parameter:
                parameter.grad = None

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """What this worker holds of the gradients that there are, which the optimiser then sees, by parameter."""
        for parameter, part in zip(self.parameters, self.local, strict=True):
            if part is not parameter and parameter.grad is not None:
                part.grad = local(parameter.grad)
        pairs = zip(self.parameters, self.local, strict=True)
        return {parameter: part.grad for parameter, part in pairs if part.grad is not None}

    def restart(self, started: int, until: int) -> None:
        """Begin a stage: a fresh optimiser, and the learning rate's schedule from its start."""
        self.optimiser, self.started, self.until = build_optimiser(self.local, self.config), started, until


@dataclass
class State:
    """A run at one moment. Randomness is addressed by `images`, so there is no generator to keep."""

    nets: Nets
    roles: Mapping[str, Network]  # of the networks beside the student
    players: dict[str, Player]
    ema: dict[str, list[Tensor]] = field(default_factory=dict)  # profile -> averages, in the order of the parameters
    images: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the student's network."""
        return list(self.nets.student.net.parameters())

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.parameters[0].device

    @property
    def changing(self) -> dict[str, nn.Module]:
        """The networks that change during a run, by name."""
        others = {name: self.nets[name] for name, network in self.roles.items() if network.role != "frozen"}
        return {STUDENT: self.nets.student, **others}

    def weights(self, profile: str = "raw", *, apart: bool = False) -> dict[str, Tensor]:
        """Named network weights of a profile, sharded as the network is; buffers are the student's own.

        Adapters are merged into the weights, unless these are to be `apart`.
        """
        named = {name: tensor.detach() for name, tensor in self.nets.student.net.state_dict().items()}
        if profile != "raw":
            pairs = zip(self.nets.student.net.named_parameters(), self.ema[profile], strict=True)
            named.update({name: like(parameter, average) for (name, parameter), average in pairs})
        return named if apart else merged(named)

    def restart_averages(self) -> None:
        """Let every average begin again from the present weights."""
        start = parts(self.nets.student.net)
        self.ema = {name: [tensor.clone() for tensor in start] for name in self.ema}


def raw(module: nn.Module) -> nn.Module:
    """The network inside a denoiser; any other module as it is."""
    return module.net if isinstance(module, Denoiser) else module


def new_state(
    method: Method, student: Denoiser, config: TrainConfig, *, init: Denoiser | None = None,
    teacher: Denoiser | None = None, worker: Worker = ALONE,
) -> State:  # fmt: skip
    """The state before the first step.

    Args:
        method: the objective, which names the networks that take part.
        student: the network to train, with its initial weights.
        config: training settings.
        init: the model of the run named by `init`, for networks that begin as that.
        teacher: the model of the run named by `teacher`.
        worker: one of the workers of the run, over which the networks may be spread.

    Raises:
        ValueError: a network begins as a model that is not there.
    """
    device = next(student.net.parameters()).device
    sources = {"student": student, "init": init, "teacher": teacher}
    new: dict[str, nn.Module] = {}
    for name, network in method.networks.items():
        given = () if network.start == "new" else (sources[network.start],)
        if None in given:
            raise ValueError(
                f"{type(method).__name__} needs a {network.start} for its network {name!r}: set the run's "
                f"`{network.start}` to the name of a run"
            )
        if network.make is not None:
            with seeded(config.seed, "init", name):
                new[name] = network.make(*given).to(device)
    student.train()  # before it is copied: a copy drops what the student drops
    if config.adapter is not None:
        if worker.shard:
            raise ValueError("train.adapter: expected null for networks that are spread over workers, got adapters")
        with seeded(config.seed, "adapter"):
            attach(student.net, **vars(config.adapter))
    modules: dict[str, nn.Module] = {STUDENT: student}
    for name, network in method.networks.items():
        if name not in new:
            module = copy.deepcopy(sources[network.start]) if network.role != "frozen" else sources[network.start]
            assert module is not None
            modules[name] = _ready(module, network)
        else:
            modules[name] = _ready(new[name], network)
    for net in {id(module): module.net for module in modules.values() if isinstance(module, Denoiser)}.values():
        arrange(net, config, worker)  # a copy would not be compiled, and of a sharded network there are no copies
        if worker.shard:
            shard(net)
    players = {
        player: Player.of(
            [
                parameter
                for name, module in modules.items()
                if name == player == STUDENT or (name != STUDENT and _trains(method.networks[name], player))
                for parameter in raw(module).parameters()
                if parameter.requires_grad  # adapters leave the rest of the student as it is
            ],
            config.of(player),
        )
        for player in method.players
    }
    state = State(Nets(modules), method.networks, players, ema={name: [] for name in config.ema})
    state.restart_averages()
    return state


def _trains(network: Network, player: str) -> bool:
    return network.role == "trained" and network.player == player


def _ready(module: nn.Module, network: Network) -> nn.Module:
    """A network in the mode of its role."""
    module.requires_grad_(network.role == "trained")
    module.train(network.role == "trained" or (network.role == "moved" and network.dropout))
    return module


def state_tensors(state: State) -> dict[str, Tensor]:
    """The whole state under flat names: nets/<name>/, ema/<profile>/, players/<name>/{stage, optimiser, scale}.

    Of sharded parameters, and of what belongs to them, it is what this worker holds: see `Layout`.
    """
    tensors = {
        f"nets/{name}/{key}": local(tensor)
        for name, module in state.changing.items()
        for key, tensor in raw(module).state_dict().items()
    }
    for profile, averages in state.ema.items():
        tensors |= {f"ema/{profile}/{index}": tensor for index, tensor in enumerate(averages)}
    for name, player in state.players.items():
        tensors[f"players/{name}/stage"] = torch.tensor([player.started, player.until])
        for index, slots in player.optimiser.state_dict()["state"].items():
            tensors |= {f"players/{name}/optimiser/{index}/{key}": torch.as_tensor(v) for key, v in slots.items()}
        if player.scale is not None:
            tensors |= {f"players/{name}/scale/{key}": tensor for key, tensor in player.scale.tensors.items()}
    return tensors


class Layout:
    """Which rows of the tensors of a state this worker holds."""

    def __init__(self, state: State) -> None:
        owners: dict[str, Tensor] = {}  # by the names of `state_tensors`, or their beginnings
        for name, module in state.changing.items():
            owners |= {f"nets/{name}/{key}": parameter for key, parameter in raw(module).named_parameters()}
        for profile in state.ema:
            owners |= {f"ema/{profile}/{index}": parameter for index, parameter in enumerate(state.parameters)}
        for name, player in state.players.items():
            named = enumerate(player.parameters)
            owners |= {f"players/{name}/optimiser/{index}": parameter for index, parameter in named}
        self._owners = {name: parameter for name, parameter in owners.items() if is_sharded(parameter)}

    def place(self, name: str, shape: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """The first row of what is held here in that shape, and the whole's shape; None where that is the whole."""
        owner = self._owner(name)
        if owner is None or local(owner).shape != torch.Size(shape):
            return None
        return rows(owner).start, tuple(owner.shape)

    def rows(self, name: str, shape: Sequence[int]) -> slice | None:
        """The rows held here of what is of that shape as a whole; None for all."""
        owner = self._owner(name)
        return rows(owner) if owner is not None and owner.shape == torch.Size(shape) else None

    def _owner(self, name: str) -> Tensor | None:
        return self._owners.get(name, self._owners.get(name.rpartition("/")[0]))


def load_state_tensors(state: State, tensors: dict[str, Tensor], images: int) -> None:
    """Put back what `state_tensors` gave, in place. Names or shapes that do not fit give a RuntimeError."""

    def group(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    for name, module in state.changing.items():
        load(raw(module), group(f"nets/{name}/"))
    for profile, averages in state.ema.items():
        saved = group(f"ema/{profile}/")
        for index, average in enumerate(averages):
            average.copy_(saved[str(index)])
    for name, player in state.players.items():
        _load_player(player, group(f"players/{name}/"))
    state.images = images


def _load_player(player: Player, saved: Mapping[str, Tensor]) -> None:
    player.started, player.until = map(int, saved["stage"])
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in saved.items():
        kind, *rest = name.split("/")
        if kind == "optimiser":
            slots.setdefault(int(rest[0]), {})[rest[1]] = tensor
        elif kind == "scale" and player.scale is not None:
            player.scale.tensors[rest[0]].copy_(tensor)
    player.optimiser.load_state_dict({"state": slots, "param_groups": player.optimiser.state_dict()["param_groups"]})
