"""A run with everything resolved: the value that trainer, evaluator, searches and plan are given. Imports no torch."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cmcore import plugins
from cmcore.config import ConfigError, plain, require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Conditional
from cmcore.sample.settings import Sampling, SolverName
from cmcore.train.settings import TrainConfig

if TYPE_CHECKING:
    from cmcore.methods.base import Method

RANDOM = "random"  # the `init` of a run that starts from random weights
NONE = "none"  # the `teacher` of a run that has none


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling of the run's model for the tables."""

    two_step: float = 0.821  # sigma of the second step (iCT's value for CIFAR-10)
    guidance: float = 1.0  # scale of classifier-free guidance, 1 for none; doubles the NFE of a diffusion model
    solvers: tuple[SolverName, ...] = ()  # of a diffusion model, beside the one of `eval.teacher_steps`: each of these
    nfe: tuple[int, ...] = ()  # with at most so many evaluations

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "at least 0", self.guidance)
        require(self.two_step > 0, "two_step", "a positive noise level", self.two_step)
        require(bool(self.solvers) == bool(self.nfe), "nfe", "a list, beside a list of solvers", self.nfe)
        least, why = (1, "") if {*self.solvers} == {"euler_linear"} else (3, ", for two steps of Heun's")
        for index, nfe in enumerate(self.nfe):
            require(nfe >= least, f"nfe[{index}]", f"at least {least}{why}", nfe)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The source of a run's weights, instead of training: a public weight file, or an adapter of another run.

    `cmlab import-weights` prints it for a file. With `adapter` the weights are those of `init` and so many times the
    adapter of `teacher`, or of a file in the layout of peft.
    """

    file: str = ""  # a network pickle of NVlabs, a state dict of OpenAI, a .safetensors file of this project or of peft
    adapter: float | None = None  # scale of an adapter; null for weights of a whole network
    sha256: str = ""  # of the file; another file is refused. Empty accepts any
    part: str = (
        ""  # entry of a pickle, by default "ema"; profile of a file of this project, by default the evaluated one
    )

    def __post_init__(self) -> None:
        hexadecimal = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        require(not self.sha256 or hexadecimal, "sha256", "64 hexadecimal digits", self.sha256)
        require(bool(self.file) or self.adapter is not None, "file", "the name of a file, or `adapter`", self.file)
        whole = self.adapter is None or not self.part
        require(whole, "part", "nothing, as an adapter has no parts", self.part)


@dataclass(frozen=True, kw_only=True)
class NetChoice:
    """A network: a module of cmcore/nets, its Config, and the inputs that the run's method adds."""

    kind: str
    config: Any
    inputs: tuple[Input, ...] = ()

    @property
    def shape(self) -> dict[str, Any]:
        """Everything that decides names, shapes and meaning of the weights: all but dropout and the added inputs."""
        return {"kind": self.kind, **{k: v for k, v in plain(self.config).items() if not k.startswith("dropout")}}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with everything resolved."""

    name: str
    method: str
    method_config: Any
    init: str
    teacher: str
    weights: WeightsConfig | None
    net: NetChoice
    train: TrainConfig
    sample: SampleConfig
    diffusion: DiffusionConfig
    conditional: Conditional

    @cached_property
    def objective(self) -> "Method":
        """The method, built from its Config; a ConfigError where that does not suit the noise range."""
        try:
            return plugins.load("cmcore.methods", self.method).build(self.method_config, self.diffusion)
        except ConfigError as error:
            raise ConfigError(f"runs.{self.name}.options.{error.path}", error.message) from error

    @property
    def parents(self) -> tuple[str, ...]:
        """The runs that have to be trained before it."""
        return tuple(dict.fromkeys(name for name in (self.init, self.teacher) if name not in (RANDOM, NONE)))

    @property
    def services(self) -> tuple[str, ...]:
        """The networks from elsewhere that its training asks for."""
        return () if self.weights else self.objective.traits.services

    def sampling(self, steps: int) -> Sampling:
        """The settings of its samplers, with `steps` steps of a diffusion model's ODE solver."""
        return Sampling(diffusion=self.diffusion, steps=steps, **vars(self.sample))


def resolved(run: Run) -> dict[str, Any]:
    """Everything that decides the run's result, as plain data: for fingerprints, weight files and trackers."""
    data = plain(run)
    # How often a checkpoint is taken is no part of the result.
    data["train"].pop("checkpoint_seconds")
    return {key: data[key] for key in sorted(data)}
