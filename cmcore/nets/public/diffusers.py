"""UNet2DModel of Hugging Face diffusers, in the layout of the public consistency models (arXiv 2303.01469), both ways.

There it is an ADM with residual blocks that resample, one number of normalisation groups throughout, attention with
separate q, k and v, and 1000 ln(sigma)/4 as the noise level. The scheduler of a consistency model,
CMStochasticIterativeScheduler, holds the scalings and the noise range. `unet2d` writes such networks, `read` reads
them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmcore.layers.norms import group_count
from cmcore.nets.adm import Config
from cmcore.nets.public.base import MappingError, PublicNet, heads_first

CLASS, SCHEDULER = "UNet2DModel", "CMStochasticIterativeScheduler"
# Ours -> theirs, within a residual block, within its attention, and outside of blocks.
_RESIDUAL = {
    "norm0": "norm1", "conv0": "conv1", "norm1.affine": "time_emb_proj", "norm1.norm": "norm2", "conv1": "conv2",
    "skip": "conv_shortcut",
}  # fmt: skip
_ATTENTION = {"norm": "group_norm", "out": "to_out.0"}
_OUTER = {
    "input": "conv_in", "norm": "conv_norm_out", "output": "conv_out", "embedding.layer0": "time_embedding.linear_1",
    "embedding.layer1": "time_embedding.linear_2",
}  # fmt: skip
_LABEL = ("embedding.label.weight", "class_embedding.weight")  # transposed: an embedding has a row for each class
_QKV = ("to_q", "to_k", "to_v")
_NORMS = {"group": "default", "adaptive": "scale_shift"}
_DOWN = {False: "ResnetDownsampleBlock2D", True: "AttnDownBlock2D"}
_UP = {False: "ResnetUpsampleBlock2D", True: "AttnUpBlock2D"}
# What the layout asks of the arguments of UNet2DModel, with the library's defaults.
_FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "freq_shift": (0, 0),
    "flip_sin_to_cos": (True, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_type": ("resnet", "conv"),
    "upsample_type": ("resnet", "conv"),
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
}
_DROPPED = re.compile(r"embedding\.(augment\.weight|features\.freqs)")  # zero at sampling, and constants


class Shape(NamedTuple):
    """Of the images and labels."""

    channels: int
    resolution: int
    classes: int  # 0 for an unconditional network


def unet2d(config: Config, shape: Shape, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A network of this project as UNet2DModel: its config.json, and its tensors by their names there.

    Raises:
        MappingError: UNet2DModel cannot hold the network; the message says why.
    """
    if config.c_noise != "log1000":
        raise MappingError(f"c_noise: expected log1000, the noise level of UNet2DModel, got {config.c_noise}")
    if config.norm not in _NORMS:
        raise MappingError(f"norm: expected one of {', '.join(_NORMS)}, got {config.norm}")
    if config.channel_mult[0] != 1:
        raise MappingError(f"channel_mult: expected 1 at first, got {config.channel_mult[0]}")
    wide = [config.model_channels * factor for factor in config.channel_mult]
    counts = {group_count(width, least_channels=config.group_channels) for width in _normalised(wide, config.blocks)}
    if len(counts) > 1:
        raise MappingError(f"group_channels: expected one number of groups for all norms, got {sorted(counts)}")
    (groups,) = counts
    attends = [shape.resolution >> level in config.attention_resolutions for level in range(len(wide))]
    described = {
        "_class_name": CLASS,
        **{key: value for key, (value, _) in _FIXED.items()},
        "sample_size": shape.resolution,
        "in_channels": shape.channels,
        "out_channels": shape.channels,
        "block_out_channels": wide,
        "layers_per_block": config.blocks,
        "down_block_types": [_DOWN[attention] for attention in attends],
        "up_block_types": [_UP[attention] for attention in reversed(attends)],
        "attention_head_dim": config.head_channels,
        "time_embedding_dim": config.model_channels * config.embedding_mult,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": _NORMS[config.norm],
        "dropout": config.dropout,
        "num_class_embeds": shape.classes or None,
    }
    places = dict(_places(len(wide), config.blocks, shape.resolution))
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _DROPPED.fullmatch(name):
            theirs.update(_renamed(name, tensor, places, config.head_channels))
    return described, {name: tensor.detach().contiguous().clone() for name, tensor in theirs.items()}


def _normalised(wide: list[int], blocks: int) -> set[int]:
    """The channels that go through norms: of the levels, and on the way up together with those of the way down."""
    skips = [wide[0]]
    for level, channels in enumerate(wide):
        skips += [wide[level - 1]] * (level > 0) + [channels] * blocks
    widths, now = {*wide}, wide[-1]
    for channels in reversed(wide):
        for _ in range(blocks + 1):
            widths.add(now + skips.pop())
            now = channels
    return widths


def _places(levels: int, blocks: int, resolution: int) -> Iterator[tuple[str, tuple[str, str]]]:
    """Our blocks -> their residual block and attention, which is there where ours attends."""
    for level in range(levels):
        size, up = f"{resolution >> level}x{resolution >> level}", levels - 1 - level
        for index in range(blocks):
            down = f"down_blocks.{level}"
            yield f"encoder.{size}_block{index}", (f"{down}.resnets.{index}", f"{down}.attentions.{index}")
        if level:
            yield f"encoder.{size}_down", (f"down_blocks.{level - 1}.downsamplers.0", "")
        for index in range(blocks + 1):
            place = f"up_blocks.{up}"
            yield f"decoder.{size}_block{index}", (f"{place}.resnets.{index}", f"{place}.attentions.{index}")
        if up:
            yield f"decoder.{size}_up", (f"up_blocks.{up - 1}.upsamplers.0", "")
        else:
            yield f"decoder.{size}_in0", ("mid_block.resnets.0", "mid_block.attentions.0")
            yield f"decoder.{size}_in1", ("mid_block.resnets.1", "")


def _renamed(
    name: str, tensor: Tensor, places: Mapping[str, tuple[str, str]], head: int
) -> Iterator[tuple[str, Tensor]]:
    """One of our tensors under their names: q, k and v come apart, and 1 x 1 convolutions become linear layers."""
    if name == _LABEL[0]:
        yield _LABEL[1], tensor.T
        return
    stem, _, end = name.rpartition(".")
    if stem in _OUTER:
        yield f"{_OUTER[stem]}.{end}", tensor
        return
    way, block, part = stem.split(".", 2)
    resnet, attention = places[f"{way}.{block}"]
    if part in _RESIDUAL:
        yield f"{resnet}.{_RESIDUAL[part]}.{end}", tensor
        return
    part = part.removeprefix("attention.")
    flat = tensor if part == "norm" else tensor.reshape(tensor.shape[:2] if end == "weight" else -1)
    if part != "qkv":
        yield f"{attention}.{_ATTENTION[part]}.{end}", flat
        return
    joint = flat.reshape(-1, 3, head, *flat.shape[1:])  # heads, then q, k, v, then channels
    for index, said in enumerate(_QKV):
        yield f"{attention}.{said}.{end}", joint[:, index].flatten(0, 1)


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the config.json beside the file is that of a UNet2DModel."""
    del named
    return attributes.get("_class_name") == CLASS


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors.

    Args:
        named: its tensors.
        attributes: the arguments of UNet2DModel, and under "scheduler" those of the scheduler.

    Raises:
        MappingError: the network has another layout, or is no consistency model.
    """
    try:
        return _read(named, attributes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, MappingError):
            raise
        raise MappingError(f"expected a complete config.json of a UNet2DModel, got one without {error}") from error


def _read(named: Mapping[str, Tensor], given: Mapping[str, Any]) -> PublicNet:
    for key, (value, default) in _FIXED.items():
        _expect(key, value, given.get(key, default))
    scheduler = given.get("scheduler") or {}
    _expect("scheduler", SCHEDULER, scheduler.get("_class_name"))
    wide, blocks, size = list(given["block_out_channels"]), given.get("layers_per_block", 2), given["sample_size"]
    base, channels = wide[0], given.get("in_channels", 3)
    _expect("out_channels", channels, given.get("out_channels", 3))
    kinds = {theirs: ours for ours, theirs in _NORMS.items()}
    shift = given.get("resnet_time_scale_shift", "default")
    if shift not in kinds:
        raise MappingError(f"resnet_time_scale_shift: expected one of {', '.join(kinds)}, got {shift}")
    groups = given.get("norm_num_groups", 32)
    if given.get("attn_norm_num_groups") is not None or shift != "default":
        _expect("attn_norm_num_groups", groups, given.get("attn_norm_num_groups"))
    down, up = list(given["down_block_types"]), list(given["up_block_types"])
    attends = [kind == _DOWN[True] for kind in down]
    _expect("down_block_types", [_DOWN[attention] for attention in attends], down)
    _expect("up_block_types", [_UP[attention] for attention in reversed(attends)], up)
    head = given.get("attention_head_dim", 8)
    places = dict(_places(len(wide), blocks, size))
    options = {
        "c_noise": "log1000",
        "model_channels": base,
        "channel_mult": [channels // base for channels in wide],
        "blocks": blocks,
        "attention_resolutions": [size >> level for level, attention in enumerate(attends) if attention],
        "head_channels": head,
        "embedding_mult": (given.get("time_embedding_dim") or 4 * base) // base,
        "norm": kinds[shift],
        "norm_eps": given.get("norm_eps", 1e-5),
        **_groups(wide, blocks, groups),
    }
    tensors, unknown = _ours(named, places, head)
    least = scheduler.get("sigma_min", 0.002)
    levels = {"sigma_max": scheduler.get("sigma_max", 80.0), "rho": scheduler.get("rho", 7.0)}
    return PublicNet(
        family=f"diffusers' {CLASS} of a consistency model",
        kind="adm",
        options=options,
        channels=channels,
        resolution=size,
        classes=given.get("num_class_embeds") or 0,
        tensors=tensors,
        unknown=unknown,
        sigma_data=float(scheduler.get("sigma_data", 0.5)),
        boundary=least > 0,  # with 0 the scheduler's scalings are the plain ones of EDM
        noise={**levels, **({"sigma_min": least} if least > 0 else {})},
    )


def _expect(key: str, value: Any, got: Any) -> None:
    if got != value:
        raise MappingError(f"{key}: expected {value}, got {got}")


def _groups(wide: list[int], blocks: int, groups: int) -> dict[str, int]:
    """The `group_channels` with which every norm has so many groups; nothing where it is the default."""
    widths, default = _normalised(wide, blocks), Config().group_channels
    for least in (default, *range(1, max(widths) + 1)):
        if {group_count(width, least_channels=least) for width in widths} == {groups}:
            return {} if least == default else {"group_channels": least}
    raise MappingError(f"norm_num_groups: expected at most 32 that divide {sorted(widths)}, got {groups}")


def _ours(
    named: Mapping[str, Tensor], places: Mapping[str, tuple[str, str]], head: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors under our names, in float32, and the names that have no place."""
    tensors: dict[str, Tensor] = {}
    joint: dict[str, list[Tensor | None]] = {}
    unknown: list[str] = []
    resnets = {resnet: ours for ours, (resnet, _) in places.items()}
    attentions = {attention: ours for ours, (_, attention) in places.items() if attention}
    outer, parts, inner = (
        {theirs: ours for ours, theirs in known.items()} for known in (_OUTER, _RESIDUAL, _ATTENTION)
    )
    block = re.compile(r"(.*?(?:resnets|downsamplers|upsamplers|attentions)\.\d+)\.(.+)\.(weight|bias)")
    for name, tensor in named.items():
        stem, _, end = name.rpartition(".")
        found = block.fullmatch(name)
        if name == _LABEL[1]:
            tensors[_LABEL[0]] = tensor.float().T.contiguous()
        elif stem in outer:
            tensors[f"{outer[stem]}.{end}"] = tensor.float()
        elif found and found[1] in resnets and found[2] in parts:
            tensors[f"{resnets[found[1]]}.{parts[found[2]]}.{end}"] = tensor.float()
        elif found and found[1] in attentions and found[2] in inner:
            whole = tensor.float()
            linear = found[2] != "group_norm" and end == "weight"
            key = f"{attentions[found[1]]}.attention.{inner[found[2]]}.{end}"
            tensors[key] = whole[..., None, None] if linear else whole
        elif found and found[1] in attentions and found[2] in _QKV:
            key = f"{attentions[found[1]]}.attention.qkv.{end}"
            joint.setdefault(key, [None] * len(_QKV))[_QKV.index(found[2])] = tensor.float()
        else:
            unknown.append(name)
    for key, found in joint.items():
        rows = [part for part in found if part is not None]
        if len(rows) == len(_QKV) and len({part.shape for part in rows}) == 1 and len(rows[0]) % head == 0:
            whole = heads_first(torch.cat(rows), len(rows[0]) // head, "qhc")
            tensors[key] = whole[..., None, None] if key.endswith("weight") else whole
    return tensors, unknown
