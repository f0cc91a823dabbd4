"""params.yaml as typed values, checked as a whole before any compute."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmcore import plugins
from cmcore.assemble.guided import check_guidance, with_guidance
from cmcore.config import ConfigError, join, load_yaml, merge, plain, read, require
from cmcore.data.settings import AUGMENT_DIM, DataConfig
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.evaluate.settings import EvalConfig
from cmcore.search.space import TuneConfig
from cmcore.train.settings import TrainConfig

RANDOM = "random"  # the `init` of a run that starts from random weights
OWN = ("train.images", "train.seed", "train.snapshots")  # what a search sets, and so cannot vary


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How the run's model is sampled for the tables."""

    two_step: float = 0.821  # sigma of the second step (iCT's value for CIFAR-10)
    guidance: float = 1.0  # scale of classifier-free guidance, 1 for none; doubles the NFE of a diffusion model

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "at least 0", self.guidance)
        require(self.two_step > 0, "two_step", "a positive noise level", self.two_step)


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """An entry of `runs`, as it is written. Mappings are laid over the shared sections."""

    method: str  # a module of cmcore/methods
    init: str  # the run whose weights it starts from, which is also its teacher; or "random"
    options: dict[str, Any] = field(default_factory=dict)  # fields of the method's Config
    train: dict[str, Any] = field(default_factory=dict)  # over the section `train`
    net: dict[str, Any] = field(default_factory=dict)  # over the section `net`
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The parameter file."""

    workload: str
    data: DataConfig
    diffusion: DiffusionConfig
    conditional: bool = False  # whether the networks are told the labels
    net: dict[str, Any]
    train: dict[str, Any]
    runs: dict[str, RunEntry]
    eval: EvalConfig = field(default_factory=EvalConfig)
    tune: dict[str, TuneConfig] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.workload.replace("-", "").replace("_", "").isalnum()
        require(named, "workload", "a name of letters, digits, '_' and '-'", self.workload)
        require(len(self.runs) > 0, "runs", "at least one run", self.runs)


@dataclass(frozen=True, kw_only=True)
class NetChoice:
    """A network: a module of cmcore/nets, its Config, and the further inputs that its method gives it."""

    kind: str
    config: Any
    inputs: tuple[Input, ...] = ()

    @property
    def shape(self) -> dict[str, Any]:
        """What decides the names and shapes of the weights, and what they mean: everything but the dropout."""
        config = {k: v for k, v in plain(self.config).items() if not k.startswith("dropout")}
        return {"kind": self.kind, **config, "inputs": plain(self.inputs)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with everything resolved."""

    name: str
    method: str
    method_config: Any
    init: str
    net: NetChoice
    train: TrainConfig
    sample: SampleConfig
    diffusion: DiffusionConfig
    conditional: bool


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checked parameter file. `compute` and `tracking` are checked by those who use them."""

    sections: Sections
    runs: dict[str, Run]

    @property
    def workload(self) -> str:
        """Names the folders of all outputs."""
        return self.sections.workload

    def run(self, name: str) -> Run:
        """The run of that name, or a ConfigError."""
        if name not in self.runs:
            raise ConfigError(join("runs", name), f"expected one of {', '.join(self.runs)}")
        return self.runs[name]


def load_project(path: str | Path = "params.yaml") -> Project:
    """Read and check a whole parameter file; a ConfigError names the dotted path of the first value that is wrong."""
    return parse_project(load_yaml(path))


def parse_project(data: Mapping[str, Any]) -> Project:
    """Check parameters that are already loaded."""
    sections = read(Sections, data)
    read(TrainConfig, sections.train, "train")
    _net(sections.net, "net")
    for index, level in enumerate(sections.eval.scan):
        _check_level(level, sections.diffusion, f"eval.scan[{index}]")
    runs = {name: _resolve(sections, name, entry) for name, entry in sections.runs.items()}
    if sections.data.source == "latents":
        _check_latents(sections, runs.values())
    elif sections.eval.decoder.path:
        got = sections.eval.decoder.path
        raise ConfigError("eval.decoder.path", f"expected nothing, as only latents are decoded, got {got!r}")
    for run in runs.values():
        _check_init(runs, run)
    project = Project(sections=sections, runs=runs)
    for name, config in sections.tune.items():
        _check_search(project, config, join("tune", name))
    return project


def plugin_config(package: str, kind: str, options: Mapping[str, Any], kind_path: str, path: str) -> Any:
    """The Config of the plug-in `kind`, filled from `options`; both paths say where these stand in the file."""
    try:
        module = plugins.load(package, kind)
    except ValueError as error:
        raise ConfigError(kind_path, str(error)) from error
    return read(module.Config, options, path)


def _net(section: Mapping[str, Any], path: str) -> NetChoice:
    kind = section.get("kind")
    if not isinstance(kind, str):
        raise ConfigError(
            join(path, "kind"), f"expected one of {', '.join(plugins.available('cmcore.nets'))}, got {kind!r}"
        )
    options = {key: value for key, value in section.items() if key != "kind"}
    return NetChoice(kind=kind, config=plugin_config("cmcore.nets", kind, options, join(path, "kind"), path))


def _net_section(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's changes to the shared network, or its own network where that is of another kind."""
    return own if own.get("kind", shared.get("kind")) != shared.get("kind") else merge(shared, own)


def _check_level(level: float, diffusion: DiffusionConfig, path: str) -> None:
    if not diffusion.sigma_min < level < diffusion.sigma_max:
        between = f"diffusion.sigma_min = {diffusion.sigma_min} and diffusion.sigma_max = {diffusion.sigma_max}"
        raise ConfigError(path, f"expected a level between {between}, got {level}")


def _resolve(sections: Sections, name: str, entry: RunEntry) -> Run:
    path = join("runs", name)
    if name == RANDOM:
        raise ConfigError(path, f"{RANDOM!r} stands for random initialisation; expected another name")
    method_config = plugin_config(
        "cmcore.methods", entry.method, entry.options, join(path, "method"), join(path, "options")
    )
    _check_level(entry.sample.two_step, sections.diffusion, join(path, "sample.two_step"))
    train = read(TrainConfig, merge(sections.train, entry.train), join(path, "train"))
    if needs_lpips(method_config) and not train.lpips_weights:
        raise _no_lpips(name, train)
    net = with_guidance(_net(_net_section(sections.net, entry.net), join(path, "net")), method_config)
    _check_augment(train, net, path)
    return Run(
        name=name,
        method=entry.method,
        method_config=method_config,
        init=entry.init,
        net=net,
        train=train,
        sample=entry.sample,
        diffusion=sections.diffusion,
        conditional=sections.conditional,
    )


def _check_augment(train: TrainConfig, net: NetChoice, path: str) -> None:
    """A network that sees distorted images has to be told, or it would generate them."""
    dim = getattr(net.config, "augment_dim", 0)
    if train.augment and dim != AUGMENT_DIM:
        raise ConfigError(
            join(path, "train.augment"),
            f"needs a network that is told of it: expected {join(path, 'net.augment_dim')} to be {AUGMENT_DIM}, "
            f"got {dim}; or expected 0, got {train.augment}",
        )


def _check_latents(sections: Sections, runs: Iterable[Run]) -> None:
    """The latent of a distorted image is not the distorted latent, and searches do not decode."""
    for name in sections.tune:
        raise ConfigError(join("tune", name), "expected no search for data.source = latents: its trials are images'")
    for run in runs:
        for key in ("flip", "augment"):
            if value := getattr(run.train, key):
                path = join(join("runs", run.name), f"train.{key}")
                raise ConfigError(path, f"expected {type(value)()} for data.source = latents, got {value}")


def require_decoder(project: Project) -> None:
    """Where it is about more than training, a ConfigError for latents that nothing is named to decode."""
    if project.sections.data.source == "latents" and not project.sections.eval.decoder.path:
        raise ConfigError(
            "eval.decoder.path",
            "latents can be trained on, with `dvc repro train@<run>`; to measure and to show samples, expected the "
            "folder of a diffusers AutoencoderKL that decodes them, got ''",
        )


def _check_init(runs: Mapping[str, Run], run: Run) -> None:
    """The chain of `init` ends at random weights, and a run has the network of the run it starts from."""
    path, seen, current = join(join("runs", run.name), "init"), [run.name], run
    while current.init != RANDOM:
        if current.init not in runs:
            others = [name for name in runs if name != run.name]
            raise ConfigError(
                join(join("runs", current.name), "init"),
                f"expected {RANDOM} or one of {', '.join(others)}, got {current.init!r}",
            )
        if current.init in seen:
            raise ConfigError(path, f"goes round in a circle: {' -> '.join([*seen, current.init])}")
        current = runs[current.init]
        seen.append(current.name)
    if run.init != RANDOM and build_method(run).needs.file:
        raise ConfigError(path, f"{run.method} takes its weights from a file; expected {RANDOM}, got {run.init!r}")
    theirs, ours = runs.get(run.init, run).net.shape, run.net.shape
    if all(known in ours["inputs"] for known in theirs["inputs"]):  # a network may start from one with fewer inputs
        ours["inputs"] = theirs["inputs"]
    if run.init != RANDOM and ours != theirs:
        differ = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        raise ConfigError(
            join(join("runs", run.name), "net"),
            f"expected the network of {run.init!r}, got another {', '.join(differ)}",
        )
    if build_method(run).needs.teacher and (run.init == RANDOM or build_method(runs[run.init]).few_step):
        raise ConfigError(
            path, f"{run.method} distils a teacher; expected the name of a diffusion run, got {run.init!r}"
        )
    check_guidance(run, build_method(run).few_step, runs.get(run.init))


def needs_lpips(method_config: Any) -> bool:
    """Whether a method's loss asks for the LPIPS network, whose weights do not come with the project."""
    return getattr(method_config, "distance", "") == "lpips"


def _no_lpips(name: str, train: TrainConfig) -> ConfigError:
    return ConfigError(
        join(join("runs", name), "options.distance"),
        f"lpips needs torchvision's VGG-16 weights; expected train.lpips_weights to name their file, got "
        f"{train.lpips_weights!r}; or choose pseudo_huber, l2 or l1",
    )


def require_files(runs: Iterable[Run]) -> None:
    """A ConfigError where runs that are about to be trained name a file that is not there."""
    for run in runs:
        if needs_lpips(run.method_config) and not Path(run.train.lpips_weights).is_file():
            raise _no_lpips(run.name, run.train)
        if build_method(run).needs.file and not Path(run.method_config.file).is_file():
            raise ConfigError(
                join(join("runs", run.name), "options.file"),
                f"expected a file of public weights, got {run.method_config.file!r}",
            )


def build_method(run: Run) -> Any:
    """The run's training objective."""
    return plugins.load("cmcore.methods", run.method).build(run.method_config, run.diffusion)


def overridden(project: Project, name: str, overrides: Mapping[str, Any]) -> Run:
    """A run with values laid over its entry; a ConfigError where the result is wrong."""
    path, sections = join("runs", name), project.sections
    run = _resolve(sections, name, read(RunEntry, merge(plain(sections.runs[name]), overrides), path))
    _check_init({**project.runs, name: run}, run)
    return run


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _check_search(project: Project, config: TuneConfig, path: str) -> None:
    """A search varies what there is, within what is right, and compares trials that have seen their curriculum."""
    if config.base not in project.runs:
        raise ConfigError(join(path, "base"), f"expected one of {', '.join(project.runs)}, got {config.base!r}")
    base = project.run(config.base)
    if config.init != base.init:
        raise ConfigError(
            join(path, "init"), f"expected {base.init!r}, which runs.{base.name} starts from, got {config.init!r}"
        )
    if build_method(base).needs.file or not build_method(base).few_step:
        raise ConfigError(
            join(path, "base"), f"expected a run that is trained and samples in few steps, got {base.method}"
        )
    budget = config.images or base.train.images
    least = base.train.batch * (config.snapshots if config.kind == "posthoc" else config.parts)
    if budget < least:
        raise ConfigError(join(path, "images"), f"expected at least {least}, a batch for every part, got {budget}")
    _check_grace(base, config, path)
    for dimension in config.dimensions if config.kind == "train" else ():
        here = join(join(path, "space"), dimension.path)
        if dimension.path in OWN:
            raise ConfigError(here, f"expected another parameter: the search itself sets {', '.join(OWN)}")
        for value in dimension.extremes:
            try:
                run = overridden(project, base.name, nested(dimension.path, value))
            except ConfigError as error:
                raise ConfigError(here, f"{value!r} is impossible: {error}") from error
            _check_grace(run, config, here)


def _check_grace(run: Run, config: TuneConfig, path: str) -> None:
    """Before the first step of its curriculum a trial says nothing about the curriculum."""
    first = getattr(run.method_config, "first_step", 0.0)
    stops = config.kind == "train" and config.scheduler in ("asha", "hyperband")
    if stops and 1 / config.parts < first - 1e-9:
        raise ConfigError(
            path,
            f"the first rung, after {1 / config.parts:.0%} of a trial, comes before the curriculum's first step, after "
            f"{first:.0%}; expected fewer rungs",
        )


def resolved(run: Run) -> dict[str, Any]:
    """Everything that decides the run's result, as plain data: for fingerprints, weight files and trackers."""
    data = plain(run)
    # How often a checkpoint is taken is no part of the result.
    data["train"].pop("checkpoint_seconds")
    return {key: data[key] for key in sorted(data)}
