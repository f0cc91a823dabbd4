"""Public networks without the public code: tensors under the public names, and pickles laid out like NVlabs'.

`public_vectors.json` holds, of tiny networks of the public classes, the names and shapes of their tensors and what they
compute when `weights` fills them and `inputs` goes in, all in float64 (EDM's softmax and OpenAI's are in float32).
"""

import json
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "nets" / "public_vectors.json").read_text())
EDM = [name for name in CASES if "class_name" in CASES[name]["attributes"]]
OPENAI = [name for name in CASES if name not in EDM]


def numbers(shape: tuple[int, ...], key: int) -> Tensor:
    """Numbers between -1 and 1 that look random, by a formula; the same on every machine."""
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (torch.sin(i * 12.9898 + key * 78.233) * 43758.5453).frac().reshape(shape)


def weights(case: str) -> dict[str, Tensor]:
    """The tensors of a case by their public names, of about unit gain."""
    shapes = {name: tuple(map(int, text.split("x"))) for name, text in CASES[case]["shapes"].items()}
    tensors = {}
    for key, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        u = numbers(shape, key)
        wide = len(shape) > 1
        t = u * math.sqrt(3 / math.prod(shape[1:])) if wide else 0.3 * u + (1 if name.endswith("weight") else 0)
        tensors[name] = t.float()
    return {name: tensors[name] for name in shapes}


def inputs(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (2, 3, 16, 16), c_noise (2,), labels (2,) and augmentation vectors (2, 9)."""
    c_noise = torch.tensor([-1.55, 1.05], dtype=torch.float64) * (1 if case in EDM else 1000)
    return numbers((2, 3, 16, 16), 1000) * 2, c_noise, torch.tensor([3, 7]), numbers((2, 9), 1001)


class Persistent:
    """Pickles as NVlabs' persistent objects do: a call of their reconstruction with source code, class and state."""

    def __init__(self, reconstruct: Any, kind: str, state: dict[str, Any]) -> None:
        source = "raise AssertionError('the source code in the file was run')"
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": kind, "state": state}
        self.reconstruct = reconstruct

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any]]]:
        return self.reconstruct, (self.meta,)


def nvlabs_pickle(path: Path, case: str, **attributes: Any) -> Path:
    """Write a snapshot as EDM's training does, with the case's tensors in nested modules; return its path."""
    persistence = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise AssertionError", vars(persistence))
    reconstruct = vars(persistence)["_reconstruct_persistent_obj"]
    reconstruct.__module__ = "torch_utils.persistence"

    def module(tensors: dict[str, Tensor], kind: str, **state: Any) -> Persistent:
        children: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            head, dot, rest = name.partition(".")
            if dot:
                children.setdefault(head, {})[rest] = tensor
        parameters = {name: nn.Parameter(tensor) for name, tensor in tensors.items() if "." not in name}
        modules = {name: module(inner, "Module", skip_scale=0.5) for name, inner in children.items()}
        held = {"training": False, "_parameters": parameters, "_buffers": {}, "_modules": modules}
        return Persistent(reconstruct, kind, {**held, **state})

    arguments = {**CASES[case]["attributes"], **attributes}
    kind = arguments.pop("class_name")
    network = module(weights(case), kind, _init_kwargs=arguments, sigma_data=0.5)
    before = {name: sys.modules.get(name) for name in ("torch_utils", "torch_utils.persistence")}
    sys.modules.update({"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence})
    try:
        path.write_bytes(pickle.dumps({"ema": network, "dataset_kwargs": {"resolution": 16}}))
    finally:
        for name, found in before.items():
            if found is None:
                del sys.modules[name]
            else:
                sys.modules[name] = found
    return path
