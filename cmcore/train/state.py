"""Everything that changes while a run trains, and how it becomes named tensors and back."""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cmcore.diffusion.precond import Denoiser
from cmcore.methods.base import Method, Models
from cmcore.train.layout import arrange
from cmcore.train.optim import build_optimiser
from cmcore.train.precision import LossScale
from cmcore.train.settings import TrainConfig


@dataclass
class State:
    """A run at one moment. Randomness is addressed by `images`, so there is no generator to keep."""

    models: Models
    optimiser: torch.optim.Optimizer
    ema: dict[str, list[Tensor]] = field(default_factory=dict)  # profile -> averages, in the order of the parameters
    images: int = 0
    scale: LossScale | None = None  # of an fp16 run

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The student's parameters."""
        return list(self.models.student.net.parameters())

    def weights(self, profile: str = "raw") -> dict[str, Tensor]:
        """Named network weights of a profile; buffers are the student's own."""
        named = {name: tensor.detach() for name, tensor in self.models.student.net.state_dict().items()}
        if profile != "raw":
            names = [name for name, _ in self.models.student.net.named_parameters()]
            named.update(zip(names, self.ema[profile], strict=True))
        return named


def new_state(method: Method, student: Denoiser, teacher: Denoiser | None, config: TrainConfig) -> State:
    """The state before the first step; a ValueError where the method needs a teacher and there is none."""
    if method.needs.teacher and teacher is None:
        raise ValueError(
            f"{type(method).__name__} needs a teacher: set the run's `init` to the name of a diffusion run"
        )
    device = next(student.net.parameters()).device
    heads = nn.ModuleDict({name: make() for name, make in method.needs.heads.items()}).to(device)
    arrange(student.net, config)
    # In train mode first: the target is a copy, and must drop what the student drops.
    target = copy.deepcopy(student.train()).requires_grad_(False) if method.needs.target else None
    if target is not None:
        arrange(target.net, config)
    if teacher is not None:
        arrange(teacher.requires_grad_(False).eval().net, config)
    models = Models(student=student.train(), teacher=teacher, target=target, heads=heads)
    optimiser = build_optimiser([*student.net.parameters(), *heads.parameters()], config)
    start = [parameter.detach() for parameter in student.net.parameters()]
    averages = {name: [tensor.clone() for tensor in start] for name in config.ema}
    return State(models, optimiser, averages, scale=LossScale(device) if config.precision == "fp16" else None)


def state_tensors(state: State) -> dict[str, Tensor]:
    """The whole state under flat names: net/, heads/, target/, ema/<profile>/, optimiser/<index>/, scale/."""
    tensors = {f"net/{name}": tensor for name, tensor in state.models.student.net.state_dict().items()}
    tensors |= {f"heads/{name}": tensor for name, tensor in state.models.heads.state_dict().items()}
    if state.models.target is not None:
        tensors |= {f"target/{name}": tensor for name, tensor in state.models.target.net.state_dict().items()}
    for profile, averages in state.ema.items():
        tensors |= {f"ema/{profile}/{index}": tensor for index, tensor in enumerate(averages)}
    for index, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": torch.as_tensor(value) for key, value in slots.items()}
    if state.scale is not None:
        tensors |= {f"scale/{name}": tensor for name, tensor in state.scale.tensors.items()}
    return tensors


def load_state_tensors(state: State, tensors: dict[str, Tensor], images: int) -> None:
    """Put back what `state_tensors` gave, in place. Names or shapes that do not fit give a RuntimeError."""

    def group(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    state.models.student.net.load_state_dict(group("net/"))
    state.models.heads.load_state_dict(group("heads/"))
    if state.models.target is not None:
        state.models.target.net.load_state_dict(group("target/"))
    for profile, averages in state.ema.items():
        saved = group(f"ema/{profile}/")
        for index, average in enumerate(averages):
            average.copy_(saved[str(index)])
    if state.scale is not None:
        saved = group("scale/")
        for name, tensor in state.scale.tensors.items():
            tensor.copy_(saved[name])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in group("optimiser/").items():
        index, key = name.split("/")
        slots.setdefault(int(index), {})[key] = tensor
    state.optimiser.load_state_dict({"state": slots, "param_groups": state.optimiser.state_dict()["param_groups"]})
    state.images = images
