"""params.yaml as typed values, checked as a whole before any compute."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmcore import plugins
from cmcore.assemble.checks import (
    check_adapter,
    check_augment,
    check_latents,
    check_level,
    check_links,
    check_moments,
    check_reads,
    check_rows,
    check_services,
    check_sigma_data,
    check_solvers,
    check_undistorted,
)
from cmcore.assemble.run import NONE, RANDOM, NetChoice, Run, SampleConfig, WeightsConfig
from cmcore.config import ConfigError, join, load_yaml, merge, plain, read, require
from cmcore.data.settings import CAPTIONED, DataConfig
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.diffusion.words import Conditional
from cmcore.evaluate.settings import EvalConfig
from cmcore.train.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """An entry of `runs`, as it is written. Mappings are laid over the shared sections."""

    method: str  # a module of cmcore/methods
    init: str  # the run whose averaged weights it starts from; or "random"
    teacher: str  # the run whose averaged model teaches it; or "none"
    options: dict[str, Any] = field(default_factory=dict)  # fields of the method's Config
    train: dict[str, Any] = field(default_factory=dict)  # over the section `train`
    net: dict[str, Any] = field(default_factory=dict)  # over the section `net`
    sample: SampleConfig = field(default_factory=SampleConfig)
    weights: WeightsConfig | None = None  # a public weight file, which takes the place of training
    ablations: tuple[str, ...] = ()  # the comparisons of variants, by their titles, in whose figures it stands


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The parameter file."""

    workload: str
    replicates: int = 1  # training seeds of every run, from its `train.seed` on
    data: DataConfig
    diffusion: DiffusionConfig
    conditional: Conditional = False  # whether the networks see the labels: the classes, or "words", the captions
    net: dict[str, Any]
    train: dict[str, Any]
    runs: dict[str, RunEntry]
    eval: EvalConfig = field(default_factory=EvalConfig)
    tune: dict[str, Any] = field(default_factory=dict)  # checked by cmcore/search
    compute: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.workload.replace("-", "").replace("_", "").isalnum()
        require(named, "workload", "a name of letters, digits, '_' and '-'", self.workload)
        require(1 <= self.replicates <= 1000, "replicates", "1 to 1000", self.replicates)
        require(len(self.runs) > 0, "runs", "at least one run", self.runs)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checked parameter file. `tune`, `compute` and `tracking` are checked by the packages that use them."""

    sections: Sections
    runs: dict[str, Run]

    @property
    def workload(self) -> str:
        """The name of the folders of all outputs."""
        return self.sections.workload

    def run(self, name: str) -> Run:
        """The run of that name, or a ConfigError."""
        if name not in self.runs:
            raise ConfigError(join("runs", name), f"expected one of {', '.join(self.runs)}")
        return self.runs[name]

    def replicates(self, name: str) -> int:
        """The number of training seeds of a run: one where its weights are public, or where it stands for no run."""
        return 1 if name not in self.runs or self.runs[name].weights else self.sections.replicates

    def replicate(self, name: str, index: int) -> Run:
        """The run with the seed of a replicate, counted from 0."""
        run = self.run(name)
        return replace(run, train=replace(run.train, seed=run.train.seed + index))


def load_project(path: str | Path = "params.yaml") -> Project:
    """Read and check a whole parameter file; a ConfigError names the dotted path of the first value that is wrong."""
    return parse_project(load_yaml(path))


def parse_project(data: Mapping[str, Any]) -> Project:
    """Check parameters that are already loaded."""
    sections = read(Sections, data)
    read(TrainConfig, sections.train, "train")
    _net(sections.net, "net")
    for index, level in enumerate(sections.eval.scan):
        check_level(level, sections.diffusion, f"eval.scan[{index}]")
    runs = {name: _resolve(sections, name, entry) for name, entry in sections.runs.items()}
    if sections.data.latent:
        check_latents(
            runs.values(), sections.tune, "data.source = latents" if sections.data.codec is None else "data.codec"
        )
    elif sections.data.source == "speech":
        check_undistorted(runs.values(), "data.source = speech")
    if sections.data.source != "latents" and (got := sections.eval.decoder.path):
        raise ConfigError("eval.decoder.path", f"expected nothing, as only latents are decoded, got {got!r}")
    if sections.conditional == "words" and sections.data.source not in CAPTIONED:
        able, got = ", ".join(CAPTIONED), sections.data.source
        raise ConfigError("conditional", f"expected images with captions, as data.source {able} may have, got {got!r}")
    for run in runs.values():
        check_links(runs, run)
    return Project(sections=sections, runs=runs)


def overridden(project: Project, name: str, overrides: Mapping[str, Any]) -> Run:
    """A run with values laid over its entry; a ConfigError where the result is wrong."""
    path, sections = join("runs", name), project.sections
    run = _resolve(sections, name, read(RunEntry, merge(plain(sections.runs[name]), overrides), path))
    check_links({**project.runs, name: run}, run)
    return run


def require_decoder(project: Project) -> None:
    """Where it is about more than training, a ConfigError for latents without a decoder."""
    if project.sections.data.source == "latents" and not project.sections.eval.decoder.path:
        raise ConfigError(
            "eval.decoder.path",
            "latents can be trained on, with `dvc repro train@<run>`; to measure and to show samples, expected the "
            "folder of a diffusers AutoencoderKL that decodes them, got ''",
        )


def _resolve(sections: Sections, name: str, entry: RunEntry) -> Run:
    path = join("runs", name)
    if name in (RANDOM, NONE):
        raise ConfigError(path, f"{name!r} stands for no run at all; expected another name")
    method_config = _plugin_config(
        "cmcore.methods", entry.method, entry.options, join(path, "method"), join(path, "options")
    )
    check_level(entry.sample.two_step, sections.diffusion, join(path, "sample.two_step"))
    train = read(TrainConfig, merge(sections.train, entry.train), join(path, "train"))
    net = _net(_net_section(sections.net, entry.net), join(path, "net"))
    run = Run(
        name=name,
        method=entry.method,
        method_config=method_config,
        init=entry.init,
        teacher=entry.teacher,
        weights=entry.weights,
        net=net,
        train=train,
        sample=entry.sample,
        diffusion=sections.diffusion,
        conditional=sections.conditional,
    )
    run = replace(run, net=replace(net, inputs=run.objective.traits.inputs))
    check_services(run)
    check_adapter(run)
    check_reads(run)
    check_augment(train, net, path)
    check_sigma_data(net, sections.diffusion, path)
    check_rows(run)
    check_solvers(run)
    check_moments(run)
    return run


def _plugin_config(package: str, kind: str, options: Mapping[str, Any], kind_path: str, path: str) -> Any:
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
    return NetChoice(kind=kind, config=_plugin_config("cmcore.nets", kind, options, join(path, "kind"), path))


def _net_section(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's changes to the shared network, or its own network where that is of another kind."""
    return own if own.get("kind", shared.get("kind")) != shared.get("kind") else merge(shared, own)
