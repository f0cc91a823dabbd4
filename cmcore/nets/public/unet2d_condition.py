"""UNet2DConditionModel of Hugging Face's diffusers, such as Stable Diffusion's: the library's network with its weights.

The scheduler in the folder beside it says what its timesteps and its output mean.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.config import ConfigError
from cmcore.config import read as read_config
from cmcore.nets import diffusers
from cmcore.nets.public.base import MappingError, PublicNet

CLASS = "UNet2DConditionModel"
HINTS = ("scheduler", "resolution", "head_channels")  # attributes that are no arguments
SCHEDULE = {"timesteps": "num_train_timesteps", "beta_schedule": "", "beta_start": "", "beta_end": ""}
FIXED = {"trained_betas": None, "rescale_betas_zero_snr": False}  # other timesteps than the schedule's


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the config.json beside the file is that of a UNet2DConditionModel."""
    del named
    return attributes.get("_class_name") == CLASS


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors, in float32.

    Args:
        named: its tensors.
        attributes: the arguments of UNet2DConditionModel, and under "scheduler" those of the scheduler.

    Raises:
        MappingError: the files are incomplete, or the network has inputs that it has not here.
    """
    scheduler = attributes.get("scheduler")
    if not isinstance(scheduler, Mapping):
        raise MappingError("scheduler: expected scheduler/scheduler_config.json beside the folder of the network")
    for key, value in FIXED.items():
        if (got := scheduler.get(key, value)) != value:
            raise MappingError(f"scheduler: {key}: expected {value}, got {got}")
    channels, resolution = attributes.get("in_channels", 4), attributes.get("resolution", attributes.get("sample_size"))
    if (got := attributes.get("out_channels", 4)) != channels:
        raise MappingError(f"out_channels: expected in_channels = {channels}, got {got}")
    if not (isinstance(channels, int) and isinstance(resolution, int)):
        raise MappingError(f"in_channels, sample_size: expected whole numbers, got {channels!r} and {resolution!r}")
    try:
        options = {
            "arguments": _arguments(attributes),
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
        family=f"diffusers' {CLASS} of a diffusion model",
        kind="diffusers",
        options=options,
        channels=channels,
        resolution=resolution,
        classes=0,
        tensors={f"unet.{name}": tensor.float() for name, tensor in named.items()},
        sigma_data=sigma_data,
        boundary=False,
        diffusion=True,
        noise={"sigma_min": least, "sigma_max": most},
    )


def _arguments(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not the library's defaults, nor decided by the data."""
    try:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    except ModuleNotFoundError as error:
        raise diffusers.missing("net.kind") from error
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    plain = {key: list(one.default) if isinstance(one.default, tuple) else one.default for key, one in known.items()}
    return {
        key: value
        for key, value in attributes.items()
        if not key.startswith("_") and key not in (*HINTS, *diffusers.BY_DATA)
        and not (key in plain and plain[key] == value)
    }  # fmt: skip
