"""The entries of `tune`, checked against the runs they vary before any compute."""

from cmcore.assemble.project import Project, overridden
from cmcore.assemble.run import Run
from cmcore.config import ConfigError, join, read
from cmcore.search.space import TuneConfig, nested

OWN = ("train.images", "train.seed", "train.snapshots")  # set by the search itself, so it cannot vary them


def searches(project: Project) -> dict[str, TuneConfig]:
    """The searches of a parameter file; a ConfigError names the dotted path of the first value that is wrong."""
    found = {}
    for name, entry in project.sections.tune.items():
        found[name] = read(TuneConfig, entry, join("tune", name))
        _check(project, found[name], join("tune", name))
    return found


def _check(project: Project, config: TuneConfig, path: str) -> None:
    """A search varies parameters that exist, within bounds, and compares trials whose curriculum has begun."""
    if config.base not in project.runs:
        raise ConfigError(join(path, "base"), f"expected one of {', '.join(project.runs)}, got {config.base!r}")
    base = project.run(config.base)
    for key in ("init", "teacher"):
        wanted, got = getattr(base, key), getattr(config, key)
        if got != wanted:
            raise ConfigError(join(path, key), f"expected {wanted!r}, as in runs.{base.name}, got {got!r}")
    if base.weights is not None or not base.objective.traits.few_step:
        raise ConfigError(
            join(path, "base"), f"expected a run that is trained and samples in few steps, got {base.method}"
        )
    _check_evaluations(base, config, path)
    budget = config.images or base.train.images
    least = base.train.batch * (config.snapshots if config.kind == "posthoc" else config.parts)
    if budget < least:
        raise ConfigError(join(path, "images"), f"expected at least {least}, a batch for every part, got {budget}")
    _check_first_step(base, config, path)
    for dimension in config.dimensions if config.kind == "train" else ():
        here = join(join(path, "space"), dimension.path)
        if dimension.path in OWN:
            raise ConfigError(here, f"expected another parameter: the search itself sets {', '.join(OWN)}")
        for value in dimension.extremes:
            try:
                run = overridden(project, base.name, nested(dimension.path, value))
            except ConfigError as error:
                raise ConfigError(here, f"{value!r} is impossible: {error}") from error
            _check_first_step(run, config, here)


def _check_evaluations(base: Run, config: TuneConfig, path: str) -> None:
    """Trials are ranked by one of the samplers of the run's rows."""
    there = sorted(
        {
            sampler.nfe
            for sampler in base.objective.samplers(base.sampling(steps=2))
            if base.objective.moment(sampler) == 1
        }
    )
    if config.nfe not in there:
        raise ConfigError(join(path, "nfe"), f"expected one of {', '.join(map(str, there))}, got {config.nfe}")


def _check_first_step(run: Run, config: TuneConfig, path: str) -> None:
    """Before the first step of its curriculum a trial says nothing about the curriculum."""
    first = run.objective.traits.first_step
    stops = config.kind == "train" and config.scheduler in ("asha", "hyperband")
    if stops and 1 / config.parts < first - 1e-9:
        raise ConfigError(
            path,
            f"the first rung, after {1 / config.parts:.0%} of a trial, comes before the curriculum's first step, after "
            f"{first:.0%}; expected fewer rungs",
        )
