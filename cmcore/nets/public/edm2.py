"""Networks of EDM2 (arXiv 2312.02696), and consistency models fine-tuned from them, by the shapes of their tensors.

The width of a head, the balances and the dropout, which no shape determines, come from the file's attributes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.nets.public.base import MappingError, PublicNet, renamed

_SIZES = {64: "XXS", 128: "XS", 192: "S", 256: "M", 320: "L", 384: "XL", 448: "XXL"}
_PARTS = {
    "emb_gain": "gain", "conv_res0": "conv0", "emb_linear": "modulation", "conv_res1": "conv1", "conv_skip": "skip",
    "attn_qkv": "attention.qkv", "attn_proj": "attention.out",
}  # fmt: skip
_OUTER = {
    "emb_fourier.freqs": "embedding.features.freqs", "emb_fourier.phases": "embedding.features.phases",
    "emb_noise.weight": "embedding.noise.weight", "emb_label.weight": "embedding.label.weight",
    "out_conv.weight": "output.weight", "out_gain": "gain",
}  # fmt: skip
_BLOCK = re.compile(r"unet\.(enc|dec)\.(\d+x\d+_(?:block\d+|in\d|down|up))\.(\w+)(\.weight)?")
_INPUT = re.compile(r"unet\.enc\.(\d+)x\1_conv\.weight")
# EDM2's arguments -> fields of Config and EDM2's defaults.
_NUMBERS = {
    "label_balance": ("label_balance", 0.5),
    "concat_balance": ("concat_balance", 0.5),
    "res_balance": ("residual_balance", 0.3),
    "attn_balance": ("attention_balance", 0.3),
    "clip_act": ("clip", 256.0),
    "dropout": ("dropout", 0.0),
}


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the two tensors are present whose names only this family has."""
    del attributes
    return {"unet.emb_fourier.phases", "unet.out_gain"} <= named.keys()


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors, without EDM2's learned uncertainty, which only training uses.

    Raises:
        MappingError: the network is not of config G.
    """
    tensors, unknown = renamed(named, _rename, lambda name: name.startswith("logvar_"))
    resolution = next((int(match[1]) for match in map(_INPUT.fullmatch, named) if match), 0)
    needed = {"input.weight", "output.weight", "embedding.noise.weight", "embedding.features.freqs"}
    if missing := sorted(needed - tensors.keys()):
        raise MappingError(f"EDM2: expected tensors for {', '.join(missing)}, got none")
    if list(attributes.get("resample_filter", [1, 1])) != [1, 1]:
        raise MappingError(f"resample_filter: expected [1, 1], got {attributes['resample_filter']}")
    label = tensors.get("embedding.label.weight")
    options = _options(tensors, resolution, attributes)
    return PublicNet(
        family=f"EDM2 {_SIZES.get(options['model_channels'], '')}".strip(),
        kind="edm2",
        options=options,
        channels=tensors["output.weight"].shape[0],
        resolution=resolution,
        classes=0 if label is None else label.shape[1],
        tensors=tensors,
        unknown=unknown,
        sigma_data=float(attributes.get("sigma_data", 0.5)),
        boundary=False,
    )


def _options(tensors: Mapping[str, Tensor], resolution: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Config: shapes from the tensors, the rest from the file's attributes."""
    sizes = [resolution >> level for level in range(32)]
    levels = [size for size in sizes if f"encoder.{_place(size)}_block0.gain" in tensors]
    wide = [tensors[f"encoder.{_place(size)}_block0.conv0.weight"].shape[0] for size in levels]
    width, features = tensors["embedding.noise.weight"].shape
    unit = given.get("model_channels") or math.gcd(*wide, width, features)
    blocks = sum(re.fullmatch(rf"encoder\.{_place(resolution)}_block\d+\.gain", name) is not None for name in tensors)
    options: dict[str, Any] = {
        "c_noise": "log",
        "model_channels": unit,
        "channel_mult": [channels // unit for channels in wide],
        "blocks": blocks,
        "attention_resolutions": [s for s in levels if f"encoder.{_place(s)}_block0.attention.qkv.weight" in tensors],
        "head_channels": given.get("channels_per_head") or given.get("head_channels") or 64,
    }
    for key, value, usual in (("noise_mult", features, wide[0]), ("embedding_mult", width, max(wide))):
        if value != usual:
            options[key] = value // unit
    for theirs, (ours, default) in _NUMBERS.items():
        value = given.get(theirs, default)
        if value is None:
            raise MappingError(f"{theirs}: expected a number, got None")
        options[ours] = float(value)
    return options


def _place(size: int) -> str:
    return f"{size}x{size}"


def _rename(name: str) -> str | None:
    if _INPUT.fullmatch(name):
        return "input.weight"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _OUTER.get(name.removeprefix("unet."))
    way, place, part, weight = block.groups()
    return f"{way}oder.{place}.{_PARTS[part]}{weight or ''}" if part in _PARTS else None
