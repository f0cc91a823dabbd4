"""UNet2DModel of Hugging Face diffusers, in the layout of the public consistency models (arXiv 2303.01469).

There it is an ADM with residual blocks that resample, one number of normalisation groups throughout, attention with
separate q, k and v, and 1000 ln(sigma)/4 as the noise level. The scheduler of a consistency model,
CMStochasticIterativeScheduler, holds the scalings and the noise range.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from cmcore.layers.norms import group_count
from cmcore.nets.adm import Config
from cmcore.nets.public.base import MappingError

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
