"""Networks of latent diffusion models in folders of Hugging Face's diffusers: the library's classes with their weights.

UNet2DConditionModel, such as Stable Diffusion's, and PixArtTransformer2DModel. The scheduler in the folder beside the
network's says what its timesteps and its output mean.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.config import ConfigError
from cmcore.config import read as read_config
from cmcore.nets import diffusers
from cmcore.nets.public.base import MappingError, PublicNet

HINTS = ("scheduler", "resolution", "head_channels")  # attributes that are no arguments
SCHEDULE = {"timesteps": "num_train_timesteps", "beta_schedule": "", "beta_start": "", "beta_end": ""}
FIXED = {"trained_betas": None, "rescale_betas_zero_snr": False}  # other timesteps than the schedule's


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the config.json beside the file is that of one of `diffusers.MODELS`."""
    del named
    return _model(attributes) is not None


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors, in float32.

    Args:
        named: its tensors.
        attributes: the arguments of the library's class, and under "scheduler" those of the scheduler.

    Raises:
        MappingError: the files are incomplete, or the network has inputs that it has not here.
    """
    scheduler = attributes.get("scheduler")
    if not isinstance(scheduler, Mapping):
        raise MappingError("scheduler: expected scheduler/scheduler_config.json beside the folder of the network")
    for key, value in FIXED.items():
        if (got := scheduler.get(key, value)) != value:
            raise MappingError(f"scheduler: {key}: expected {value}, got {got}")
    model = _model(attributes)
    assert model is not None
    known = diffusers.MODELS[model]
    channels, resolution = attributes.get("in_channels", 4), attributes.get("sample_size")
    if model == "unet":  # PixArt's positions are those of one size
        resolution = attributes.get("resolution", resolution)
    if not (isinstance(channels, int) and isinstance(resolution, int)):
        raise MappingError(f"in_channels, sample_size: expected whole numbers, got {channels!r} and {resolution!r}")
    if (got := attributes.get("out_channels", known.outputs * 4)) != known.outputs * channels:
        wanted = "in_channels" if known.outputs == 1 else f"{known.outputs} * in_channels (noise and variance)"
        raise MappingError(f"out_channels: expected {wanted} = {known.outputs * channels}, got {got}")
    try:
        options = {
            "model": model,
            "arguments": _arguments(attributes, model),
            "prediction": scheduler.get("prediction_type", "epsilon"),
            **{ours: scheduler[theirs or ours] for ours, theirs in SCHEDULE.items()},
        }
        log_sigmas = read_config(diffusers.Config, options, "net").log_sigmas
    except KeyError as error:
        raise MappingError(f"scheduler: expected a complete scheduler_config.json, got one without {error}") from error
    except ConfigError as error:
        raise MappingError(str(error)) from error
    sigma_data = diffusers.Config().sigma_data
    least, most = (float(f"{sigma_data * float(log_sigmas[n].exp()):.6g}") for n in (0, -1))
    return PublicNet(
        family=f"diffusers' {known.library} of a diffusion model",
        kind="diffusers",
        options=options,
        channels=channels,
        resolution=resolution,
        classes=0,
        tensors={f"{known.name}.{name}": tensor.float() for name, tensor in named.items()},
        sigma_data=sigma_data,
        boundary=False,
        diffusion=True,
        noise={"sigma_min": least, "sigma_max": most},
    )


def _model(attributes: Mapping[str, Any]) -> str | None:
    """The key of `diffusers.MODELS`, if any. Earlier versions of the library had one class for all transformers."""
    name = attributes.get("_class_name")
    if name == "Transformer2DModel" and attributes.get("norm_type") == "ada_norm_single":
        return "pixart"
    return next((model for model, known in diffusers.MODELS.items() if known.library == name), None)


def _arguments(attributes: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Those that are not the library's defaults, nor decided by the data, nor of other versions and switched off."""
    known = inspect.signature(diffusers.library_class(model).__init__).parameters
    plain = {key: list(one.default) if isinstance(one.default, tuple) else one.default for key, one in known.items()}
    return {
        key: value
        for key, value in attributes.items()
        if not key.startswith("_") and key not in (*HINTS, *diffusers.BY_DATA)
        and (value != plain[key] if key in plain else value not in (None, False))
    }  # fmt: skip
