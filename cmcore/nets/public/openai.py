"""ADM as OpenAI publishes it: state dicts of consistency models (arXiv 2303.01469) and of their EDM teachers.

Such a file holds tensors only. Their names and sizes give the shape of the network except for two constants of every
published network: a resolution of 8 x 8 at the lowest level, and 64 channels per head. Guided diffusion (arXiv
2105.05233) has the same names, but its networks predict the noise and a variance, at discrete steps.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmcore.nets.public.base import MappingError, PublicNet, heads_first, renamed

_RESIDUAL = {
    "in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "norm1.affine", "out_layers.0": "norm1.norm",
    "out_layers.3": "conv1", "skip_connection": "skip", "norm": "attention.norm", "qkv": "attention.qkv",
    "proj_out": "attention.out",
}  # fmt: skip
_OUTER = {
    "time_embed.0": "embedding.layer0", "time_embed.2": "embedding.layer1", "label_emb": "embedding.label",
    "input_blocks.0.0": "input", "out.0": "norm", "out.2": "output",
}  # fmt: skip
_MODULE = re.compile(r"((?:input|output)_blocks\.\d+\.\d+|middle_block\.\d)\.(.+)\.(weight|bias)")


def recognise(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> bool:
    """Whether the tensors have the names of guided diffusion."""
    del attributes
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight"} <= set(named)


def read(named: Mapping[str, Tensor], attributes: Mapping[str, Any]) -> PublicNet:
    """The network and its tensors.

    Raises:
        MappingError: the network has another structure.
    """
    outputs, channels = named["out.2.weight"].shape[0], named["input_blocks.0.0.weight"].shape[1]
    if outputs != channels:
        raise MappingError(
            f"out.2.weight: expected {channels} output channels, got {outputs}: a network that also predicts a variance"
        )
    if any(name.endswith((".op.weight", ".conv.weight")) for name in named):
        raise MappingError("expected residual blocks that resample (resblock_updown), got convolutions that do")
    base, width = named["time_embed.0.weight"].shape[1], named["time_embed.0.weight"].shape[0]
    levels, blocks = _levels(named)
    resolution = attributes.get("resolution") or 8 * 2 ** (levels - 1)
    head = attributes.get("head_channels") or 64
    firsts = [level * (blocks + 1) + 1 for level in range(levels)]
    wide = [named[f"input_blocks.{first}.0.out_layers.0.weight"].shape[0] for first in firsts]
    shift_only = named["middle_block.0.emb_layers.1.weight"].shape[0] == wide[-1]
    options = {
        "c_noise": "log1000",
        "model_channels": base,
        "channel_mult": [channels // base for channels in wide],
        "blocks": blocks,
        "attention_resolutions": [
            resolution >> level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in named
        ],
        "head_channels": head,
        "embedding_mult": width // base,
        "norm": "group" if shift_only else "adaptive",
        **({"group_channels": 1} if min(wide) < 128 else {}),
    }
    places = _places(named, levels, blocks, resolution)
    tensors, unknown = renamed(named, lambda name: _rename(name, places), lambda _: False)
    for key in [key for key in tensors if ".attention.qkv." in key]:
        tensors[key] = _qkv(tensors[key], named["middle_block.1.qkv.weight"].ndim, head)
    if "label_emb.weight" in named:
        tensors["embedding.label.weight"] = named["label_emb.weight"].float().T.contiguous()
    return PublicNet(
        family="OpenAI's ADM",
        kind="adm",
        options=options,
        channels=channels,
        resolution=resolution,
        classes=named["label_emb.weight"].shape[0] if "label_emb.weight" in named else 0,
        tensors=tensors,
        unknown=unknown,
    )


def _levels(named: Mapping[str, Tensor]) -> tuple[int, int]:
    """Numbers of levels and of blocks per level. In the decoder a level ends with two residual blocks in one module."""
    count = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("input_blocks."))
    ends = {name.split(".")[1] for name in named if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", name)}
    levels = len(ends) + 1
    if count % levels or count // levels < 2:
        raise MappingError(f"input_blocks: expected the same number for each of {levels} levels, got {count} in all")
    return levels, count // levels - 1


def _places(named: Mapping[str, Tensor], levels: int, blocks: int, resolution: int) -> dict[str, str]:
    """OpenAI's modules -> blocks of this project. An attention belongs to the residual block before it."""
    places: dict[str, str] = {}

    def place(prefix: str, index: int, name: str) -> None:
        places[f"{prefix}.{index}"] = name
        if f"{prefix}.{index + 1}.qkv.weight" in named:
            places[f"{prefix}.{index + 1}"] = name

    low = f"{resolution >> (levels - 1)}x{resolution >> (levels - 1)}"
    place("middle_block", 0, f"decoder.{low}_in0")
    places["middle_block.2"] = f"decoder.{low}_in1"
    for level in range(levels):
        size, above = (f"{resolution >> at}x{resolution >> at}" for at in (level, level - 1 if level else 0))
        first, start = level * (blocks + 1), (levels - 1 - level) * (blocks + 1)
        if level:
            places[f"input_blocks.{first}.0"] = f"encoder.{size}_down"
        for index in range(blocks):
            place(f"input_blocks.{first + index + 1}", 0, f"encoder.{size}_block{index}")
        for index in range(blocks + 1):
            place(f"output_blocks.{start + index}", 0, f"decoder.{size}_block{index}")
        if level:
            last = f"output_blocks.{start + blocks}"
            places[f"{last}.{2 if f'{last}.1' in places else 1}"] = f"decoder.{above}_up"
    return places


def _rename(name: str, places: Mapping[str, str]) -> str | None:
    stem, _, end = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{end}"
    found = _MODULE.fullmatch(name)
    if found is None or found[1] not in places or found[2] not in _RESIDUAL:
        return None
    return f"{places[found[1]]}.{_RESIDUAL[found[2]]}.{found[3]}"


def _qkv(tensor: Tensor, ndim: int, head: int) -> Tensor:
    """Consistency models separate q, k and v; guided diffusion, with 1-d convolutions, has this project's order."""
    heads = tensor.shape[0] // (3 * head)
    ordered = heads_first(tensor, heads, "qhc") if ndim == 4 else tensor
    return ordered if tensor.ndim == 1 else ordered.reshape(*ordered.shape[:2], 1, 1)
