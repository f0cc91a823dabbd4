"""Networks of this project's own weight files, in any floating-point type: a trained teacher that comes as one file.

Such a file holds the tensors under their own names, and describes network, data and noise range in its header.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.nets.public.base import MappingError, PublicNet


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the header is that of a model of this project."""
    del named
    return attributes.get("kind") == "model" and isinstance(attributes.get("net"), Mapping)


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors, in float32.

    Raises:
        MappingError: the header is incomplete, or the network has inputs that its method added.
    """
    options = dict(attributes["net"])
    # Before networks had any number of inputs, the header said of this one whether it was there.
    if options.pop("guidance", False) or attributes.get("inputs"):
        raise MappingError("expected a network of the image and its noise level alone, got one with further inputs")
    try:
        kind, shape = options.pop("kind"), attributes["shape"]
        return PublicNet(
            family=f"this project's {kind} of the method {attributes['method']}",
            kind=kind,
            options=options,
            channels=shape["channels"],
            resolution=shape["resolution"],
            classes=shape["classes"],
            tensors={name: tensor.float() for name, tensor in named.items()},
            sigma_data=float(attributes["diffusion"]["sigma_data"]),
            boundary=attributes["boundary"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MappingError(f"expected a complete header of a weight file, got one without {error}") from error
