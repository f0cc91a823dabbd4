"""Low-rank adapters in files: those of a run's weight file, and folders in the layout of peft."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cmcore.atomic import write_atomic
from cmcore.bounded import check_safetensors, parse_json
from cmcore.errors import DataError, reason
from cmcore.layers.adapter import A, B, adapted_layers, added
from cmcore.train import checkpoint

STORED = "adapter:"  # begins the names of an adapter's tensors in a weight file
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # of peft
PREFIX = "base_model.model."  # of the names in peft's file
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False}  # all that is known here


@dataclass(frozen=True)
class Adapter:
    """A and B of every layer by their names (see layers/adapter.py), and alpha."""

    tensors: dict[str, Tensor]
    alpha: float
    rank: int  # of layers without a rank of their own
    alphas: Mapping[str, float] = field(default_factory=dict)  # of layers with an alpha of their own
    base: str = ""  # what it was trained on
    rooted: bool = False  # whether the product is multiplied with alpha/sqrt(r) in place of alpha/r

    def merge_into(self, weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """The weights of a network with `scale` times the adapter; a ValueError where it is of another network."""
        scales = {}
        for layer in adapted_layers(self.tensors):
            rank, alpha = len(self.tensors[f"{layer}.{A}"]), self.alphas.get(layer, self.alpha)
            scales[layer] = scale * alpha / (math.sqrt(rank) if self.rooted else rank)
        return added(weights, self.tensors, scales)


def load_adapter(path: Path) -> Adapter:
    """An adapter from the weight file of a run that has trained one, or from peft's adapter_model.safetensors.

    Raises:
        DataError: there is none in the file, or one of a kind that is not known here.
    """
    return _of_peft(path) if (path.parent / CONFIG).is_file() else _of_run(path)


def _of_run(path: Path) -> Adapter:
    try:
        tensors, meta = checkpoint.load(path, STORED)
    except checkpoint.CheckpointError as error:
        raise DataError(str(error)) from error
    if not (known := meta.get("adapter")):
        raise DataError(f"{path}: expected the weights of a run with train.adapter, got those of one without")
    return Adapter(tensors, known["alpha"], known["rank"], base=known["base"])


def _of_peft(path: Path) -> Adapter:
    said, where = parse_json((path.parent / CONFIG).read_bytes(), str(path.parent / CONFIG)), path.parent / CONFIG
    if not isinstance(said, dict):
        raise DataError(f"{where}: expected a mapping, got {type(said).__name__}")
    for key, value in PLAIN.items():
        if (got := said.get(key, value)) != value:
            raise DataError(f"{where}: {key}: expected {value}, got {got!r}")
    rank, alpha, alphas = said.get("r"), said.get("lora_alpha"), said.get("alpha_pattern") or {}
    if not (isinstance(rank, int) and isinstance(alpha, int | float) and isinstance(alphas, dict)):
        raise DataError(f"{where}: expected numbers r and lora_alpha, got {rank!r} and {alpha!r}")
    try:
        check_safetensors(path)
        named = load_file(path)
    except (OSError, SafetensorError, DataError) as error:
        raise DataError(f"{path}: expected tensors of peft, got something else ({reason(error)})") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    layers = adapted_layers(tensors)
    if not layers or {*tensors} != {f"{layer}.{part}" for layer in layers for part in (A, B)}:
        some = ", ".join(sorted(named)[:3]) or "none"
        raise DataError(f"{path}: expected tensors {PREFIX}<layer>.{A} and {B} for every layer, got {some}, ...")
    return Adapter(
        tensors, alpha, rank, alphas, str(said.get("base_model_name_or_path")), rooted=bool(said.get("use_rslora"))
    )


def save_peft(adapter: Adapter, folder: Path) -> None:
    """Write an adapter as peft does, so that its `PeftModel.from_pretrained` adds it to the same network."""
    config: dict[str, Any] = {
        **PLAIN,
        "alpha_pattern": dict(adapter.alphas),
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": adapter.rank,
        "target_modules": sorted(adapted_layers(adapter.tensors)),
        "task_type": None,
        "use_rslora": adapter.rooted,
    }
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in sorted(adapter.tensors.items())}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, save(tensors, {"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
