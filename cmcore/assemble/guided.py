"""Which runs can be guided: what a parameter file may say of label dropout and of guidance scales."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cmcore.config import ConfigError, join
from cmcore.diffusion.inputs import GUIDANCE

if TYPE_CHECKING:
    from cmcore.assemble.project import NetChoice, Run


def with_guidance(net: "NetChoice", method_config: Any) -> "NetChoice":
    """The network, with the guidance scale as an input where the method teaches it."""
    learns = getattr(method_config, "guidance", None) is not None
    return replace(net, inputs=(*net.inputs, GUIDANCE)) if learns else net


def check_guidance(run: "Run", few_step: bool, init: "Run | None") -> None:
    """A ConfigError where labels are dropped or guidance is asked for, and the networks do not allow it.

    Args:
        run: any run.
        few_step: whether it is no diffusion model, so that guidance would have to be learned.
        init: the run that it starts from.
    """
    path, scales = join("runs", run.name), getattr(run.method_config, "guidance", None)
    dropout = getattr(run.method_config, "label_dropout", 0.0)
    asked = {"options.label_dropout": dropout, "options.guidance": scales, "sample.guidance": run.sample.guidance - 1}
    for key in (key for key, value in asked.items() if value and not run.conditional):
        raise ConfigError(join(path, key), "is about labels, which the networks are not told; see `conditional`")
    if scales is not None and init is not None and not _knows_no_label(init):
        raise _untrained(init.name, join(path, "options.guidance"))
    s, where = run.sample.guidance, join(path, "sample.guidance")
    if s == 1:
        return
    if not few_step and not _knows_no_label(run):
        raise _untrained(run.name, where)
    if few_step and scales is None:
        raise ConfigError(where, f"expected 1, as {run.name} learns no scales; see `guidance` in its options; got {s}")
    if scales is not None and not scales[0] <= s <= scales[1]:
        raise ConfigError(where, f"expected a scale that was learned, from {scales[0]} to {scales[1]}, got {s}")


def _knows_no_label(run: "Run") -> bool:
    """Whether a diffusion model was trained on dropped labels; of weights from elsewhere the user has to know."""
    return run.method == "pretrained" or getattr(run.method_config, "label_dropout", 0.0) > 0


def _untrained(name: str, where: str) -> ConfigError:
    return ConfigError(
        where,
        f"guidance needs a diffusion model that has seen images without labels: expected "
        f"{join(join('runs', name), 'options.label_dropout')} above 0, got 0",
    )
