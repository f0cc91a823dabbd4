"""Checks of runs against one another: whether init, teacher, guidance, augmentation and groups go together."""

import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

from cmcore import plugins
from cmcore.assemble.run import NONE, RANDOM, NetChoice, Run
from cmcore.config import ConfigError, join
from cmcore.data.settings import AUGMENT_DIM
from cmcore.diffusion.settings import DiffusionConfig
from cmcore.train.settings import TrainConfig


def check_level(level: float, diffusion: DiffusionConfig, path: str) -> None:
    """Refuse a noise level outside of the range."""
    if not diffusion.sigma_min < level < diffusion.sigma_max:
        between = f"diffusion.sigma_min = {diffusion.sigma_min} and diffusion.sigma_max = {diffusion.sigma_max}"
        raise ConfigError(path, f"expected a level between {between}, got {level}")


def check_augment(train: TrainConfig, net: NetChoice, path: str) -> None:
    """Training on distorted images needs a network with an input for the distortion, or it would generate them."""
    dim = getattr(net.config, "augment_dim", 0)
    if train.augment and dim != AUGMENT_DIM:
        raise ConfigError(
            join(path, "train.augment"),
            f"needs a network with an input for it: expected {join(path, 'net.augment_dim')} to be {AUGMENT_DIM}, "
            f"got {dim}; or expected 0, got {train.augment}",
        )


def check_sigma_data(net: NetChoice, diffusion: DiffusionConfig, path: str) -> None:
    """A network that is told the data's standard deviation is told that of the preconditioning."""
    told = getattr(net.config, "sigma_data", diffusion.sigma_data)
    if told != diffusion.sigma_data:
        raise ConfigError(
            join(path, "net.sigma_data"), f"expected diffusion.sigma_data = {diffusion.sigma_data}, got {told}"
        )


def check_reads(run: Run) -> None:
    """A ConfigError where the network of a run that sees captions cannot read them."""
    if run.conditional != "words" or reads_words(run.net.kind):
        return
    able = ", ".join(kind for kind in plugins.available("cmcore.nets") if reads_words(kind))
    said = f"expected one that reads captions ({able}), as conditional is words, got {run.net.kind!r}"
    raise ConfigError(join(join("runs", run.name), "net.kind"), said)


def reads_words(kind: str) -> bool:
    """Whether the networks of that kind read captions: `build` then takes their words."""
    return "words" in inspect.signature(plugins.load("cmcore.nets", kind).build).parameters


def check_rows(run: Run) -> None:
    """Batches do not cut the groups of the method's rows, and settings of players belong to players that it has."""
    path, method = join(join("runs", run.name), "train"), run.objective
    for key in ("batch", "micro_batch"):
        if (value := getattr(run.train, key)) % method.traits.group:
            raise ConfigError(
                join(path, key), f"expected a multiple of {run.method}'s groups of {method.traits.group}, got {value}"
            )
    for name in run.train.players:
        if name not in method.players[1:]:
            others = ", ".join(method.players[1:]) or f"none, as {run.method} trains the student alone"
            raise ConfigError(join(path, f"players.{name}"), f"expected one of the other players: {others}")


def check_latents(runs: Iterable[Run], searches: Iterable[str], cause: str) -> None:
    """The latent of a distorted image is not the distorted latent, and searches do not decode."""
    for name in searches:
        raise ConfigError(join("tune", name), f"expected no search for {cause}: its trials are images'")
    check_undistorted(runs, cause)


def check_undistorted(runs: Iterable[Run], cause: str) -> None:
    """Images that have to stay as they are: latents, and sounds, which played backwards say something else."""
    for run in runs:
        for key in ("flip", "augment"):
            if value := getattr(run.train, key):
                path = join(join("runs", run.name), f"train.{key}")
                raise ConfigError(path, f"expected {type(value)()} for {cause}, got {value}")


def check_links(runs: Mapping[str, Run], run: Run) -> None:
    """The chain of `init` and `teacher` ends, and both name runs that suit the method."""
    path = join("runs", run.name)
    _check_chain(runs, run)
    traits, init, teacher = run.objective.traits, runs.get(run.init), runs.get(run.teacher)
    if run.weights is not None and run.weights.adapter is not None:
        _check_adapter(runs, run)
    elif run.weights is not None:
        for key, value, none in (("init", run.init, RANDOM), ("teacher", run.teacher, NONE)):
            if value != none:
                raise ConfigError(join(path, key), f"expected {none}, as the weights come from a file, got {value!r}")
    elif (traits.teacher == "none") != (teacher is None):
        wanted = f"the name of a {traits.teacher.replace('_', '-')} run" if teacher is None else NONE
        raise ConfigError(join(path, "teacher"), f"expected {wanted} for {run.method}, got {run.teacher!r}")
    elif teacher is not None and teacher.objective.traits.few_step != (traits.teacher == "few_step"):
        kind = traits.teacher.replace("_", "-")
        raise ConfigError(join(path, "teacher"), f"{run.method} learns from a {kind} model; {run.teacher!r} is none")
    if any(network.start == "init" for network in run.objective.networks.values()) and init is None:
        raise ConfigError(join(path, "init"), f"{run.method} starts from a trained model; expected the name of a run")
    if init is not None and (ours := run.net.shape) != (theirs := init.net.shape):
        differ = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        raise ConfigError(join(path, "net"), f"expected the network of {run.init!r}, got another {', '.join(differ)}")
    # A student may learn inputs beside those of the network it starts from.
    if init is not None and (lost := [i.name for i in init.net.inputs if i not in run.net.inputs]):
        raise ConfigError(join(path, "init"), f"expected a run whose network has no input {', '.join(lost)}")
    check_guidance(run, runs)


def _check_adapter(runs: Mapping[str, Run], run: Run) -> None:
    """A run whose weights are a base and an adapter names both."""
    path, source = join("runs", run.name), runs.get(run.teacher)
    assert run.weights is not None
    if run.init not in runs:
        raise ConfigError(
            join(path, "init"), f"expected the run to whose weights the adapter is added, got {run.init!r}"
        )
    if run.weights.file:
        if source is not None:
            raise ConfigError(
                join(path, "teacher"), f"expected {NONE}, as the adapter is in a file, got {run.teacher!r}"
            )
    elif source is None or source.train.adapter is None or source.weights is not None:
        raise ConfigError(join(path, "teacher"), f"expected a run with train.adapter, got {run.teacher!r}")
    elif source.net != run.net:
        raise ConfigError(join(path, "net"), f"expected the network and the inputs of {run.teacher!r}, got others")


def check_adapter(run: Run) -> None:
    """Adapters are of a network that has learned something."""
    if run.train.adapter is not None and run.weights is None and run.init == RANDOM:
        path = join(join("runs", run.name), "train.adapter")
        raise ConfigError(path, "expected null with random weights, which would stay as they are; see `init`")


def check_moments(run: Run) -> None:
    """Snapshots are taken at the moments whose weights the rows of the tables sample."""
    method, count = run.objective, run.train.snapshots
    for sampler in method.samplers(run.sampling(steps=2)):
        share = method.moment(sampler)
        if share < 1 and (share * count < 0.5 or abs(share * count - round(share * count)) > 1e-9):
            raise ConfigError(
                join(join("runs", run.name), "train.snapshots"),
                f"expected a number with a snapshot after the share {share:.4g} of the run, for the row of "
                f"{sampler.nfe} evaluations, got {count}",
            )


def check_solvers(run: Run) -> None:
    """Solvers are of diffusion models."""
    if run.sample.solvers and run.objective.traits.few_step:
        path = join(join("runs", run.name), "sample.solvers")
        raise ConfigError(path, f"expected none, as {run.method} is no diffusion model, got {list(run.sample.solvers)}")


def _check_chain(runs: Mapping[str, Run], run: Run) -> None:
    """Every run that is named exists, and none starts from, or learns from, itself by a detour."""

    def visit(current: Run, above: tuple[str, ...]) -> None:
        for key, name, none in (("init", current.init, RANDOM), ("teacher", current.teacher, NONE)):
            if name == none:
                continue
            where = join(join("runs", current.name), key)
            if name not in runs:
                others = [other for other in runs if other != current.name]
                raise ConfigError(where, f"expected {none} or one of {', '.join(others)}, got {name!r}")
            if name in above:
                circle = " -> ".join([*above[above.index(name) :], name])
                raise ConfigError(join(join("runs", run.name), key), f"goes round in a circle: {circle}")
            visit(runs[name], (*above, name))

    visit(run, (run.name,))


def check_guidance(run: Run, runs: Mapping[str, Run]) -> None:
    """A ConfigError where labels are dropped or guidance is asked for, and the networks do not allow it."""
    path, traits = join("runs", run.name), run.objective.traits
    asked = {
        "options.label_dropout": traits.unlabelled,
        "options.guidance": traits.guidance,
        "sample.guidance": run.sample.guidance - 1,
    }
    for key in (key for key, value in asked.items() if value and not run.conditional):
        raise ConfigError(join(path, key), "is about labels, which these networks do not see; see `conditional`")
    teacher = runs.get(run.teacher) if run.weights is None else None  # that of an adapter teaches nothing
    if traits.guidance is not None and teacher is not None and not _knows_no_label(teacher):
        raise _untrained(teacher.name, join(path, "options.guidance"))
    s, where = run.sample.guidance, join(path, "sample.guidance")
    if s == 1:
        return
    if not traits.few_step and not _knows_no_label(run):
        raise _untrained(run.name, where)
    if traits.few_step and traits.guidance is None:
        raise ConfigError(where, f"expected 1, as {run.name} learns no scales; see `guidance` in its options; got {s}")
    if traits.guidance is not None and not traits.guidance[0] <= s <= traits.guidance[1]:
        low, high = traits.guidance
        raise ConfigError(where, f"expected a scale that was learned, from {low} to {high}, got {s}")


def _knows_no_label(run: Run) -> bool:
    """Whether a diffusion model was trained on dropped labels; of weights from elsewhere the user has to know."""
    return run.weights is not None or run.objective.traits.unlabelled


def _untrained(name: str, where: str) -> ConfigError:
    return ConfigError(
        where,
        f"guidance needs a diffusion model that has seen images without labels: expected "
        f"{join(join('runs', name), 'options.label_dropout')} above 0, got 0",
    )


def check_services(run: Run) -> None:
    """A ConfigError where the method's loss asks for LPIPS and no weights are named."""
    if "lpips" in run.services and not run.train.lpips_weights:
        raise _no_lpips(run)


def _no_lpips(run: Run) -> ConfigError:
    return ConfigError(
        join(join("runs", run.name), "options.distance"),
        f"lpips needs torchvision's VGG-16 weights; expected train.lpips_weights to name their file, got "
        f"{run.train.lpips_weights!r}; or choose pseudo_huber, l2 or l1",
    )


def require_files(runs: Iterable[Run]) -> None:
    """A ConfigError where runs that are about to be trained or imported need a file or a package that is not there."""
    for run in runs:
        module = plugins.load("cmcore.nets", run.net.kind)
        if (package := getattr(module, "NEEDS", "")) and importlib.util.find_spec(package) is None:
            raise module.missing(join(join("runs", run.name), "net.kind"))
        if "lpips" in run.services and not Path(run.train.lpips_weights).is_file():
            raise _no_lpips(run)
        if run.weights is not None and run.weights.file and not Path(run.weights.file).is_file():
            where = join(join("runs", run.name), "weights.file")
            raise ConfigError(where, f"expected a file of public weights, got {run.weights.file!r}")
