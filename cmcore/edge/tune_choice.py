"""The space, searcher and scheduler of a search as objects of Ray Tune and Optuna."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cmcore.search.space import Dimension, TuneConfig, flat


def domain(dimension: Dimension) -> Any:
    """Tune's domain for a dimension."""
    from ray import tune

    low, high = dimension.low, dimension.high
    match dimension.kind:
        case "choice":
            return tune.choice(list(dimension.values))
        case "quniform":
            return tune.quniform(float(low), float(high), float(dimension.values[2]))
        case "loguniform":
            return tune.lograndint(low, high + 1) if dimension.whole else tune.loguniform(low, high)
        case _:
            return tune.randint(low, high + 1) if dimension.whole else tune.uniform(low, high)


def searcher_of(config: TuneConfig) -> Any:
    """The search algorithm, which proposes the values of each trial."""
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if config.searcher == "random":
        return BasicVariantGenerator(random_state=config.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = [flat(point) for point in config.start]
    return OptunaSearch(metric="score", mode="min", points_to_evaluate=first or None, seed=config.seed)


def scheduler_of(config: TuneConfig) -> Any:
    """The scheduler, which decides the trials that continue from a rung; None continues all."""
    from ray.tune import schedulers

    if config.kind == "posthoc":
        return None
    match config.scheduler:
        case "asha":
            return schedulers.ASHAScheduler(
                time_attr="part", max_t=config.parts, grace_period=1, reduction_factor=config.reduction
            )
        case "hyperband":
            return schedulers.HyperBandScheduler(
                time_attr="part", max_t=config.parts, reduction_factor=config.reduction
            )
        case "pbt":
            return schedulers.PopulationBasedTraining(
                time_attr="part",
                perturbation_interval=1,
                hyperparam_mutations={dimension.path: domain(dimension) for dimension in config.dimensions},
                custom_explore_fn=partial(explored, config.dimensions),
            )
        case _:
            return None


def explored(dimensions: Sequence[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values after PBT has multiplied them by 0.8 or 1.2, brought back into the space."""
    return {**values, **{dimension.path: dimension.clean(values[dimension.path]) for dimension in dimensions}}
