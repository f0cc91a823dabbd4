"""Networks of EDM (arXiv 2206.00364): DDPM++, NCSN++ and ADM, from pickles that carry the arguments of their classes.

ECT's pickles (arXiv 2406.14548) hold the same networks under another preconditioning of the same formulas.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.nets.public.base import MappingError, PublicNet, heads_first, renamed

_CLASSES = {"EDMPrecond": None, "ECMPrecond": False}  # -> PublicNet.boundary
_KINDS = {"SongUNet": "unet", "DhariwalUNet": "adm"}
# Default arguments of EDM's classes (arXiv 2206.00364, App. F.2), by the names of Config.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]},
    "adm": {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
}
_PARTS = {
    "norm0": "norm0", "conv0": "conv0", "affine": "norm1.affine", "norm1": "norm1.norm", "conv1": "conv1",
    "skip": "skip", "norm2": "attention.norm", "qkv": "attention.qkv", "proj": "attention.out",
}  # fmt: skip
_OUTER = {
    "map_noise.freqs": "embedding.features.freqs", "map_label": "embedding.label", "map_augment": "embedding.augment",
    "map_layer0": "embedding.layer0", "map_layer1": "embedding.layer1", "out_norm": "norm", "out_conv": "output",
}  # fmt: skip
_BLOCK = re.compile(r"(enc|dec)\.(\d+x\d+_(?:block\d+|in\d|down|up))\.(\w+)")
_SIDE = re.compile(r"(enc|dec)\.(\d+x\d+)_(conv|aux_residual|aux_norm|aux_conv)")


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the network is one of EDM's two classes inside a preconditioning such as `EDMPrecond`."""
    del named
    return attributes.get("model_type", "DhariwalUNet") in _KINDS and "Precond" in attributes.get("class_name", "")


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors.

    Raises:
        MappingError: another preconditioning, or an encoder or decoder that is not implemented.
    """
    given, name = dict(attributes), attributes["class_name"]
    if name not in _CLASSES:
        raise MappingError(f"{name}: expected one of {', '.join(_CLASSES)}; others have another noise input")
    for key in ("encoder_type", "decoder_type"):
        if given.get(key, "standard") == "skip":
            raise MappingError(f"{key}: expected standard or residual, got skip")
    kind = _KINDS[given.get("model_type", "DhariwalUNet")]
    given = {**_DEFAULTS[kind], **given}
    options = _options(kind, given)
    inner = {key.removeprefix("model."): tensor for key, tensor in named.items()}
    tensors, unknown = renamed(inner, _rename, lambda name: name.endswith("resample_filter"))
    for key in [key for key in tensors if ".attention.qkv." in key]:
        heads = 1 if kind == "unet" else tensors[key].shape[0] // (3 * 64)
        tensors[key] = heads_first(tensors[key], heads, "hcq")
    family = "ADM" if kind == "adm" else "NCSN++" if options["encoder"] == "residual" else "DDPM++"
    return PublicNet(
        family=f"EDM's {family} ({name})",
        kind=kind,
        options=options,
        channels=given["img_channels"],
        resolution=given["img_resolution"],
        classes=given.get("label_dim", 0),
        tensors=tensors,
        unknown=unknown,
        sigma_data=float(given.get("sigma_data", 0.5)),
        boundary=_CLASSES[name],
    )


def _options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """EDM's constructor arguments as fields of Config."""
    options: dict[str, Any] = {
        "c_noise": "log",
        "model_channels": given["model_channels"],
        "channel_mult": list(given["channel_mult"]),
        "blocks": given["num_blocks"],
        "attention_resolutions": list(given["attn_resolutions"]),
        "dropout": float(given.get("dropout", 0.1)),
        "embedding_mult": given.get("channel_mult_emb", 4),
        "augment_dim": given.get("augment_dim", 0),
    }
    if kind == "adm":
        return options
    return {
        **options,
        "embedding": given.get("embedding_type", "positional"),
        "noise_mult": given.get("channel_mult_noise", 1),
        "encoder": given.get("encoder_type", "standard"),
        "resample_filter": list(given.get("resample_filter", [1, 1])),
    }


def _rename(name: str) -> str | None:
    if block := _BLOCK.match(name):
        way, place, part = block.groups()
        rest = name[block.end() :]
        return f"{way}oder.{place}.{_PARTS[part]}{rest}" if part in _PARTS else None
    if side := _SIDE.match(name):
        way, size, part = side.groups()
        new = {"conv": "input", "aux_residual": f"residual.{size}_down.conv", "aux_norm": "norm", "aux_conv": "output"}
        return new[part] + name[side.end() :]
    for old, new in _OUTER.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None
